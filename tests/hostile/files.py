"""The targets behind files: each is written to a folder of the test's and read by the code that reads it in a node."""

from __future__ import annotations

import contextlib
import json
import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path
from random import Random

import torch

from hostile import seeds
from hostile.mutate import TEXTS, damage, damage_message, damage_tree
from hostile.streams import PEERS
from hostile.target import Target, of_files
from hostile.written import (
    CONFIG,
    RECIPE,
    ROWS,
    SHORT_RECIPE,
    as_json,
    as_yaml,
    gguf_bytes,
    rows_as,
    safetensors_bytes,
    sha256_of,
)
from node.config.load import load_recipe
from node.config.local import load_local
from node.config.recipe import Recipe
from node.control.client import running_pid
from node.core.errors import NodeError
from node.core.files import sealed
from node.core.types import PeerId
from node.data.dataset import prepare
from node.export.peft import _is_ours
from node.host.home import Home, LocalRun
from node.host.shapes import ModelShape
from node.model.facts import manifest_of
from node.model.families import read_config
from node.model.gguf_tensors import read_table, read_values
from node.model.source import maths_of
from node.model.weights import WeightReader, named_files, read_header
from node.network import records
from node.network.addresses import host_of, is_reachable_from_outside, split_peer_id, tcp_port_of
from node.training import state as adapters
from node.training.checkpoint import Checkpoint, CheckpointStore
from node.trust import manifest, seal
from node.trust.identity import Identity, SignedBytes
from node.v1 import swarm_pb2

KINDS = ("jsonl", "json", "csv", "tsv", "parquet", "txt")
LAYOUT = adapters.Layout.of([("a.lora_A.weight", (2, 4)), ("a.lora_B.weight", (4, 2))])


class NotInOrder(AssertionError):
    """An error that does not say what is wrong, or what to do."""


def refused_well(error: NodeError) -> None:
    """Raise NotInOrder unless the error is a line that a person can act on (a recipe has one for each complaint)."""
    lines = error.message.split("\n")
    if not error.message.strip() or len(lines) > 6 or max(map(len, lines)) > 2000:
        raise NotInOrder(f"{type(error).__name__}: {error.message[:300]!r}")


