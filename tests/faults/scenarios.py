"""What is done to the disk by a node, store by store: how to do it, and what must hold whenever it is cut off.

A scenario's `act` goes on from whatever an earlier one, cut off anywhere, has left; `check` raises if something that
was acknowledged is lost, is half there, or piles up.
"""

from __future__ import annotations

import asyncio
import functools
import hashlib
import json
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from model.tiny_gguf import write_gguf
from safetensors.torch import load_file

from faults.fault import Fault
from node.core.errors import NodeError
from node.export.peft import AdapterCard, write_adapter
from node.host.home import Home, LocalRun
from node.model.facts import is_hex, remembered
from node.model.gguf_folder import is_intact
from node.model.source import local_base_model
from node.model.spec import LoraSpec
from node.model.store import FetchedFolder, ModelStore
from node.training.checkpoint import Checkpoint, CheckpointStore
from node.trust.identity import Identity
from node.trust.manifest import FileFacts, Manifest, TensorFacts, tensor_hash
from node.trust.seal import ModelIdentity, RunSeal, SealedRun, seal_run
from node.weights import _alone_with

RUN = "cd" * 32


@dataclass(frozen=True)
class Scenario:
    """One store."""

    name: str
    act: Callable[[Path], object]
    check: Callable[[Path], object]
    prepare: Callable[[Path], object] = lambda _: None
    """What is there before; not struck by faults."""
    always: tuple[Fault, ...] = ()
    """Faults that strike whatever else does: what is done to clean up has durable steps too."""
    tells: bool = True
    """Whether a refusal of the disk is an error; else what is refused is put off."""
    is_slow: bool = False
    """More than a tenth of a second each time: the short form of a test crashes it less often."""


# --- checkpoints ---------------------------------------------------------------------------------------------------


def make_checkpoint(version: int, size: int = 3000) -> Checkpoint:
    """Return a checkpoint all of whose bytes tell its version."""
    return Checkpoint("run", version, {0: bytes([version % 256]) * size, 1: b"x"}, cursor={"version": version})


def _acknowledged(folder: Path) -> int:
    log = folder / "acknowledged"
    return int(log.read_text()) if log.exists() else 0


def save_three(folder: Path) -> None:
    """Save the next three versions; each is noted once it is acknowledged."""
    store = CheckpointStore(folder / "checkpoints")
    for version in range(_acknowledged(folder) + 1, _acknowledged(folder) + 4):
        store.save(make_checkpoint(version))
        (folder / "acknowledged").write_text(str(version))


def fail_to_save(folder: Path) -> None:
    """Save on a disk that refuses the last step."""
    try:
        save_three(folder)
    except NodeError:
        return
    raise AssertionError("the disk refused, and nobody said so")


def check_saved(folder: Path) -> None:
    """The latest acknowledged version or the one after it is there, whole; nothing piles up."""
    refused: list[object] = []
    store = CheckpointStore(folder / "checkpoints", emit=refused.append)
    loaded = store.load_latest("run")
    acknowledged = _acknowledged(folder)
    found = loaded.version if loaded is not None else 0
    assert found in (acknowledged, acknowledged + 1), f"version {found} is here and {acknowledged} was acknowledged"
    assert not refused, f"a torn generation: {refused}"
    assert loaded is None or loaded == make_checkpoint(found)
    if store.folder.exists():
        entries = [path.name for path in store.folder.iterdir()]
        assert len(entries) <= 3, entries
        assert all(name.startswith("generation-") for name in entries), entries


def prepare_damage(folder: Path) -> None:
    """Two generations of which the newer is damaged, and half of a third."""
    save_three(folder)
    (folder / "checkpoints" / ".saving-0123456789abcdef").mkdir()
    (folder / "checkpoints" / ".saving-0123456789abcdef" / "half").write_bytes(b"x")
    (max((folder / "checkpoints").glob("generation-*")) / "bookmark.json").write_bytes(b"{}")


def open_damaged(folder: Path) -> None:
    """Open the store, which cleans up, and load what is whole."""
    loaded = CheckpointStore(folder / "checkpoints").load_latest("run")
    assert loaded is not None
    assert loaded.version == 2


