"""Diffusion mathematics of training and sampling: preconditioning, sampling, sigma grids, masking, keyed draws."""
