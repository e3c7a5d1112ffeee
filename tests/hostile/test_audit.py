"""That the watch over code and files sees what it is there to see: its twins."""

import os
import pickle
import subprocess
import sys

import pytest

from hostile.audit import AUDIT


class Evil:
    def __reduce__(self):
        return (os.getpid, ())


DEEDS = {
    "unpickle": lambda folder: pickle.loads(pickle.dumps(Evil())),
    "run a text": lambda folder: eval("1 + 1"),
    "compile a text": lambda folder: compile("x = 1", "<from a peer>", "exec"),
    "start a program": lambda folder: subprocess.run([sys.executable, "-c", ""]),
    "shell": lambda folder: os.system("true"),
    "write outside": lambda folder: (folder / "outside").write_text("x"),
    "write outside by dots": lambda folder: (folder / "state" / ".." / "x").write_text("x"),
    "rename outside": lambda folder: os.rename(folder / "old", folder / "new"),
    "open by number": lambda folder: os.close(os.open(folder / "y", os.O_CREAT | os.O_WRONLY)),
}


@pytest.mark.parametrize("deed", DEEDS)
def test_the_watch_sees_what_no_input_may_lead_to(deed, tmp_path):
    (tmp_path / "state").mkdir()
    (tmp_path / "old").touch()

    with AUDIT.watching(tmp_path / "state") as seen:
        DEEDS[deed](tmp_path)

    assert seen


def test_the_watch_lets_a_node_write_its_own_files_and_read_others(tmp_path):
    (tmp_path / "state").mkdir()

    with AUDIT.watching(tmp_path / "state") as seen:
        (tmp_path / "state" / "x").write_text("x")
        (tmp_path / "state" / "x").rename(tmp_path / "state" / "y")
        __import__("this_is_not_there" if False else "colorsys")
        assert os.path.exists(os.__file__)
        with open(os.__file__, "rb") as file:
            file.read(1)

    assert not seen
