"""`python -m e2e.killed guarded|unguarded ARGUMENTS...`: the real `potluck`, killed once its network daemon has started.

At that moment the daemon knows nobody yet. (Later it ends by itself when its last client goes.) Unguarded, neither it
nor the sockets end with their node.
"""

import asyncio
import os
import signal
import sys

from node.cli.main import main
from node.core import sockets
from node.network import processes


async def _kill(_, folder, child):
    while not (folder / "p2pd.sock").exists():
        await asyncio.sleep(0.01)
    os.kill(os.getpid(), signal.SIGKILL)


if __name__ == "__main__":
    processes._attach = _kill
    if sys.argv.pop(1) == "unguarded":
        processes.dying_with_parent = list
        sockets._watch = lambda folder: None
    main()
