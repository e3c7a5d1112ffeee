"""Names as weapons: of peers, runs, tensors and files, on the screen, in the log and as paths."""

import hashlib
import json
from random import Random

import pytest
from model.tiny_gguf import write_gguf

from hostile import seeds
from hostile.files import refused_well
from hostile.harm import ESCAPES
from hostile.mutate import damage
from node.cli.main import _say_error
from node.config.recipe import Recipe
from node.core.errors import NodeError, ProtocolViolation, RunMismatch
from node.core.events import Fault
from node.core.types import PeerId
from node.model.gguf_folder import convert_gguf
from node.network.records import decode_peer
from node.observe.log import file_sink
from node.trust.manifest import open_manifest
from node.trust.seal import ModelIdentity

WEAPONS = [
    "../../x",
    "/etc/passwd",
    "..",
    "a/../../b",
    ESCAPES,
    "\u202egnp.exe",
    "<script>alert(1)</script>",
    "x" * (10 << 20),
]


@pytest.mark.parametrize("name", WEAPONS, ids=lambda name: repr(name[:20]))
@pytest.mark.parametrize("what", ["tensors", "files"])
def test_no_name_of_a_manifest_becomes_another_path(name, what, tmp_path):
    tree = {"tensors": {}, "files": {}}
    tensor = {"dtype": "BF16", "shape": [1], "num_bytes": 2, "digest": "ab" * 32}
    tree[what][name] = tensor if what == "tensors" else {"num_bytes": 2, "sha256": "ab" * 32}
    data = json.dumps(tree).encode()
    model = ModelIdentity(digest="ab" * 32, config={}, manifest=hashlib.sha256(data).hexdigest())

    with pytest.raises(ProtocolViolation) as refused:
        open_manifest(data, model, sender=PeerId("x"))
    refused_well(refused.value)


@pytest.mark.parametrize("name", WEAPONS, ids=lambda name: repr(name[:20]))
def test_a_peer_of_any_name_is_shown_harmless_or_not_at_all(name, tmp_path):
    value, _ = seeds.World(tmp_path).record(name=name)

    peer = decode_peer(value, fingerprint=seeds.RUN, expires_at_s=0.0)

    assert peer is None or (peer.name.isprintable() and len(peer.name) <= 64)


@pytest.mark.parametrize("name", [ESCAPES, "../../x", "x" * (1 << 20)], ids=lambda name: repr(name[:20]))
def test_a_run_of_any_name_is_refused(name):
    shared = {"base_model": "a/b", "max_steps": 5, "potluck": {"name": name}}

    with pytest.raises(RunMismatch) as refused:
        Recipe.from_shared_json(json.dumps(shared))
    refused_well(refused.value)


def test_an_error_that_quotes_a_stranger_cannot_control_the_terminal(capsys):
    _say_error(f"The peer {ESCAPES} left.", f"Ask {ESCAPES}.")

    assert not set(capsys.readouterr().err) & set("\x1b\x07\x9b\u202e\r")


def test_the_log_file_holds_one_line_an_event_whatever_is_in_it(tmp_path):
    sink = file_sink(tmp_path / "node.jsonl")

    for _ in range(3):
        sink(Fault(ESCAPES + "\u2028" + "x" * (1 << 20)))

    text = (tmp_path / "node.jsonl").read_text(encoding="utf-8")
    assert len(text.splitlines()) == 3
    assert not set(text) & set("\x1b\x07\x9b\u202e\r\u2028")


def test_a_whole_gguf_model_that_is_damaged_is_refused_or_read(tmp_path, is_soak):
    whole = write_gguf(tmp_path / "whole.gguf", "llama").read_bytes()
    rng = Random("gguf")

    for number in range(300 if is_soak else 8):
        path = tmp_path / "damaged.gguf"
        path.write_bytes(damage(whole[:6000], rng) + whole[6000:])
        try:
            convert_gguf(path, tmp_path / f"out-{number}")
        except NodeError as error:
            refused_well(error)
