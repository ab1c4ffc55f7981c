"""Durable storage: atomic writes, the run folder and its lock, the metrics log, and checkpoints. Torch-free but for `tensors`."""
