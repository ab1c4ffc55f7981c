"""Diffusion mathematics shared by training and sampling: preconditioning, sampling, sigma grids, masking and keyed draws."""
