"""What users do with trained encoders."""
