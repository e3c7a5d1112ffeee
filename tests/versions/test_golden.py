"""Golden files: the present code reads what earlier versions wrote, and still writes it as the latest one did."""

import dataclasses
import json

import pytest

from node.core import versions
from node.network import records
from node.training import checkpoint as checkpoint_module
from node.training import state
from versions import golden, maths

FOLDERS = sorted(path for path in golden.ROOT.iterdir() if path.is_dir())
LATEST = FOLDERS[-1]
HOW = (
    "This is written differently than in {version}: {what}. If it was not meant to be, take the change back. If it was: "
    "raise the version that docs/versions.md names for it, and add a folder with "
    "`cd tests && python -m versions.make_golden VERSION`."
)


@pytest.mark.parametrize("folder", FOLDERS, ids=lambda folder: folder.name)
def test_what_earlier_versions_wrote_is_read_to_the_same_values(folder):
    wrong = golden.misread(folder)

    assert not wrong, f"of {folder.name} this is read differently now: {wrong}"


def test_the_present_code_writes_what_the_latest_version_wrote(tmp_path):
    wrong = golden.written_differently(LATEST, tmp_path)

    assert not wrong, HOW.format(version=LATEST.name, what=wrong)


def _another_protocol(monkeypatch):
    monkeypatch.setattr(versions, "PROTOCOL", versions.PROTOCOL + 1)
    return {"protocol", "record", "streams"}


def _another_adapter_format(monkeypatch):
    monkeypatch.setattr(state, "_FORMAT", "potluck-adapter-9")
    return {"adapter-0.safetensors"}


def _other_blanks_in_a_manifest(monkeypatch):
    monkeypatch.setattr(checkpoint_module, "_canonical", lambda value: json.dumps(value, sort_keys=True).encode())
    return {"generation-00000001/manifest.json"}


def _a_record_with_less_in_it(monkeypatch):
    original = records.encode_peer
    forgotten = lambda peer, **options: original(dataclasses.replace(peer, capacity_stages=0), **options)  # noqa: E731
    monkeypatch.setattr(golden, "encode_peer", forgotten)
    return {"record"}


def _a_field_with_another_number(monkeypatch):
    renumbered = golden.schema()
    renumbered["messages"]["node.v1.RoundCall"]["settings"] = [9, "TYPE_STRING"]
    monkeypatch.setattr(golden, "schema", lambda: renumbered)
    return {"node.v1.RoundCall.settings"}


@pytest.mark.parametrize(
    "change",
    [
        _another_protocol,
        _another_adapter_format,
        _other_blanks_in_a_manifest,
        _a_record_with_less_in_it,
        _a_field_with_another_number,
    ],
)
def test_an_accidental_change_of_a_format_is_seen(change, monkeypatch, tmp_path):
    expected = change(monkeypatch)

    wrong = " ".join(golden.written_differently(LATEST, tmp_path))

    assert any(name in wrong for name in expected), wrong


def test_another_rule_is_seen(monkeypatch):
    monkeypatch.setattr(golden, "maths", lambda: {**maths.maths(), "optimizer": "other bits"})

    assert golden.misread(LATEST) == ["maths/optimizer"]


def test_a_word_that_is_read_otherwise_is_seen(monkeypatch):
    monkeypatch.setattr(golden, "from_wire", lambda wire: None)

    assert any("round" in name for name in golden.misread(LATEST))
