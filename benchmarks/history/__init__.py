"""What results were, at other commits."""
