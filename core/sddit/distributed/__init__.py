"""Ranks, signals, the process group, and wrapping the model in DDP or FSDP2."""
