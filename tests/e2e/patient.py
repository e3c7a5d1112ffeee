"""`python -m e2e.patient FAULTS.json ARGUMENTS...`: the real `potluck`, with faults, that waits for threads at its end."""

import sys
from pathlib import Path

from faults.durable import durable_steps
from faults.fault import read_faults
from faults.injector import injected

from node.cli import running
from node.cli.main import main

if __name__ == "__main__":
    chosen = read_faults(Path(sys.argv.pop(1)))
    running._live_and_end = running._live
    with injected(*chosen, durable_steps()):
        main()
