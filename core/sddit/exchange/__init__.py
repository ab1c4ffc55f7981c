"""Weights in and out: published layouts, exported folders, and other runs to begin from."""
