"""What a node leaves behind when it ends: every process, socket and temporary file that it or its children made."""

import os
import secrets
import shutil
import tempfile
import time
from pathlib import Path

_MARK = "POTLUCK_TEST_MARK"


class Place:
    """A home, and a folder for temporary files, of nodes whose processes carry a mark in their environment.

    The mark is inherited, so that a process is found whoever its parent is by now.
    """

    def __init__(self, home: Path):
        self.home = home
        self.temporary = Path(tempfile.mkdtemp(prefix="pl-", dir="/tmp"))  # short: sockets go into it
        self.mark = secrets.token_hex(16)
        self.env = {_MARK: self.mark, "TMPDIR": str(self.temporary)}

    def processes(self):
        """Command lines of the marked processes that are alive, by process id."""
        found = {}
        for folder in Path("/proc").glob("[0-9]*"):
            try:
                if f"{_MARK}={self.mark}".encode() in (folder / "environ").read_bytes():
                    found[int(folder.name)] = (folder / "cmdline").read_bytes().replace(b"\0", b" ").decode()
            except OSError:
                continue  # it has ended, or is somebody else's
        return found

    def files(self):
        """Temporary files, and sockets in the home."""
        in_home = [path for path in self.home.rglob("*") if path.is_socket()] if self.home.exists() else []
        return sorted(map(str, [*self.temporary.rglob("*"), *in_home]))

    def sockets(self):
        """Unix sockets that are open anywhere under our folders."""
        with open("/proc/net/unix") as table:
            paths = [line.split()[-1] for line in table]
        return [path for path in paths if path.startswith((str(self.temporary), str(self.home)))]

    def written_outside(self):
        """Files that a marked process has open for writing and that are in neither folder."""
        outside = set()
        for pid in self.processes():
            for link in Path(f"/proc/{pid}/fd").glob("*"):
                try:
                    target, flags = os.readlink(link), Path(f"/proc/{pid}/fdinfo/{link.name}").read_text()
                except OSError:
                    continue
                mode = int(flags.split("flags:")[1].split()[0], 8)
                is_file = target.startswith("/") and not target.startswith(("/dev/null", "/dev/pts", "/proc"))
                if is_file and mode & os.O_ACCMODE != os.O_RDONLY and not self._is_ours(target):
                    outside.add(target)
        return outside

    def assert_nothing_is_left(self, within_s=10.0):
        """Wait until everything is gone, and fail if something stays."""
        until = time.monotonic() + within_s
        while (left := (self.processes(), self.sockets(), self.files())) != ({}, [], []):
            assert time.monotonic() < until, f"left behind: {left}"
            time.sleep(0.05)

    def close(self):
        """End whatever is left."""
        for pid in self.processes():
            os.kill(pid, 9)
        shutil.rmtree(self.temporary, ignore_errors=True)

    def _is_ours(self, path):
        return path.startswith((str(self.temporary), str(self.home)))
