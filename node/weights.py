"""The base model's weights between this machine, its neighbours in the swarm and the hub.

What a shard needs and this machine lacks comes from peers, checked against the manifest that the founder signed, and
only if nobody has it, from the hub. It lies under the model cache in `fetched/<digest of the model>`.
"""

from __future__ import annotations

import asyncio
import shutil
import time
from collections.abc import AsyncIterator, Callable, Iterable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

from filelock import FileLock, Timeout

from node.core.errors import NoPeerReachable, OutOfDisk, PeerError, ProtocolViolation, WeightsMissing
from node.core.types import PeerId
from node.model.build import tensor_names
from node.model.hub import download_tensors
from node.model.source import is_hub_name
from node.model.spec import LoadSpec
from node.model.store import Extent, FetchedFolder, ModelStore
from node.model.weights import blocks_of
from node.network.processes import RunningP2P
from node.network.weight_pool import WeightPool
from node.network.weights import WeightClient, WeightServer
from node.trust.identity import short
from node.trust.manifest import MAX_MANIFEST_BYTES, Manifest, open_manifest
from node.trust.seal import ModelIdentity

Say = Callable[[str], None]
Peers = Callable[[], Sequence[PeerId]]

PATIENCE_S = 60.0
"""So long nothing may come before the hub is tried, or the node gives up."""
_SAY_EVERY_S = 2.0
_SPARE_BYTES = 64 << 20
_MB = 1_000_000


@dataclass(frozen=True)
class BaseWeights:
    """A run's base model as far as it is on this machine."""

    folder: Path
    """Configuration and tokenizer are here, and the weights or some of them."""
    is_whole: bool
    """All of the weights are here, and they are the founder's."""
    model: ModelIdentity
    manifest: Manifest | None
    """None in runs founded without one, and if nobody could give it."""
    fingerprint: str
    cache: Path
    hub_name: str
    """The recipe's `base_model`: where the hub has the weights, if it is such a name."""
    revision: str | None

    @property
    def fetched(self) -> Path:
        """Where what peers send is kept."""
        return fetched_folder(self.cache, self.model)


def fetched_folder(cache: Path, model: ModelIdentity) -> Path:
    """Return the folder for what peers send of a model."""
    return cache / "fetched" / model.digest


def read_manifest(path: Path, model: ModelIdentity) -> Manifest | None:
    """Return the manifest in a file of ours, or None if there is none or not the founder's."""
    try:
        with path.open("rb") as file:
            return open_manifest(file.read(MAX_MANIFEST_BYTES + 1), model, sender=PeerId(str(path)))
    except (OSError, ProtocolViolation):
        return None


async def fetch_manifest(
    running: RunningP2P, peers: Iterable[PeerId], fingerprint: str, model: ModelIdentity
) -> Manifest:
    """Return the founder's manifest from the first peer that has it.

    Raises:
        NoPeerReachable: nobody has it.
    """
    client = WeightClient(running.p2p, fingerprint=fingerprint)
    reason = "Nobody was asked."
    for peer in peers if model.manifest else ():
        try:
            return await asyncio.to_thread(open_manifest, await client.manifest(peer), model, sender=peer)
        except PeerError as error:
            reason = error.message
    raise NoPeerReachable(f"Nobody gives the list of the base model's weights. {reason}")


async def fetch_small_files(
    running: RunningP2P, peers: Sequence[PeerId], fingerprint: str, into: FetchedFolder, *, local: Path | None = None
) -> None:
    """Bring configuration and tokenizer into the folder, from `local` or from peers.

    Raises:
        NoPeerReachable: nobody gives one of them.
        OutOfDisk: the disk is full or read-only.
    """
    await asyncio.to_thread(into.prepare)
    client = WeightClient(running.p2p, fingerprint=fingerprint)
    store = ModelStore(local, into.manifest) if local is not None else None
    for name, facts in into.manifest.files.items():
        if await asyncio.to_thread(into.file, name) is not None:
            continue
        here = await asyncio.to_thread(store.file, name) if store is not None else None
        if here is not None:
            await asyncio.to_thread(into.put_file, name, await asyncio.to_thread(here.path.read_bytes))
            continue
        reason = "Nobody was asked."
        for peer in peers:
            try:
                if await asyncio.to_thread(into.put_file, name, await client.file(peer, name, facts.num_bytes)):
                    break
                reason = f"{peer} sent another file than the founder's."
            except PeerError as error:
                reason = error.message
        else:
            raise NoPeerReachable(f"Nobody gives {name} of the base model. {reason}")


@asynccontextmanager
async def serving_weights(base: BaseWeights, running: RunningP2P) -> AsyncIterator[WeightServer | None]:
    """Hand the base model on as long as the context lasts; None if this node has not the founder's list of it."""
    if base.manifest is None:
        yield None
        return
    server = WeightServer(
        running.p2p, fingerprint=base.fingerprint, source=_Shelf(base, base.manifest), told=running.told
    )
    await server.open()
    try:
        yield server
    finally:
        await server.close()


