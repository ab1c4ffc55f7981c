"""Provide the teacher of a run, for checks and tests of losses that read its outputs."""

from sddit.training.ema import Teacher

__all__ = ["Teacher"]
