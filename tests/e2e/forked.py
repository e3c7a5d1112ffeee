"""Nodes forked from a process that has imported what every node imports: half of a small node's life would be that.

From its first line on such a node is a process like any other, with its own group, pipes and end. One that is given
faults, another program or an environment is started as a person starts it: what it changes must come before any import.
"""

import multiprocessing
import os
import runpy
import signal
import subprocess
import sys

_FORKS = multiprocessing.get_context("forkserver")
_FORKS.set_forkserver_preload(
    ["node.cli.start", "node.cli.join", "node.daemon", "node.dashboard", "transformers.models.llama.modeling_llama"]
)
# as in a node: gRPC would print about every child process that is started beside it
os.environ.setdefault("GRPC_ENABLE_FORK_SUPPORT", "0")


def _become(command, outputs, cwd, environment):
    """Be what `python -m command` is, until its end."""
    os.setpgid(0, 0)
    for descriptor, output in zip((1, 2), outputs, strict=True):
        os.dup2(output.fileno(), descriptor)
        output.close()
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(environment)
    sys.path[:] = [cwd, *(folder for folder in sys.path if not folder.startswith(os.path.join(cwd, "tests")))]
    sys.argv = command
    runpy.run_module(command[0], run_name="__main__", alter_sys=True)


class Forked:
    """A forked process, with the part of `subprocess.Popen` that the tests use."""

    def __init__(self, command, *, cwd, env):
        pipes = [_FORKS.Pipe(duplex=False) for _ in range(2)]
        written = [writes for _, writes in pipes]
        self._process = _FORKS.Process(target=_become, args=(command, written, cwd, env))
        self._process.start()
        for writes in written:
            writes.close()
        self.stdout, self.stderr = (os.fdopen(os.dup(reads.fileno())) for reads, _ in pipes)
        self.pid = self._process.pid

    @property
    def returncode(self):
        return self._process.exitcode

    def poll(self):
        return self._process.exitcode

    def wait(self, timeout=None):
        self._process.join(timeout)
        if self.returncode is None:
            raise subprocess.TimeoutExpired(f"the node {self.pid}", timeout)
        return self.returncode

    def send_signal(self, number):
        if self.returncode is None:
            os.kill(self.pid, number)

    def terminate(self):
        self.send_signal(signal.SIGTERM)

    def kill(self):
        self.send_signal(signal.SIGKILL)
