"""The store of checkpoints under `kill -9` and on a full disk: nothing lost, nothing torn, nothing piles up."""

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
from faults.scenarios import damage

from node.core.errors import OutOfDisk
from node.core.events import CheckpointSaved, EventBus, Fault
from node.data.stream import Cursor
from node.training import checkpoint as module
from node.training.checkpoint import Checkpoint, CheckpointStore
from node.training.saver import Saver, Snapshot

SIZE = 4 << 20
ROOT = Path(__file__).parent.parent.parent


def make(version, size=SIZE):
    return Checkpoint("run", version, {0: version.to_bytes(8, "little") * (size // 8)}, cursor={"version": version})


def save_until_killed(folder, version, write, store_class=CheckpointStore):
    store = store_class(folder)
    while True:
        version += 1
        store.save(make(version))
        os.write(write, version.to_bytes(8, "little"))


def kill_while_saving(folder, kills, save=save_until_killed):
    """Kill a child at a random moment of its saves, again and again.

    Returns:
        How many versions were lost that had been acknowledged, how many generations were found torn, and how many
        kills fell into a save.
    """
    chance = random.Random(11)
    known, lost, torn, hits = 0, 0, [], 0
    for _ in range(kills):
        read, write = os.pipe()
        child = os.fork()
        if child == 0:
            try:
                save(folder, known, write)
            finally:
                os._exit(1)
        os.close(write)
        first = os.read(read, 8)
        time.sleep(chance.random() * 0.03)
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
        acknowledged = int.from_bytes((first + os.read(read, 1 << 16))[-8:], "little")
        os.close(read)
        hits += any(path.name.startswith(".saving") for path in folder.iterdir())
        loaded = CheckpointStore(folder, emit=torn.append).load_latest("run")
        known = loaded.version if loaded is not None else 0
        lost += known not in (acknowledged, acknowledged + 1)
        assert loaded is None or loaded == make(known)
        names = sorted(path.name for path in folder.iterdir() if not path.name.startswith("refused"))
        assert len(names) <= 3, names
        assert all(name.startswith("generation-") for name in names), names
    return lost, len(torn), hits


def test_killing_with_9_at_any_moment_of_a_save_loses_and_tears_no_checkpoint(tmp_path, is_soak):
    kills = 500 if is_soak else 100

    lost, torn, hits = kill_while_saving(tmp_path, kills)

    assert (lost, torn) == (0, 0)
    assert hits > kills // 10, "hardly a kill fell into a save: the test proves nothing"


class InPlace(CheckpointStore):
    """A store without the temporary folder and the rename."""

    def save(self, checkpoint):
        number = max((number for number, _ in self._generations()), default=0) + 1
        folder = self.folder / f"generation-{number:08d}"
        folder.mkdir()
        for name, data in module._render(checkpoint).items():
            (folder / name).write_bytes(data)
        self._prune()


def test_without_the_rename_torn_checkpoints_are_seen(tmp_path):
    _, torn, _ = kill_while_saving(tmp_path, 30, partial(save_until_killed, store_class=InPlace))

    assert torn > 3


class WithoutGenerations(InPlace):
    """A store that writes over its only generation, as `open("wb")` does."""

    def save(self, checkpoint):
        shutil.rmtree(self.folder / "generation-00000001", ignore_errors=True)
        super().save(checkpoint)


def test_without_a_generation_before_lost_checkpoints_are_seen(tmp_path):
    def once(folder, version, write):
        save_until_killed(folder, version, write, WithoutGenerations)

    with pytest.raises(module.CheckpointError, match="No checkpoint here is whole"):
        kill_while_saving(tmp_path, 30, once)


def test_a_flipped_bit_in_any_file_is_found_before_use(tmp_path, is_soak):
    store = CheckpointStore(tmp_path / "store")
    for version in (1, 2):
        store.save(make(version, 4096))
    newest = max(store.folder.glob("generation-*"))
    pristine = tmp_path / "pristine"
    shutil.copytree(newest, pristine)
    chance = random.Random(5)

    for _ in range(1000 if is_soak else 200):
        file = chance.choice(sorted(newest.iterdir()))
        damage(file, chance.randrange(8 * file.stat().st_size))

        assert store.load_latest("run") == make(1, 4096), file

        shutil.rmtree(next(store.folder.glob("refused-*")))
        shutil.copytree(pristine, newest)


def test_without_the_checksum_a_flipped_bit_gets_in(tmp_path, monkeypatch):
    monkeypatch.setattr(module, "_checksum", lambda data: "0" * 64)
    store = CheckpointStore(tmp_path)
    store.save(make(1, 4096))
    damage(tmp_path / "generation-00000001" / "adapter-0.safetensors", 99)

    assert store.load_latest("run") != make(1, 4096)


def test_a_full_disk_is_told_with_path_and_bytes_and_leaves_the_generation_before(small_disk):
    store = CheckpointStore(small_disk / "checkpoints")
    store.save(make(1))
    store.save(make(2))
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (6 << 20))

    with pytest.raises(OutOfDisk, match=r"No space left.*needs 4\.0 MiB and 2\.\d MiB is free") as caught:
        store.save(make(3))

    assert str(small_disk) in caught.value.message
    assert store.load_latest("run") == make(2)
    assert not list(store.folder.glob(".saving-*")), "half a checkpoint takes room"
    filler.unlink()
    store.save(make(3))
    assert store.load_latest("run") == make(3)


def test_a_file_size_limit_is_named_with_what_is_needed(tmp_path):
    program = (
        "import resource, signal, sys\nfrom pathlib import Path\n"
        "from node.training.checkpoint import Checkpoint, CheckpointStore\nfrom node.core.errors import OutOfDisk\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "store = CheckpointStore(Path(sys.argv[1]))\nstore.save(Checkpoint('a', 1, {0: b'1'}))\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (1 << 20, 1 << 20))\n"
        "try: store.save(Checkpoint('a', 2, {0: b'2' * (3 << 20)}))\n"
        "except OutOfDisk as error: print(error.message)\n"
        "assert store.load_latest('a').version == 1\n"
    )

    output = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True, cwd=ROOT
    ).stdout

    assert "needs 3.0 MiB" in output


def snapshot(version):
    return Snapshot(version, {0: make(version).adapters[0]}, Cursor(), {}, (), "base")


async def test_a_full_disk_blocks_the_saver_which_tells_once_and_goes_on_when_there_is_room(small_disk):
    told, events = [], EventBus()
    events.subscribe(told.append)
    store = CheckpointStore(small_disk / "checkpoints")
    saver = Saver(store, fingerprint="run", data_digest="", every_steps=1, events=events)
    await saver.save(snapshot(1))
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (10 << 20))

    for _ in range(3):
        await saver.save(snapshot(2))
        assert saver.is_blocked
        assert not saver.has_room()

    (fault,) = [event for event in told if isinstance(event, Fault)]
    assert str(small_disk) in fault.what
    assert "Training pauses" in fault.what
    assert store.load_latest("run").version == 1
    filler.unlink()
    assert saver.has_room()
    await saver.save(snapshot(2))
    assert not saver.is_blocked
    assert [event.version for event in told if isinstance(event, CheckpointSaved)] == [1, 2]
