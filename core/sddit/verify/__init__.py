"""Check numerically what a machine computes: the checks behind `sddit-run verify`.

    rows = list(sddit.verify.verify())                 # every check of the loaded plugins
    found = sddit.verify.leak(recipe)                  # whether a trained module can see its target

A component brings its own checks (`registry.add(..., checks={...})`); the hook `register_checks` adds those that
belong to no component.
"""

from sddit.verify.leak_detector import leak
from sddit.verify.suite import Row, verify

__all__ = ["Row", "leak", "verify"]
