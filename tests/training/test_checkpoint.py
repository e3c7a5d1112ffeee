import errno
import json
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.core.errors import CheckpointError, OutOfDisk
from node.core.events import Fault
from node.training.checkpoint import Checkpoint, CheckpointStore

KILLS = 80
SAVE_UNTIL_KILLED = """
# Forks a child that saves without end, kills it with -9 at a random moment, and looks at what is left.
import os, random, signal, sys, time
from pathlib import Path
from node.training.checkpoint import Checkpoint, CheckpointStore

folder, kills = Path(sys.argv[1]), int(sys.argv[2])
random.seed(11)
acknowledged, found, torn_scratch = 0, 0, 0
for kill in range(kills):
    read, write = os.pipe()
    child = os.fork()
    if child == 0:
        store = CheckpointStore(folder)
        version = max(acknowledged, found)
        while True:
            version += 1
            store.save(Checkpoint("run", version, {0: version.to_bytes(8, "little") * 60_000, 1: b"x" * version},
                                  cursor={"version": version}))
            os.write(write, version.to_bytes(8, "little"))
    os.close(write)
    first = os.read(read, 8)
    time.sleep(random.random() * 0.03)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    rest = first + os.read(read, 1 << 16)
    os.close(read)
    acknowledged = int.from_bytes(rest[-8:], "little")
    torn_scratch += any(p.name.startswith(".saving") for p in folder.iterdir())
    loaded = CheckpointStore(folder).load_latest("run")
    found = loaded.version
    assert found in (acknowledged, acknowledged + 1), (kill, found, acknowledged)
    assert loaded.adapters[0] == found.to_bytes(8, "little") * 60_000 and loaded.cursor == {"version": found}
    names = sorted(p.name for p in folder.iterdir())
    assert len(names) <= 3 and all(n.startswith("generation-") for n in names), names
print(torn_scratch)
"""


def make_checkpoint(version: int, size: int = 3000) -> Checkpoint:
    return Checkpoint(
        fingerprint="a" * 64,
        version=version,
        adapters={0: bytes([version % 256]) * size, 1: os.urandom(100)},
        cursor={"file": "mine.jsonl", "row": version * 10, "nested": [1, None, "é"]},
        counters={"rounds": version},
        random={"dropout": 1 << 100},
    )


def latest(folder: Path) -> Path:
    return max(folder.glob("generation-*"))


def files_of(generation: Path) -> list[Path]:
    return sorted(path for path in generation.iterdir() if path.is_file())


def test_what_was_saved_is_loaded(tmp_path):
    store = CheckpointStore(tmp_path / "state" / "checkpoints")
    checkpoint = make_checkpoint(3)

    size = store.save(checkpoint)

    assert store.load_latest("a" * 64) == checkpoint
    assert size == sum(path.stat().st_size for path in files_of(latest(store.folder)))
    assert CheckpointStore(store.folder).load_latest("a" * 64) == checkpoint


def test_a_new_node_has_no_checkpoint(tmp_path):
    assert CheckpointStore(tmp_path / "nothing").load_latest("a") is None
    assert CheckpointStore(tmp_path).load_latest("a") is None


def test_two_generations_stay_and_the_newest_is_used_even_at_equal_versions(tmp_path):
    store = CheckpointStore(tmp_path)

    for version in (1, 2, 3, 3):
        last = make_checkpoint(version)
        store.save(last)

    assert [p.name for p in sorted(tmp_path.iterdir())] == ["generation-00000003", "generation-00000004"]
    assert store.load_latest("a" * 64) == last


def test_killing_with_9_at_any_moment_of_a_save_loses_no_checkpoint(tmp_path):
    result = subprocess.run(
        [sys.executable, "-c", SAVE_UNTIL_KILLED, str(tmp_path), str(KILLS)],
        capture_output=True,
        text=True,
        timeout=120,
    )

    assert result.returncode == 0, result.stderr
    assert int(result.stdout) > KILLS // 10, "hardly a kill fell into a save: the test proves nothing"


