"""Evaluation: what generated images look like, how far they are from real ones, and the report that says so."""