class Files:
    """The readers of files, and what is valid for each."""

    def __init__(self, folder: Path, tokenizer):
        self.folder = folder
        self.tokenizer = tokenizer
        self.recipe = load_recipe(self._put("recipe.yaml", as_yaml(RECIPE))).recipe
        self.skipping = self._skipping("skip"), self._skipping("fail")
        self.world = seeds.World(folder)
        self.home = Home(folder / "home")
        self.run = self.home.create_run(seeds.RUN)

    def _skipping(self, what):
        return self.recipe.model_copy(update={"potluck": self.recipe.potluck.model_copy(update={"on_bad_row": what})})

    def _put(self, name: str, data: bytes) -> Path:
        path = self.folder / name
        with path.open("wb") as file:
            file.write(data)
        return path

    def _of(self, name: str, read: Callable[[Path], object]) -> Callable[[bytes], None]:
        """Return what writes bytes to a file and reads it."""

        def run(data: bytes) -> None:
            path = self._put(name, data)
            try:
                read(path)
            except NodeError as error:
                refused_well(error)

        return run

    def targets(self) -> list[Target]:
        """Return the targets of all files."""
        return [
            self._tree("recipe", "recipe.yaml", load_recipe, (RECIPE, SHORT_RECIPE, SHORT_RECIPE), as_yaml),
            self._shared_recipe(),
            *(self._rows(kind) for kind in KINDS),
            self._record(),
            self._seal(),
            self._manifest(),
            *self._checkpoints(),
            self._adapter(),
            self._peft(),
            *self._weights(),
            self._gguf(),
            self._tree("config", "model-config/config.json", lambda path: _read_model(path.parent), CONFIG, as_json),
            self._address(),
            *self._home_files(),
        ]

    def _tree(self, target, name, read, tree, write, more=()):
        trees = tree if isinstance(tree, tuple) else (tree,)
        (self.folder / name).parent.mkdir(exist_ok=True, parents=True)

        def structured(rng: Random) -> bytes:
            return write(damage_tree(rng.choice(trees), rng))

        return of_files(target, self._of(name, read), [*map(write, trees), *more], structured)

    def _shared_recipe(self):
        shared = json.loads(self.recipe.shared_json())

        def read(path):
            Recipe.from_shared_json(path.read_bytes(), {"micro_batch_size": 2})

        return self._tree("shared-recipe", "shared.json", read, shared, as_json)

    def _rows(self, kind):
        def structured(rng: Random) -> bytes:
            rows = [damage_tree(rng.choice(ROWS), rng) for _ in range(rng.choice((1, 2, 3)))]
            return rows_as(kind, [*rows, rng.choice(ROWS)])

        def read(path):
            for recipe in self.skipping:
                prepare(recipe, self.tokenizer, [path])

        rows_seeds = [rows_as(kind, [row]) for row in ROWS]
        return of_files(f"rows-{kind}", self._of(f"rows.{kind}", read), rows_seeds, structured)

    def _record(self):
        value, _ = self.world.record()
        envelope = swarm_pb2.Signed.FromString(value)
        body = swarm_pb2.PeerRecord.FromString(envelope.body)

        def run(data: bytes) -> None:
            with _signed_by_anybody(records, lambda signed: swarm_pb2.PeerRecord.FromString(signed.body).peer_id):
                peer = records.decode_peer(data, fingerprint=seeds.RUN, expires_at_s=0.0)
            if peer is not None:
                assert len(peer.name) <= 64, peer
                assert peer.name.isprintable(), peer

        def make(rng: Random) -> bytes:
            message = swarm_pb2.PeerRecord()
            message.CopyFrom(body)
            damage_message(message, rng)
            wrapped = swarm_pb2.Signed(body=message.SerializeToString(), public_key=b"k", signature=b"s")
            data = wrapped.SerializeToString()
            return damage(data, rng) if rng.random() < 0.3 else data

        return Target("record", run, (value,), make)

    def _seal(self):
        tree = json.loads(self.world.sealed_run.signed.body)

        def read(path):
            with _signed_by_anybody(seal, lambda _: PeerId(PEERS[0])):
                seal.open_seal(SignedBytes(path.read_bytes(), b"k", b"s"), sender=PeerId(PEERS[0]))

        return self._tree("seal", "seal-body.json", read, tree, as_json)

    def _manifest(self):
        found = self.world.store.manifest

        def read(path):
            data = path.read_bytes()
            model = seal.ModelIdentity(digest=found.model_digest({}), config={}, manifest=sha256_of(data))
            manifest.open_manifest(data, model, sender=PeerId(PEERS[0]))

        return self._tree("manifest", "manifest.json", read, json.loads(found.to_bytes()), as_json)

    def _checkpoints(self):
        state = torch.arange(LAYOUT.numel, dtype=torch.float32)
        data = adapters.encode(adapters.AdapterState(3, 5, state, state, state), LAYOUT)
        store = CheckpointStore(self.folder / "checkpoints")
        store.save(Checkpoint(seeds.RUN, 3, {0: data}, {"epoch": 1}, {"rounds": 2}, {"dropout": 3}))
        (generation,) = store.folder.glob("generation-*")
        for name in ("manifest.json", "bookmark.json"):
            path = generation / name
            whole = path.read_bytes()

            def read(_, path=path, whole=whole):
                try:
                    CheckpointStore(store.folder, read_only=True).load_latest(seeds.RUN)
                finally:
                    path.write_bytes(whole)

            target = f"checkpoint-{path.stem}"
            yield self._tree(target, str(path.relative_to(self.folder)), read, json.loads(whole), as_json, [whole])

    def _adapter(self):
        state = torch.arange(LAYOUT.numel, dtype=torch.float32)
        whole = adapters.encode(adapters.AdapterState(3, 5, state, state, state), LAYOUT)
        return self._safetensors(
            "adapter", "adapter.bin", lambda path: adapters.decode(path.read_bytes(), LAYOUT), whole
        )

    def _peft(self):
        folder = self.folder / "peft"
        folder.mkdir()
        header = {"__metadata__": {"producer": "potluck"}, "a": {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]}}
        whole = safetensors_bytes(header, bytes(8))
        return self._safetensors("peft", "peft/adapter_model.safetensors", lambda path: _is_ours(path.parent), whole)

    def _safetensors(self, target, name, read, whole):
        """Return the target for a file with a header in JSON, whose length is right or not."""
        length = int.from_bytes(whole[:8], "little")
        tree = json.loads(whole[8 : 8 + length])

        def structured(rng: Random) -> bytes:
            made = safetensors_bytes(damage_tree(tree, rng), whole[8 + length :])
            if rng.random() < 0.15:
                made = struct.pack("<Q", rng.choice((0, 1 << 32, 2**64 - 1, len(made)))) + made[8:]
            return made

        return of_files(target, self._of(name, read), [whole], structured)

    def _weights(self):
        folder = self.folder / "weights"
        folder.mkdir()
        header = {
            name: {"dtype": "BF16", "shape": [2, 2], "data_offsets": [at, at + 8]} for name, at in (("a", 0), ("b", 8))
        }

        def read(path):
            for entry in read_header(path):
                if entry.float_type is not None:
                    WeightReader(folder).read(entry.name, torch.float32)
            manifest_of(folder, cache=self.folder / "cache")

        yield self._safetensors("safetensors", "weights/model.safetensors", read, safetensors_bytes(header, bytes(16)))
        (self.folder / "indexed").mkdir()
        index = {"metadata": {"total_size": 8}, "weight_map": {"a": "model-1.safetensors", "b": "../../x"}}
        yield self._tree(
            "index", "indexed/model.safetensors.index.json", lambda p: named_files(p.parent), index, as_json
        )

    def _gguf(self):
        whole = gguf_bytes()

        def run(data: bytes) -> None:
            path = self._put("model.gguf", data)
            try:
                for tensor in read_table(path).tensors[:8]:
                    for _ in zip(range(4), read_values(path, tensor, max_values=64)):  # noqa: B905
                        pass
            except (ValueError, NotImplementedError) as error:
                assert str(error)  # noqa: PT017

        def structured(rng: Random) -> bytes:
            return gguf_bytes(rng)

        return of_files("gguf", run, [whole], structured)

    def _address(self):
        good = f"/ip4/192.168.1.20/tcp/4040/p2p/{PEERS[0]}"

        def run(data: bytes) -> None:
            text = data.decode(errors="surrogateescape")
            host_of(text), is_reachable_from_outside(text), tcp_port_of(text)
            try:
                split_peer_id(text)
            except NodeError as error:
                refused_well(error)
                assert error.hint  # noqa: PT017

        def structured(rng: Random) -> bytes:
            parts = good.split("/")
            parts[rng.randrange(len(parts))] = rng.choice(TEXTS)
            return "/".join(parts).encode(errors="replace")

        return of_files(
            "address", run, [good.encode(), b"/dns4/a.example/udp/1/quic/p2p/" + PEERS[1].encode()], structured
        )

    def _home_files(self):
        home, run = self.home, self.run
        run.save_local(LocalRun(base_model="/m", data=("a.jsonl",)))
        run.remember_peers([(PeerId(PEERS[0]), ("/ip4/127.0.0.1/tcp/1",))])
        run.save_seal(self.world.sealed_run)
        home.remember_port(4040)
        reads = {
            run.path / "local.json": lambda _: run.load_local(),
            run.path / "peers.json": lambda _: run.known_peers(),
            run.path / "seal.json": lambda _: run.load_seal(),
        }
        for path, read in reads.items():
            tree = json.loads(path.read_bytes().split(b"\n#blake2b")[0])
            name = str(path.relative_to(self.folder))
            yield self._tree(f"home-{path.stem}", name, read, tree, lambda t: sealed(as_json(t)), [path.read_bytes()])
        yield self._tree(
            "home-control",
            "home/control.json",
            lambda p: running_pid(p.parent),
            {"pid": os.getpid(), "address": "unix:/x"},
            as_json,
        )
        for name, read in (("current", lambda _: home.current_run()), ("port", lambda _: home.remembered_port())):
            whole = (home.path / name).read_bytes()
            yield of_files(
                f"home-{name}",
                self._of(f"home/{name}", read),
                [whole],
                lambda rng: sealed(rng.choice(TEXTS).encode(errors="replace")),
            )
        key = (self.folder / "identity.key").read_bytes()
        yield of_files("identity", self._of("other.key", Identity.load_or_create), [key], lambda rng: damage(key, rng))
        toml = b'device = "cpu"\nthreads = 2\nlisten = ["/ip4/0.0.0.0/tcp/0"]\nname = "x"\nmax_memory_gb = 1.5\n'
        yield of_files("settings", self._of("config.toml", load_local), [toml], lambda rng: damage(toml, rng))


def _read_model(folder: Path) -> None:
    config = read_config(folder)
    maths_of(config)
    ModelShape.of(config)


@contextlib.contextmanager
def _signed_by_anybody(module, signer) -> Iterator[None]:
    """Let signatures hold, so that what lies behind them is reached; the test of the signature itself is elsewhere."""
    real = module.verify
    module.verify = lambda context, signed: signer(signed)
    try:
        yield
    finally:
        module.verify = real