# --- the home ------------------------------------------------------------------------------------------------------


@functools.cache
def _sealed() -> SealedRun:
    """Return a signed run; once, since to make a key takes a tenth of a second."""
    seal = RunSeal(fingerprint=RUN, recipe="{}", model=ModelIdentity(digest="ab" * 32, config={}), founded_at_s=1.0)
    with tempfile.TemporaryDirectory() as folder:
        return seal_run(seal, Identity.load_or_create(Path(folder) / "key"))


def prepare_home(_: Path) -> None:
    """Sign a run."""
    _sealed()


def live(folder: Path) -> None:
    """Write every file of a home, twice, and archive the run."""
    home = Home(folder / "home")
    home.acquire()
    try:
        for number in (1, 2):
            run = home.create_run(RUN)
            run.save_seal(_sealed())
            run.save_manifest(b"{}" * number)
            run.save_local(LocalRun(base_model="/models/tiny", tokens_given=number))
            run.save_coordinator(f"coordinator://10.0.0.{number}:7300/{'t' * 32}")
            run.remember_peers([("p1", (f"/ip4/10.0.0.{number}/tcp/1/p2p/p1",))])
            home.remember_port(4000 + number)
        run.save_coordinator(None)
        home.archive_run(home.run(RUN))
    finally:
        home.release()


def check_home(folder: Path) -> None:
    """Each file that is there is whole; what was not written yet is missing, never half there."""
    home = Home(folder / "home")
    assert home.remembered_port() in (None, 4001, 4002)
    assert (home.remembered_port() is None) == (not (home.path / "port").exists())
    for run in [home.run(RUN), *home.runs()]:
        if (run.path / "seal.json").exists():
            assert run.load_seal().seal.fingerprint == RUN
        if (run.path / "local.json").exists():
            assert run.load_local().tokens_given in (1, 2)
        if (run.path / "coordinator.json").exists():
            assert run.load_coordinator() in [None, *(f"coordinator://10.0.0.{n}:7300/{'t' * 32}" for n in (1, 2))]
        if (run.path / "peers.json").exists():
            assert [peer.peer_id for peer in run.known_peers()] == ["p1"]
        if (run.path / "manifest.json").exists():
            assert (run.path / "manifest.json").read_bytes() in (b"{}", b"{}{}")
        assert len(list(run.path.glob("*"))) <= 9
    home.acquire()  # no lock of a dead process stops the next start
    home.release()


def fail_to_live(folder: Path) -> None:
    """Write the files of a home on a disk that refuses the last step."""
    try:
        live(folder)
    except NodeError:
        return
    raise AssertionError("the disk refused, and nobody said so")


def make_identity(folder: Path) -> None:
    """Make an identity, as at the first start."""
    Identity.load_or_create(folder / "identity.key")


def check_identity(folder: Path) -> None:
    """It is there and whole, or not there."""
    if (folder / "identity.key").exists():
        first = Identity.load_or_create(folder / "identity.key").peer_id
        assert Identity.load_or_create(folder / "identity.key").peer_id == first
    assert len(list(folder.iterdir())) <= 2


# --- the base model ------------------------------------------------------------------------------------------------

_TENSORS = {f"layer.{n}.weight": bytes([n]) * 4000 for n in range(3)}
_SMALL = b'{"model_type": "tiny"}'


def _manifest() -> Manifest:
    facts = {}
    for name, data in _TENSORS.items():
        digest = tensor_hash("U8", (4000,))
        digest.update(data)
        facts[name] = TensorFacts(dtype="U8", shape=(4000,), num_bytes=4000, digest=digest.hexdigest())
    small = FileFacts(num_bytes=len(_SMALL), sha256=hashlib.sha256(_SMALL).hexdigest())
    return Manifest(tensors=facts, files={"config.json": small})


def fetch(folder: Path) -> None:
    """Fill a folder of weights from where it was, one tensor with what is not the founder's first."""
    asyncio.run(_fetch_alone(folder))


async def _fetch_alone(folder: Path) -> None:
    async with _alone_with(folder / "fetched", lambda _: None):
        _fetch(folder)


