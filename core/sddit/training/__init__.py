"""Train a recipe: one loop, read top to bottom, and its parts."""
