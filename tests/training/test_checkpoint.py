import errno
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from checkpoints import files_of, latest, make_checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from node.core.errors import CheckpointError, OutOfDisk
from node.core.events import Fault
from node.training import checkpoint as module
from node.training.checkpoint import Checkpoint, CheckpointStore


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


def test_a_refused_generation_that_cannot_be_moved_stays_and_is_told_each_time(tmp_path, monkeypatch):
    events = []
    store = CheckpointStore(tmp_path, emit=events.append)
    store.save(make_checkpoint(1))
    store.save(make_checkpoint(2))
    (latest(tmp_path) / "bookmark.json").write_text("{}")

    def fails(path, target):
        raise OSError(errno.EROFS, "Read-only file system")

    monkeypatch.setattr(Path, "rename", fails)

    assert [store.load_latest("a" * 64).version for _ in range(2)] == [1, 1]
    assert len(events) == 2


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


def test_a_reader_beside_a_running_node_touches_nothing(tmp_path):
    events = []
    owner = CheckpointStore(tmp_path)
    owner.save(make_checkpoint(1))
    owner.save(make_checkpoint(2))
    (latest(tmp_path) / "bookmark.json").write_text("{}")
    (tmp_path / ".saving-0123456789abcdef").mkdir()  # the owner is in the middle of a save
    before = sorted(path.name for path in tmp_path.iterdir())

    reader = CheckpointStore(tmp_path, emit=events.append, read_only=True)
    assert reader.load_latest("a" * 64).version == 1

    assert sorted(path.name for path in tmp_path.iterdir()) == before
    assert [event.what.endswith("Using generation-00000001 instead.") for event in events] == [True]
    assert "The work since then is done again" in events[0].hint


def test_the_stages_of_the_newest_generation_are_told_by_its_manifest_alone(tmp_path):
    store = CheckpointStore(tmp_path, keep=3)
    assert store.latest_stages("run") == ()
    for stages in ((0,), (2, 10, 3)):
        store.save(Checkpoint("run", 1, dict.fromkeys(stages, b"x")))
    for path in tmp_path.glob("generation-*/adapter-*"):
        path.unlink()

    assert store.latest_stages("run") == (2, 3, 10)
    (latest(tmp_path) / "manifest.json").write_text("{}")
    assert store.latest_stages("run") == (0,)
    assert store.latest_stages("other") == ()


@pytest.mark.parametrize("keep", [1, 3])
def test_as_many_generations_stay_as_were_asked_for(tmp_path, keep):
    store = CheckpointStore(tmp_path, keep=keep)

    for version in range(5):
        store.save(make_checkpoint(version))

    assert sorted(path.name for path in tmp_path.iterdir()) == [f"generation-{n:08d}" for n in range(6 - keep, 6)]
    with pytest.raises(AssertionError):
        CheckpointStore(tmp_path, keep=0)


def test_an_old_generation_that_cannot_be_removed_stays_until_it_can(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path, keep=1)
    store.save(make_checkpoint(1))
    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, **_: None)
        store.save(make_checkpoint(2))
    (left,) = tmp_path.glob(".removing-*")
    assert files_of(left)

    assert CheckpointStore(tmp_path).load_latest("a" * 64).version == 2
    assert [path.name for path in tmp_path.iterdir()] == ["generation-00000002"]

    real = Path.rename

    def rename(path, target):
        if target.name.startswith(".removing"):
            raise OSError(errno.EIO, "Input/output error")
        return real(path, target)

    monkeypatch.setattr(Path, "rename", rename)
    store.save(make_checkpoint(3))
    assert len(list(tmp_path.iterdir())) == 2, "too many are no harm"
    assert store.load_latest("a" * 64).version == 3


