"""The numerical checks behind `sddit-run verify`: what a machine computes, next to what it must.

    rows = list(sddit.verify.verify())                 # every check of the core and of the built-in components
    found = sddit.verify.leak(recipe)                  # whether what is trained can see its target

A check of a component belongs to that component (`registry.add(..., checks={...})`); here are only those that hold for
any.
"""

from sddit.verify.leak_detector import leak
from sddit.verify.suite import Row, verify

__all__ = ["Row", "leak", "verify"]
