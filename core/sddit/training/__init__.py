"""Training: one loop, read top to bottom, and what it is made of."""
