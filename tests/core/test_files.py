"""Small files: whole or not at all, found out when a bit has flipped, and told with what they need."""

import os
import stat

import pytest
from faults.durable import durable_steps
from faults.fault import Fault
from faults.injector import injected

from node.core import files
from node.core.files import room_text, sealed, size_text, sync, unsealed, write_whole


@pytest.mark.parametrize("before", [None, b"", b"longer than what comes after"])
def test_a_file_is_replaced_by_its_new_content_and_nothing_stays_beside_it(tmp_path, before):
    path = tmp_path / "note"
    if before is not None:
        path.write_bytes(before)

    write_whole(path, b"new")

    assert path.read_bytes() == b"new"
    assert [entry.name for entry in tmp_path.iterdir()] == ["note"]


def test_what_a_crash_left_is_written_over(tmp_path):
    (tmp_path / "note.new").write_bytes(b"half of something long")

    write_whole(tmp_path / "note", b"new")

    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("note", b"new")]


@pytest.mark.parametrize("mode", [0o600, 0o644])
def test_a_file_has_the_mode_that_was_asked_for_from_its_first_byte(tmp_path, mode):
    write_whole(tmp_path / "key", b"secret", mode=mode)

    assert stat.S_IMODE((tmp_path / "key").stat().st_mode) == mode & ~os_umask()


def os_umask():
    mask = os.umask(0)
    os.umask(mask)
    return mask


def test_a_file_without_a_mode_is_as_any_other(tmp_path):
    write_whole(tmp_path / "ours", b"")
    (tmp_path / "theirs").write_bytes(b"")

    assert (tmp_path / "ours").stat().st_mode == (tmp_path / "theirs").stat().st_mode


@pytest.mark.parametrize("step", ["write", "fsync", "replace"])
def test_a_write_that_fails_leaves_the_old_content_and_no_half(tmp_path, step):
    path = tmp_path / "note"
    path.write_bytes(b"old")

    with (
        injected(Fault(f"core.files:*write_whole*:{step}", "fail", code="EIO"), durable_steps()),
        pytest.raises(OSError, match="Input/output"),
    ):
        write_whole(path, b"new")

    assert [(entry.name, entry.read_bytes()) for entry in tmp_path.iterdir()] == [("note", b"old")]


def test_a_file_that_cannot_even_be_opened_is_an_error_of_the_disk(tmp_path):
    with pytest.raises(FileNotFoundError):
        write_whole(tmp_path / "nowhere" / "note", b"new")


def test_the_bytes_are_synced_before_the_rename_and_the_folder_after_it(tmp_path, monkeypatch):
    steps = []
    for name in ("fsync", "replace"):
        real = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *args, name=name, real=real: (steps.append((name, *args)), real(*args))[1])
    folders = []
    real_sync = files.sync
    monkeypatch.setattr(files, "sync", lambda path: (steps.append(("folder", path)), folders.append(real_sync(path))))

    write_whole(tmp_path / "note", b"new")

    assert [step[0] for step in steps] == ["fsync", "replace", "folder", "fsync"]
    assert steps[2] == ("folder", tmp_path)


def test_syncing_leaves_no_file_open_even_when_the_disk_fails(tmp_path):
    before = len(os.listdir("/proc/self/fd"))

    sync(tmp_path)
    with (
        injected(Fault("core.files:*sync*:fsync", "fail", code="EIO"), durable_steps()),
        pytest.raises(OSError, match="Input/output"),
    ):
        sync(tmp_path)

    assert len(os.listdir("/proc/self/fd")) == before


@pytest.mark.parametrize("data", [b"", b"x", b"one\ntwo\n", b"\n#blake2b 00\n"])
def test_what_was_sealed_is_unsealed_again_also_when_it_was_sealed_twice(data):
    assert unsealed(sealed(data)) == data
    assert unsealed(sealed(sealed(data))) == sealed(data)
    assert sealed(data).startswith(data)


def test_a_seal_is_a_last_line_that_names_the_hash():
    head, line, rest = sealed(b"text").split(b"\n")

    assert (head, rest) == (b"text", b"")
    assert line.startswith(b"#blake2b ")
    assert len(line) == len(b"#blake2b ") + 64


def test_a_flipped_bit_in_what_was_sealed_is_found_and_what_never_was_is_taken_as_it_is():
    whole = sealed(b"text")
    for bit in range(8 * len(b"text")):
        damaged = bytearray(whole)
        damaged[bit // 8] ^= 1 << bit % 8
        with pytest.raises(ValueError, match="its checksum is wrong: it is damaged"):
            unsealed(bytes(damaged))

    assert unsealed(b"of an earlier version") == b"of an earlier version"
    assert unsealed(whole + b"more") == whole + b"more", "the seal is the last line"


@pytest.mark.parametrize(
    ("num_bytes", "text"),
    [(0, "0 bytes"), ((1 << 20) - 1, "1048575 bytes"), (1 << 20, "1.0 MiB"), (5 << 19, "2.5 MiB")],
)
def test_sizes_are_told_in_bytes_or_in_mebibytes(num_bytes, text):
    assert size_text(num_bytes) == text


def test_room_is_that_of_the_first_folder_above_that_exists(tmp_path, monkeypatch):
    asked = []

    class Usage:
        free = 3 << 20

    monkeypatch.setattr(files.shutil, "disk_usage", lambda path: asked.append(path) or Usage)

    assert room_text(tmp_path / "not" / "there", 7) == "It needs 7 bytes and 3.0 MiB is free."
    monkeypatch.chdir(tmp_path)
    assert "is free" in room_text(type(tmp_path)("relative"), 7)
    assert asked == [tmp_path, tmp_path]


def test_room_that_cannot_be_read_is_said_to_be_so(tmp_path, monkeypatch):
    def fails(path):
        raise OSError

    monkeypatch.setattr(files.shutil, "disk_usage", fails)

    assert room_text(tmp_path, 7) == "It needs 7 bytes and its free space cannot be read."
