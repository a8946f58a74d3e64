"""Running claims: units, engines, records and verdicts."""
