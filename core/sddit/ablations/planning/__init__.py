"""Plan an ablation: arms, grid, seeds, budget and cost. Torch-free."""
