"""Exact generators of small data."""