def test_half_a_save_that_was_left_is_removed_by_the_next_start(tmp_path, monkeypatch):
    def fails(descriptor):
        raise OSError(errno.EIO, "Input/output error")

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", lambda path, **_: None)
        patch.setattr(os, "fsync", fails)
        with pytest.raises(CheckpointError):
            CheckpointStore(tmp_path).save(make_checkpoint(1))
    assert len(list(tmp_path.glob(".saving-*"))) == 1

    CheckpointStore(tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_removes_nothing_either_is_told_of_for_what_it_refused_first(tmp_path, monkeypatch):
    def fails(*_, **__):
        raise OSError(errno.EROFS, "Read-only file system")

    store = CheckpointStore(tmp_path)
    for name in ("fsync", "rmdir", "unlink"):
        monkeypatch.setattr(os, name, fails)

    with pytest.raises(OutOfDisk, match="Cannot save a checkpoint"):
        store.save(make_checkpoint(1))
    assert CheckpointStore(tmp_path).load_latest("a" * 64) is None, "what is left of it keeps no store from opening"


def test_numbers_of_generations_go_on_where_the_last_one_was(tmp_path):
    (tmp_path / "generation-00000099").mkdir()
    (tmp_path / "generation-123456789").mkdir()
    (tmp_path / "generation-1234567890123").mkdir()  # too long to be one of ours

    CheckpointStore(tmp_path, keep=9).save(make_checkpoint(1))

    assert (tmp_path / "generation-123456790" / "manifest.json").exists()


def test_every_file_is_durable_before_the_generation_has_its_name_and_its_name_before_save_returns(
    tmp_path, monkeypatch
):
    folder, steps = tmp_path / "a" / "b", []
    real_fsync, real_rename = os.fsync, Path.rename

    def fsync(descriptor):
        steps.append(("sync", Path(os.readlink(f"/proc/self/fd/{descriptor}"))))
        real_fsync(descriptor)

    def rename(path, target):
        steps.append(("rename", Path(target)))
        return real_rename(path, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(Path, "rename", rename)

    CheckpointStore(folder).save(make_checkpoint(1))

    made, (*written, scratch), end = steps[:2], steps[2:-2], steps[-2:]
    assert sorted(made) == [("sync", tmp_path), ("sync", tmp_path / "a")]
    assert scratch[1].name.startswith(".saving-")
    assert {path.parent for _, path in written} == {scratch[1]}
    assert sorted(path.name for _, path in written) == sorted(path.name for path in files_of(latest(folder)))
    assert end == [("rename", folder / "generation-00000001"), ("sync", folder)]


@pytest.mark.parametrize(
    ("code", "kind", "hint"),
    [
        ("ENOSPC", OutOfDisk, "Make room there"),
        ("EROFS", OutOfDisk, "Make room there"),
        ("EDQUOT", OutOfDisk, "Make room there"),
        ("EFBIG", OutOfDisk, "Make room there"),
        ("EIO", CheckpointError, "Check that this folder can be written"),
        ("EACCES", CheckpointError, "Check that this folder can be written"),
    ],
)
def test_a_save_that_fails_is_told_with_what_to_do_and_leaves_no_half(tmp_path, monkeypatch, code, kind, hint):
    store = CheckpointStore(tmp_path)
    store.save(make_checkpoint(1))
    number = getattr(errno, code)

    def fails(descriptor):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "fsync", fails)
    with pytest.raises((CheckpointError, OutOfDisk)) as caught:
        store.save(make_checkpoint(2))

    assert type(caught.value) is kind
    assert caught.value.message.startswith(f"Cannot save a checkpoint to {tmp_path}: {os.strerror(number)}. It needs ")
    assert caught.value.hint.startswith(hint)
    assert caught.value.hint.endswith("The checkpoints before are untouched.")
    assert [path.name for path in tmp_path.iterdir()] == ["generation-00000001"]


def test_what_is_needed_is_the_size_of_all_files(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(module, "room_text", lambda folder, size: asked.append((folder, size)) or "")
    size = CheckpointStore(tmp_path).save(make_checkpoint(1))
    monkeypatch.setattr(module, "sync", lambda path: (_ for _ in ()).throw(OSError(errno.EIO, "no")))

    with pytest.raises(CheckpointError):
        CheckpointStore(tmp_path).save(make_checkpoint(1))

    assert asked == [(tmp_path, size)]


def test_free_room_is_that_of_the_stores_disk_and_none_where_there_is_no_store(tmp_path):
    assert CheckpointStore(tmp_path).free_bytes() == pytest.approx(shutil.disk_usage(tmp_path).free, rel=0.1)
    assert CheckpointStore(tmp_path / "nothing").free_bytes() == 0
