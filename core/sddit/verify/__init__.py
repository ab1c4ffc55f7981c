"""Check numerically what a machine computes: the checks behind `sddit-run verify`.

    rows = list(sddit.verify.verify())                 # every check of the core and of the built-in components
    found = sddit.verify.leak(recipe)                  # whether a trained module can see its target

A component brings its own checks (`registry.add(..., checks={...})`). The checks here hold for every method.
"""

from sddit.verify.leak_detector import leak
from sddit.verify.suite import Row, verify

__all__ = ["Row", "leak", "verify"]
