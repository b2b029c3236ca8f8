"""`python -m metadist` is the command line."""

from metadist.cli.main import main

main()