def test_an_altered_bit_anywhere_is_found_and_the_generation_before_is_used(tmp_path):
    events = []
    store = CheckpointStore(tmp_path / "store", emit=events.append)
    before = make_checkpoint(1, size=40)
    store.save(before)
    store.save(make_checkpoint(2, size=40))
    newest = latest(store.folder)
    pristine = tmp_path / "pristine"
    shutil.copytree(newest, pristine)

    for path in files_of(pristine):
        data = path.read_bytes()
        for bit in range(0, 8 * len(data), 5):
            altered = bytearray(data)
            altered[bit // 8] ^= 1 << bit % 8
            (newest / path.name).write_bytes(altered)

            assert store.load_latest("a" * 64) == before, (path.name, bit)

            assert isinstance(events[-1], Fault)
            assert str(newest) in events[-1].what
            shutil.rmtree(next(store.folder.glob("refused-*")))
            shutil.copytree(pristine, newest)
    assert store.load_latest("a" * 64).version == 2


def test_every_truncation_and_every_missing_file_is_found(tmp_path):
    store = CheckpointStore(tmp_path / "store")
    before = make_checkpoint(1, size=40)
    store.save(before)
    store.save(make_checkpoint(2, size=40))
    newest = latest(store.folder)
    pristine = tmp_path / "pristine"
    shutil.copytree(newest, pristine)

    for path in files_of(pristine):
        data = path.read_bytes()
        for size in (None, *range(len(data))):
            (newest / path.name).unlink()
            if size is not None:
                (newest / path.name).write_bytes(data[:size])

            assert store.load_latest("a" * 64) == before, (path.name, size)

            shutil.rmtree(next(store.folder.glob("refused-*")))
            shutil.copytree(pristine, newest)


def test_a_refused_generation_is_set_aside_and_does_not_push_out_a_good_one(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(make_checkpoint(1))
    store.save(make_checkpoint(2))
    (latest(tmp_path) / "bookmark.json").write_text("{}")
    store.load_latest("a" * 64)

    store.save(make_checkpoint(3))
    (latest(tmp_path) / "manifest.json").unlink()

    assert store.load_latest("a" * 64).version == 1


def test_when_no_generation_is_whole_it_says_so_each_time_and_names_them(tmp_path):
    store = CheckpointStore(tmp_path)
    for version in (1, 2):
        store.save(make_checkpoint(version))
    for path in tmp_path.glob("generation-*/adapter-0.safetensors"):
        path.write_bytes(b"")

    for _ in range(2):
        with pytest.raises(CheckpointError, match=r"generation-00000002.*generation-00000001") as caught:
            CheckpointStore(tmp_path).load_latest("a" * 64)
        assert "backup" in caught.value.hint


def test_a_checkpoint_of_another_run_is_refused_and_kept(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(make_checkpoint(1))

    with pytest.raises(CheckpointError, match="another run"):
        store.load_latest("b" * 64)

    assert store.load_latest("a" * 64).version == 1


def test_leftovers_of_cut_off_saves_are_removed_and_nothing_else(tmp_path):
    (tmp_path / ".saving-0123456789abcdef").mkdir()
    (tmp_path / ".saving-0123456789abcdef" / "adapter-0.safetensors").write_bytes(b"half")
    (tmp_path / ".removing-0123456789abcdef").mkdir()
    others = [".saving-mine", "saving-0123456789abcdef", "notes.txt", "generation-7", "generation-00000001.bak"]
    for name in others:
        (tmp_path / name).write_text("mine")

    store = CheckpointStore(tmp_path)
    store.save(make_checkpoint(1))

    assert sorted(p.name for p in tmp_path.iterdir()) == sorted([*others, "generation-00000001"])
    assert store.load_latest("a" * 64).version == 1


def count_calls(monkeypatch, fail_at: int | None, code: int = errno.EIO) -> list[str]:
    """Count the durable steps (fsync and rename) of what follows; make one of them fail."""
    calls = []

    def failing(name, original):
        def call(*args, **kwargs):
            calls.append(name)
            if len(calls) == fail_at:
                raise OSError(code, os.strerror(code))
            return original(*args, **kwargs)

        return call

    monkeypatch.setattr(os, "fsync", failing("fsync", os.fsync))
    monkeypatch.setattr(Path, "rename", failing("rename", Path.rename))
    return calls


def test_a_disk_that_fails_at_any_step_leaves_the_generations_before(tmp_path, monkeypatch):
    probe = CheckpointStore(tmp_path / "probe")
    probe.save(make_checkpoint(1))
    with monkeypatch.context() as patch:
        calls = count_calls(patch, fail_at=None)
        probe.save(make_checkpoint(2))
        steps = calls.index("rename") + 2  # up to the sync of the parent folder; what follows is pruning
    assert steps >= 7

    for step in range(1, steps + 1):
        for code, error in ((errno.EIO, CheckpointError), (errno.ENOSPC, OutOfDisk), (errno.EROFS, OutOfDisk)):
            folder = tmp_path / f"{step}-{code}"
            store = CheckpointStore(folder)
            store.save(make_checkpoint(1))
            with monkeypatch.context() as patch:
                count_calls(patch, fail_at=step, code=code)
                with pytest.raises(error, match="Cannot save") as caught:
                    store.save(make_checkpoint(2))

            assert str(folder) in caught.value.message
            assert "MiB" in caught.value.message
            assert not list(folder.glob(".saving-*"))
            assert store.load_latest("a" * 64).version in ({1} if step < steps else {1, 2})
            store.save(make_checkpoint(3))
            assert store.load_latest("a" * 64).version == 3


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
        [sys.executable, "-c", program, str(tmp_path)], capture_output=True, text=True, check=True
    ).stdout

    assert "needs 3.0 MiB" in output
    assert resource.getrlimit(resource.RLIMIT_FSIZE)[0] == resource.RLIM_INFINITY


@pytest.fixture
def small_disk(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", str(folder)], capture_output=True)
    if mounted.returncode:
        pytest.skip("mounting a small tmpfs needs root and CAP_SYS_ADMIN")
    yield folder
    subprocess.run(["umount", "-l", str(folder)], check=True)


def test_a_full_disk_leaves_the_generation_before_and_room_to_go_on(small_disk):
    store = CheckpointStore(small_disk / "checkpoints")
    store.save(make_checkpoint(1, size=1 << 20))
    filler = small_disk / "filler"
    filler.write_bytes(b"x" * (2 << 20))

    with pytest.raises(OutOfDisk, match=r"No space left.*needs 1\.5 MiB.*is free"):
        store.save(make_checkpoint(2, size=(3 << 20) // 2))

    assert store.load_latest("a" * 64).version == 1
    filler.unlink()
    store.save(make_checkpoint(3, size=1 << 20))
    assert store.load_latest("a" * 64).version == 3


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.one_of(
        st.binary(max_size=300),
        st.recursive(st.none() | st.integers() | st.text(), lambda x: st.lists(x) | st.dictionaries(st.text(), x)).map(
            lambda value: json.dumps(value).encode()
        ),
    )
)
def test_a_manifest_of_anything_is_refused_with_a_typed_error(tmp_path, garbage):
    folder = tmp_path / "store"
    shutil.rmtree(folder, ignore_errors=True)
    store = CheckpointStore(folder)
    store.save(make_checkpoint(1))
    (latest(folder) / "manifest.json").write_bytes(garbage)

    with pytest.raises(CheckpointError, match="manifest"):
        store.load_latest("a" * 64)


def test_the_store_needs_no_torch():
    program = "import sys, node.training.checkpoint; assert 'torch' not in sys.modules"

    subprocess.run([sys.executable, "-c", program], check=True)
