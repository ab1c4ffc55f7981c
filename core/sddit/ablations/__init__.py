"""Ablations: arms x grid x seeds under one budget. An ablation is a recipe with `[ablation]`.

planning/   arms, budget, plan and cost; needs no torch
analysis/   results of the run folders, statistics over seeds, diagnostics, tables
runner.py   executes the runs as processes, several at a time
"""
