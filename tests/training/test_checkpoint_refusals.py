"""Checkpoints that are refused although somebody who knows how has made them, and what is said of each."""

import hashlib
import json

import pytest
from checkpoints import latest, make_checkpoint

from node.core.errors import CheckpointError
from node.training import checkpoint as module
from node.training.checkpoint import Checkpoint, CheckpointStore


def test_the_files_of_a_generation_are_these_to_the_byte(tmp_path):
    CheckpointStore(tmp_path).save(Checkpoint("run", 3, {1: b"one", 0: b"zero"}, counters={"b": 2, "a": 1}))

    written = {path.name: path.read_bytes() for path in latest(tmp_path).iterdir()}

    bookmark = b"""{
 "counters": {
  "a": 1,
  "b": 2
 },
 "cursor": {},
 "random": {}
}
"""
    sums = {name: hashlib.blake2b(data, digest_size=32).hexdigest() for name, data in written.items()}
    body = f"""
 "files": {{
  "adapter-0.safetensors": {{
   "blake2b": "{sums["adapter-0.safetensors"]}",
   "size": 4
  }},
  "adapter-1.safetensors": {{
   "blake2b": "{sums["adapter-1.safetensors"]}",
   "size": 3
  }},
  "bookmark.json": {{
   "blake2b": "{sums["bookmark.json"]}",
   "size": {len(bookmark)}
  }}
 }},
 "fingerprint": "run",
 "format": "potluck-checkpoint-1",
 "version": 3
}}
"""
    checksum = hashlib.blake2b(b"{" + body.encode(), digest_size=32).hexdigest()
    manifest = f'{{\n "checksum": "{checksum}",{body}'.encode()
    assert written == {
        "adapter-0.safetensors": b"zero",
        "adapter-1.safetensors": b"one",
        "bookmark.json": bookmark,
        "manifest.json": manifest,
    }


def rewrite_manifest(generation, **changes):
    """Change a manifest and seal it again, as somebody would who knows how."""
    path = generation / "manifest.json"
    body = json.loads(path.read_text()) | changes
    body.pop("checksum")
    body["checksum"] = module._checksum(module._canonical(body))
    path.write_bytes(module._canonical(body))


@pytest.mark.parametrize(
    "changes",
    [
        {"format": "of-another-program"},
        {"version": -1},
        {"version": "3"},
        {"fingerprint": ""},
        {"fingerprint": "a" * 129},
        {"more": 1},
        {"files": {"../../escape": {"size": 1, "blake2b": "0" * 64}}},
        {"files": {"adapter-0.safetensors": {"size": -1, "blake2b": "0" * 64}}},
        {"files": {"adapter-0.safetensors": {"size": 1, "blake2b": "0" * 63}}},
        {"files": {}},
    ],
    ids=str,
)
def test_a_manifest_with_a_right_checksum_and_a_wrong_value_is_refused(tmp_path, changes):
    store = CheckpointStore(tmp_path)
    store.save(make_checkpoint(1))
    rewrite_manifest(latest(tmp_path))
    assert store.load_latest("a" * 64).version == 1

    rewrite_manifest(latest(tmp_path), **changes)

    with pytest.raises(CheckpointError, match="No checkpoint here is whole"):
        store.load_latest("a" * 64)


@pytest.mark.parametrize(
    ("name", "content", "why"),
    [
        ("manifest.json", b"[1]", "is torn or altered: "),
        ("manifest.json", b"{", "is torn or altered: Expecting property name"),
        ("manifest.json", None, "cannot be read: No such file"),
        ("adapter-0.safetensors", b"x", "is torn or altered: its checksum is wrong."),
        ("bookmark.json", None, "cannot be read: No such file"),
    ],
)
def test_a_refusal_names_the_file_and_says_what_is_wrong_in_one_line(tmp_path, name, content, why):
    store = CheckpointStore(tmp_path)
    store.save(make_checkpoint(1))
    path = latest(tmp_path) / name
    path.unlink()
    if content is not None:
        path.write_bytes(content)

    with pytest.raises(CheckpointError) as caught:
        store.load_latest("a" * 64)

    assert f"Checkpoint file {path} {why}" in caught.value.message
    assert "\n" not in caught.value.message
    assert len(caught.value.message) < 300 + len(str(path))
    assert str(tmp_path) in caught.value.hint


def test_a_manifest_that_is_too_long_is_not_read_to_its_end(tmp_path, monkeypatch):
    store = CheckpointStore(tmp_path)
    store.save(make_checkpoint(1))
    (latest(tmp_path) / "manifest.json").write_bytes(b" " * (3 << 20))
    limits = []
    real = module._read_file
    monkeypatch.setattr(module, "_read_file", lambda path, limit: limits.append(len(real(path, limit=limit))) or b"")

    with pytest.raises(CheckpointError):
        store.load_latest("a" * 64)

    assert limits == [(1 << 20) + 1]


def test_a_bookmark_that_is_none_is_refused_though_its_checksum_is_right(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(make_checkpoint(1))
    bookmark = latest(tmp_path) / "bookmark.json"
    files = json.loads((latest(tmp_path) / "manifest.json").read_text())["files"]
    bookmark.write_bytes(b'{"cursor": 1}')
    entry = {"size": 13, "blake2b": module._checksum(b'{"cursor": 1}')}

    rewrite_manifest(latest(tmp_path), files=files | {"bookmark.json": entry})
    with pytest.raises(CheckpointError, match=r"bookmark\.json is not a bookmark: \d+ validation errors"):
        store.load_latest("a" * 64)
    del files["bookmark.json"]
    rewrite_manifest(latest(tmp_path), files=files)
    with pytest.raises(CheckpointError, match=r"bookmark\.json is not a bookmark"):
        store.load_latest("a" * 64)


def test_of_another_run_both_are_named(tmp_path):
    store = CheckpointStore(tmp_path)
    store.save(make_checkpoint(1))

    with pytest.raises(CheckpointError) as caught:
        store.load_latest("b" * 64)

    assert f"fingerprint is {'a' * 16}, this one's is {'b' * 16}." in caught.value.message
    assert str(latest(tmp_path)) in caught.value.message
    assert "another --home" in caught.value.hint


def test_a_number_that_json_has_no_word_for_is_not_saved(tmp_path):
    with pytest.raises(ValueError, match="Out of range float"):
        CheckpointStore(tmp_path).save(Checkpoint("run", 1, {0: b"x"}, cursor={"loss": float("nan")}))
