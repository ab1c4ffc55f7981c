"""Toy components of every kind, so that tests and plugin authors need no other plugin."""
