"""`python -m coordinator` is `potluck coordinator`, without the node's packages."""

from coordinator.operator_cli import command

command(prog_name="potluck coordinator")