def _fetch(folder: Path) -> None:
    into = FetchedFolder(folder / "fetched", _manifest())
    into.prepare()
    into.put_file("config.json", _SMALL)
    into.drop_damaged(_TENSORS)
    for name, data in _TENSORS.items():
        if name in into.held():
            continue
        for attempt in (b"\xff" * 4000, data):
            part = into.begin(name)
            part.append(attempt[part.num_bytes : 1500])
            part.append(attempt[part.num_bytes :])
            is_right = part.finish()
            part.close()
            if is_right:
                break


def check_fetched(folder: Path) -> None:
    """What has its final name is the founder's."""
    store = ModelStore(folder / "fetched", _manifest())
    if not (folder / "fetched").exists():
        return
    assert all(store.is_right(name) for name in store.held())
    assert len(list((folder / "fetched").iterdir())) <= 2 * (len(_TENSORS) + 3)


def prepare_damaged_weights(folder: Path) -> None:
    """A folder of weights in which one bit of a tensor is another."""
    fetch(folder)
    file = max((folder / "fetched").glob("tensor-*"))
    data = bytearray(file.read_bytes())
    data[-7] ^= 4
    file.write_bytes(bytes(data))


def check_repaired(folder: Path) -> None:
    """What has its final name is the founder's, once it was looked at: a start does so before anything else."""
    FetchedFolder(folder / "fetched", _manifest()).drop_damaged(_TENSORS)
    check_fetched(folder)


def remember(folder: Path) -> None:
    """Remember a digest of a file."""
    (folder / "file").write_bytes(b"1")
    for kind in ("a", "b"):
        remembered(folder / "cache", [folder / "file"], kind, lambda: "ab" * 32, is_hex)


def check_remembered(folder: Path) -> None:
    """What is remembered is right, and computed again if it is not there."""
    (folder / "file").exists() or (folder / "file").write_bytes(b"1")
    assert remembered(folder / "cache", [folder / "file"], "a", lambda: "ab" * 32, is_hex) == "ab" * 32
    assert len(list((folder / "cache" / "digests").iterdir())) <= 4


# --- the export ----------------------------------------------------------------------------------------------------


def _adapter(value: float) -> dict[str, torch.Tensor]:
    return {"model.layers.0.self_attn.q_proj.lora_A.weight": torch.full((2, 8), value)}


def _write(folder: Path, value: float) -> None:
    card = AdapterCard(name="run", rounds=1, tokens=1, contributors=1)
    write_adapter(folder / "out", _adapter(value), LoraSpec(r=2, alpha=4), base_model="maker/model", card=card)


def export_twice(folder: Path) -> None:
    """Export, and export again in its place."""
    _write(folder, 1.0)
    _write(folder, 2.0)


def fail_to_export(folder: Path) -> None:
    """Export on a disk that refuses the last step."""
    try:
        _write(folder, 1.0)
    except NodeError:
        return
    raise AssertionError("the disk refused, and nobody said so")


def prepare_half_an_export(folder: Path) -> None:
    """An export of ours, half of another one, and an old one that a killed export had moved away."""
    _write(folder, 1.0)
    (folder / ".out-0123456789abcdef").mkdir()
    (folder / ".out-0123456789abcdef" / "half").write_bytes(b"x")
    shutil.copytree(folder / "out", folder / ".out-old-0123456789abcdef")


def prepare_a_moved_export(folder: Path) -> None:
    """An export that was killed between its two renames: the old one is there under the other name alone."""
    _write(folder, 1.0)
    (folder / "out").rename(folder / ".out-old-0123456789abcdef")


def prepare_an_export(folder: Path) -> None:
    """An export of ours."""
    _write(folder, 1.0)


def check_exported(folder: Path) -> None:
    """What has the folder's name is a whole export; after the next one nothing else is beside it."""
    if (folder / "out").exists():
        _check_export(folder)
    _write(folder, 1.0)
    _check_export(folder)
    assert [path.name for path in folder.iterdir()] == ["out"]


