"""`python -m node` is `potluck`."""

from node.cli.main import main

main()
