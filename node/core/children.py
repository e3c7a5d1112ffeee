"""Child processes that end with this one, also when it is killed and can tell nobody."""

from __future__ import annotations

import os
import signal
import sys

_PR_SET_PDEATHSIG = 1


def dying_with_parent(number: signal.Signals = signal.SIGKILL) -> list[str]:
    """Return a command in front of another that ends it, with a signal, when this process ends.

    Nothing where only Linux can. It is a separate interpreter, which then becomes the other program: the same in
    `preexec_fn` would run between fork and exec of a process with threads, where any lock that another thread held is
    held for ever (seen: a start that hung). To be started from the main thread, with whose end the kernel counts.
    """
    if not sys.platform.startswith("linux"):
        return []
    program = (
        f"import ctypes, os, sys; ctypes.CDLL(None).prctl({_PR_SET_PDEATHSIG}, {int(number)}); "
        "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execv(sys.argv[2], sys.argv[2:])"
    )
    return [sys.executable, "-I", "-S", "-c", program, str(os.getpid())]
