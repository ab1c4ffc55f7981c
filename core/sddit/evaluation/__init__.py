"""Evaluate a trained network: image grids, scores next to their floors, near copies, probes and monitors."""
