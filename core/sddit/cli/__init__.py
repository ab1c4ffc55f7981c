"""`sddit-run`: one command to train, and few verbs beside it. Nothing here imports torch before work begins."""

from sddit.cli.app import main

__all__ = ["main"]
