"""The targets, made once for each process that runs tests of this folder."""

import gc
import os
import tempfile
from pathlib import Path

import pytest

from hostile.audit import AUDIT
from hostile.doors import Doors
from hostile.files import Files
from hostile.tokenizer import byte_tokenizer


@pytest.fixture(scope="session")
def hostile_folder(tmp_path_factory):
    """A folder for what is written, in memory if there is such a disk."""
    where = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    with tempfile.TemporaryDirectory(prefix="hostile-", dir=where) as folder:
        yield Path(folder)


@pytest.fixture(scope="session")
def doors(hostile_folder):
    """The doors of a node."""
    (hostile_folder / "doors").mkdir()
    made = Doors(hostile_folder / "doors")
    yield made
    made.close()


@pytest.fixture(scope="session")
def files(hostile_folder):
    """The readers of files."""
    (hostile_folder / "files").mkdir()
    return Files(hostile_folder / "files", byte_tokenizer())


@pytest.fixture(scope="session")
def targets(doors, files):
    """All targets by name, each tried with what is valid, so that nothing is imported or compiled later on."""
    made = {target.name: target for target in (*doors.targets(), *files.targets())}
    for target in made.values():
        for seed in target.seeds:
            target.run(seed)
    gc.collect()
    gc.freeze()
    return made


@pytest.fixture
def audited(hostile_folder, tmp_path):
    """Fail the test if anything in it did what no input may lead to."""
    with AUDIT.watching(hostile_folder, tmp_path) as seen:
        yield
    assert not seen, seen[:5]
