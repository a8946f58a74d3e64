"""The static report and the generated blocks of the READMEs."""
