"""`python -m faults.daemon FAULTS.json ARGUMENTS...`: the real `potluck`, with faults.

The file is read here and nowhere in `node`: no build of Potluck that is installed can be told to fail.
"""

from __future__ import annotations

import sys
from pathlib import Path

from faults.durable import durable_steps
from faults.fault import read_faults
from faults.injector import injected
from faults.protocol import protocol_steps
from node.cli.main import main

if __name__ == "__main__":
    chosen = read_faults(Path(sys.argv.pop(1)))
    with injected(*chosen, durable_steps(), protocol_steps()):
        main()