def _check_export(folder: Path) -> None:
    (tensor,) = load_file(folder / "out" / "adapter_model.safetensors").values()
    assert float(tensor[0, 0]) in (1.0, 2.0)
    assert bool((tensor == tensor[0, 0]).all())
    assert json.loads((folder / "out" / "adapter_config.json").read_text())["r"] == 2
    for line in (folder / "out" / "SHA256SUMS").read_text().splitlines():
        digest, name = line.split("  ")
        assert hashlib.sha256((folder / "out" / name).read_bytes()).hexdigest() == digest


# --- a converted model --------------------------------------------------------------------------------------------


def prepare_gguf(folder: Path) -> None:
    """A GGUF file, and half of a conversion that was killed."""
    gguf = write_gguf(folder.parent / "tiny.gguf", "llama")
    half = folder / "models" / f".{hashlib.sha256(gguf.read_bytes()).hexdigest()}-half"
    half.mkdir(parents=True)
    (half / "model.safetensors").write_bytes(b"x")


def convert(folder: Path) -> None:
    """Convert it, and again after its conversion was damaged."""
    for _ in range(2):
        converted = local_base_model(str(folder.parent / "tiny.gguf"), cache=folder / "models")
        assert converted is not None
        damage(converted / "model.safetensors", 8 * 5000)


def fail_to_convert(folder: Path) -> None:
    """Convert on a disk that refuses the last step."""
    try:
        local_base_model(str(folder.parent / "tiny.gguf"), cache=folder / "models")
    except NodeError:
        return
    raise AssertionError("the disk refused, and nobody said so")


def damage(file: Path, bit: int) -> None:
    """Flip one bit of a file."""
    with file.open("r+b") as stream:
        stream.seek(bit // 8)
        byte = stream.read(1)[0]
        stream.seek(bit // 8)
        stream.write(bytes([byte ^ 1 << bit % 8]))


def check_converted(folder: Path) -> None:
    """The next one is whole, and nothing of those that were killed is left."""
    converted = local_base_model(str(folder.parent / "tiny.gguf"), cache=folder / "models")
    assert converted is not None
    assert is_intact(converted)
    assert "model.safetensors" in {path.name for path in converted.iterdir()}
    assert len([path for path in (folder / "models").iterdir() if path.is_dir()]) == 2, "more than model and digests"


_SAVE, _EXPORT = "training.checkpoint:CheckpointStore.save", "export.peft:_swap"

SCENARIOS = (
    Scenario("saving checkpoints", save_three, check_saved),
    Scenario("opening a damaged store", open_damaged, open_damaged, prepare_damage, tells=False),
    Scenario("the files of a home", live, check_home, prepare_home),
    Scenario("making an identity", make_identity, check_identity, is_slow=True),
    Scenario("fetching weights", fetch, check_fetched),
    Scenario("fetching damaged weights again", fetch, check_repaired, prepare_damaged_weights),
    Scenario("remembering digests", remember, check_remembered, tells=False),
    Scenario("exporting", export_twice, check_exported),
    Scenario("exporting beside leftovers", export_twice, check_exported, prepare_half_an_export),
    Scenario("exporting after a kill", export_twice, check_exported, prepare_a_moved_export),
    Scenario(
        "failing to replace an export",
        fail_to_export,
        check_exported,
        prepare_an_export,
        always=(Fault(f"{_EXPORT}:rename#2", "fail", times=0),),
    ),
    Scenario("converting a model", convert, check_converted, prepare_gguf, is_slow=True),
    Scenario(
        "failing to convert",
        fail_to_convert,
        check_converted,
        prepare_gguf,
        always=(Fault("model.gguf_folder:convert_gguf:replace", "fail", times=0),),
        is_slow=True,
    ),
    Scenario("failing to save", fail_to_save, check_saved, always=(Fault(f"{_SAVE}:rename", "fail", times=0),)),
    Scenario(
        "failing to write a small file",
        fail_to_live,
        check_home,
        prepare_home,
        always=(Fault("core.files:write_whole:replace", "fail", nth=3, times=0),),
    ),
    Scenario("failing to export", fail_to_export, check_exported, always=(Fault(f"{_EXPORT}:*", "fail", times=0),)),
)
