"""The report of an ablation, its published folder, and the comparison with published figures."""
