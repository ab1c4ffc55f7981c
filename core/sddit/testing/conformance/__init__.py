"""Conformance checks, one file per kind of component."""
