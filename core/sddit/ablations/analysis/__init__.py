"""Analyse an ablation: collected results, statistics over seeds, diagnostics and tables."""
