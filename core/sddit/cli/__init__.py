"""The command line, `sddit-run`. Nothing here imports torch before the work starts."""

from sddit.cli.app import main

__all__ = ["main"]