async def ensure_weights(base: BaseWeights, running: RunningP2P, peers: Peers, spec: LoadSpec, say: Say) -> Path:
    """Return a folder from which what `spec` names can be loaded, after fetching what of it is missing.

    What was fetched before stays: a fetching that was broken off goes on where it was.

    Args:
        base: What is here.
        running: The network.
        peers: Whom to ask, as of now; called again and again.
        spec: What is to be loaded.
        say: Told how it goes.

    Raises:
        NoPeerReachable: what is missing comes from nobody.
        WeightsMissing: the hub was asked as the last one, and does not give it either.
        OutOfDisk: the disk is full or read-only.
    """
    if base.is_whole or base.manifest is None:
        return base.folder
    manifest = base.manifest
    needed = frozenset(await asyncio.to_thread(tensor_names, base.folder, spec, manifest.names))
    if unknown := needed - manifest.tensors.keys():
        raise WeightsMissing(f"The founder's model has no tensor {min(unknown)}.", hint="Check the recipe.")
    if base.folder != base.fetched and await asyncio.to_thread(_are_right, base.folder, manifest, needed):
        return base.folder
    async with _alone_with(base.fetched, say):
        into = FetchedFolder(base.fetched, manifest)
        await fetch_small_files(running, peers(), base.fingerprint, into, local=base.folder)
        if base.folder != base.fetched:
            await asyncio.to_thread(_adopt, base.folder, into, needed)
        if damaged := await asyncio.to_thread(into.drop_damaged, needed):
            say(f"{len(damaged)} of the base model's tensors here are damaged, and fetched again. Check the disk.")
        missing = needed - await asyncio.to_thread(into.held)
        if not missing:
            return into.folder
        _refuse_full_disk(into.folder, manifest, missing)
        try:
            await _fetch(WeightClient(running.p2p, fingerprint=base.fingerprint), into, needed, missing, peers, say)
        except NoPeerReachable:
            if not is_hub_name(base.hub_name):
                raise
            say(f"No peer has the weights; asking the hub for {base.hub_name}.")
            return await asyncio.to_thread(_from_hub, base, manifest, needed)
        return into.folder


async def _fetch(
    client: WeightClient,
    into: FetchedFolder,
    needed: frozenset[str],
    missing: frozenset[str],
    peers: Peers,
    say: Say,
) -> None:
    sizes = {name: into.manifest.tensors[name].num_bytes for name in needed}
    here = {name: 0 if name in missing else size for name, size in sizes.items()}
    said_at = 0.0

    def note(name: str, num_bytes: int) -> None:
        nonlocal said_at
        here[name] = num_bytes
        if time.monotonic() - said_at > _SAY_EVERY_S:
            said_at = time.monotonic()
            whose = f"{pool.num_active} peers" if pool.num_active != 1 else "1 peer"
            done, total = sum(here.values()) // _MB, sum(sizes.values()) // _MB
            say(f"Fetching the base model: {done} of {total} MB from {whose}.")

    wanted = {name: sizes[name] for name in missing}
    pool = WeightPool(client, into, names=into.manifest.names, sizes=wanted, note=note)
    await pool.run(peers, patience_s=PATIENCE_S)
    whose = ", ".join(short(peer) for peer in pool.sources)
    say(f"The base model's weights are here: {sum(wanted.values()) // _MB} MB came from {whose}.")


def _from_hub(base: BaseWeights, manifest: Manifest, needed: frozenset[str]) -> Path:
    folder = download_tensors(base.hub_name, base.revision, needed)
    if not _are_right(folder, manifest, needed):
        raise WeightsMissing(
            f"{base.hub_name} on the hub is not the swarm's base model.",
            hint="Fix `revision_of_model` in the recipe, or wait for a node that has the weights.",
        )
    return folder


def _are_right(folder: Path, manifest: Manifest, needed: frozenset[str]) -> bool:
    store = ModelStore(folder, manifest)
    return needed <= store.held() and all(store.is_right(name) for name in sorted(needed))


def _adopt(folder: Path, into: FetchedFolder, needed: frozenset[str]) -> None:
    """Take what is already in a folder that lacks something, so that one folder has all of it."""
    store = ModelStore(folder, into.manifest)
    for name in sorted((needed & store.held()) - into.held()):
        extent = store.tensor(name)
        assert extent is not None, f"{name} was there a moment ago"
        part = into.begin(name)
        try:
            for block in blocks_of(extent.path, extent.start + part.num_bytes, extent.stop):
                part.append(block)
            part.finish()
        finally:
            part.close()


def _refuse_full_disk(folder: Path, manifest: Manifest, missing: frozenset[str]) -> None:
    free = shutil.disk_usage(folder).free
    wanted = sum(manifest.tensors[name].num_bytes for name in missing)
    if free < wanted + _SPARE_BYTES:
        raise OutOfDisk(
            f"The base model's missing weights have {wanted // _MB} MB, and {free // _MB} MB are free at {folder}.",
            hint="Make room there, or give the model's folder with --base-model.",
        )


@asynccontextmanager
async def _alone_with(folder: Path, say: Say) -> AsyncIterator[None]:
    """Let one process at a time fill the folder: nodes of one machine share it."""
    lock = FileLock(folder.with_suffix(".lock"))
    has_said = False
    while True:
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            lock.acquire(timeout=0)
            break
        except Timeout:
            if not has_said:
                say("Another node on this machine is fetching the base model; waiting for it.")
                has_said = True
            await asyncio.sleep(0.5)
        except OSError as error:
            raise OutOfDisk(
                f"Cannot write to {folder.parent}: {error.strerror or error}.", hint="Make room there."
            ) from error
    try:
        yield
    finally:
        lock.release()


class _Shelf:
    """What this node hands on: what it has fetched and checked, and its own folder if that is the founder's model."""

    def __init__(self, base: BaseWeights, manifest: Manifest) -> None:
        folders = [base.folder, base.fetched] if base.is_whole else [base.fetched]
        self._stores = [ModelStore(folder, manifest) for folder in folders]
        self._manifest = manifest

    def manifest_bytes(self) -> bytes:
        return self._manifest.to_bytes()

    def held_bits(self) -> bytes:
        return bytes(map(lambda *bits: bits[0] | bits[-1], *(store.held_bits() for store in self._stores)))

    def tensor(self, name: str) -> Extent | None:
        return next((found for store in self._stores if (found := store.tensor(name))), None)

    def file(self, name: str) -> Extent | None:
        return next((found for store in self._stores if (found := store.file(name))), None)
