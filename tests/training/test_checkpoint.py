import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.core.errors import CheckpointError
from node.core.events import Fault
from node.training.checkpoint import Checkpoint, CheckpointStore


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
