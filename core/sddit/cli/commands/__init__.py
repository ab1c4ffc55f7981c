"""The commands of `sddit-run`, one file per command."""
