"""Paired speed and memory of our models against public classes at equal weights."""
