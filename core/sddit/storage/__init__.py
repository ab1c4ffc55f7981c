"""Atomic writes, the run folder and its lock, the metrics log, and checkpoints. Torch-free except for `tensors`."""
