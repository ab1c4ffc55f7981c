"""Plugins: hook specifications, registries, discovery and loading."""
