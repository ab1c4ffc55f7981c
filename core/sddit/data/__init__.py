"""Data sets: what a run trains on. The modules that answer questions about data import no torch; `splits` holds tensors."""

from sddit.data.scaling import seen_std

__all__ = ["seen_std"]
