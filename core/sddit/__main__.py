"""`python -m sddit` is `sddit-run`."""

from sddit.cli import main

main()
