"""One run from recipe to report: setup, callbacks, checkpointing and resume."""
