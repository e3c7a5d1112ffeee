"""What a killed process leaves behind: no child and no socket folder; and both, with the guards off."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

PROGRAM = """
import subprocess, sys, time
from pathlib import Path
from node.core import children, sockets
if sys.argv[2] == "unguarded":
    children.dying_with_parent = lambda *_: []
    sockets._watch = lambda folder: None
folder = sockets.SocketFolder(Path(sys.argv[1]))
(folder.path / "a.sock").touch()
child = subprocess.Popen([*children.dying_with_parent(), "/bin/sleep", "60"])
print(child.pid, folder.path, flush=True)
time.sleep(60)
"""


def is_alive(pid):
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


def until(condition):
    for _ in range(200):
        if condition():
            return True
        time.sleep(0.02)
    return False


@pytest.fixture
def killed(tmp_path):
    """Kill a process that has a child and a socket folder; return the child's id and the folder."""
    pids = []

    def run(guards):
        command = [sys.executable, "-c", PROGRAM, str(tmp_path / "home"), guards]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
            pid, folder = process.stdout.readline().split()
            pids.append(int(pid))
            assert (Path(folder) / "a.sock").exists()
            if guards == "guarded":
                until(lambda: b"sleep" in Path(f"/proc/{pid}/cmdline").read_bytes())
            process.kill()
        return int(pid), Path(folder)

    yield run
    for pid in pids:
        if is_alive(pid):
            os.kill(pid, signal.SIGKILL)


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells children of their parent's end")
def test_a_killed_process_leaves_no_child_and_no_socket_folder(killed):
    child, folder = killed("guarded")

    assert until(lambda: not is_alive(child))
    assert until(lambda: not folder.exists())


@pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")
def test_without_guards_both_stay_and_the_next_start_removes_the_folder(killed, tmp_path):
    from node.core.sockets import SocketFolder

    child, folder = killed("unguarded")

    time.sleep(0.5)
    assert is_alive(child)
    assert folder.exists()
    again = SocketFolder(tmp_path / "home")
    assert not folder.exists()
    again.close()
    assert not again.path.exists()


def test_a_home_that_was_copied_from_a_running_node_leaves_that_nodes_sockets_alone(tmp_path, monkeypatch):
    from node.core import sockets

    running = sockets.SocketFolder(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")

    copied = sockets.SocketFolder(tmp_path / "b")
    assert running.path.exists()

    copied.close()
    shutil.copy(tmp_path / "a" / "sockets", tmp_path / "b")
    monkeypatch.setattr(sockets, "_is_free", lambda lock: True)  # the guard off
    sockets.SocketFolder(tmp_path / "b").close()
    assert not running.path.exists()
    running.close()


def test_a_pointer_to_a_folder_that_is_not_ours_removes_nothing(tmp_path):
    from node.core.sockets import SocketFolder

    precious = tmp_path / "potluck-precious"
    precious.mkdir()
    (tmp_path / "sockets").write_text(str(precious))

    SocketFolder(tmp_path).close()

    assert precious.exists()
