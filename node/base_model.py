"""Where the base model of a run comes from: this machine, the neighbour, the hub, in this order.

A founder needs all of it, to say what it is. A joiner needs to begin with no more than configuration and tokenizer,
which any peer of the run can give.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from node.config.recipe import Recipe
from node.core.errors import NoPeerReachable, RunMismatch, WeightsMissing
from node.core.types import PeerId
from node.model.facts import manifest_of
from node.model.families import read_config
from node.model.hub import download_small_files
from node.model.source import is_hub_name, local_base_model, maths_of, resolve_base_model
from node.model.store import MANIFEST_FILE, FetchedFolder
from node.model.weights import weight_files
from node.network.processes import RunningP2P
from node.trust.manifest import Manifest
from node.trust.seal import ModelIdentity, RunSeal
from node.weights import BaseWeights, fetch_manifest, fetch_small_files, fetched_folder, read_manifest

Say = Callable[[str], None]


@dataclass(frozen=True)
class WholeBase:
    """A base model that is complete on this machine."""

    folder: Path
    identity: ModelIdentity
    manifest: Manifest

    def weights(self, seal: RunSeal, recipe: Recipe, cache: Path, stored: Path) -> BaseWeights:
        """Return it as the base model of a run.

        Args:
            seal: The run.
            recipe: The run's, with its `base_model`.
            cache: Where models are kept.
            stored: File with the founder's manifest, for a node whose own small files are others.
        """
        manifest: Manifest | None = self.manifest
        if self.identity.manifest != seal.model.manifest:
            manifest = read_manifest(stored, seal.model)
        return _weights(self.folder, seal, recipe, cache, manifest, is_whole=True)


async def whole_base(where: str, *, cache: Path, revision: str | None, say: Say) -> WholeBase:
    """Return a base model with all its tensors, from the hub if need be.

    Raises:
        ModelError: there is no such model, or it cannot be used.
    """

    def read() -> WholeBase:
        folder = resolve_base_model(where, cache=cache, revision=revision)
        maths = maths_of(read_config(folder))
        manifest = manifest_of(folder, cache=cache)
        identity = ModelIdentity(digest=manifest.model_digest(maths), config=maths, manifest=manifest.digest)
        return WholeBase(folder, identity, manifest)

    if where.endswith(".gguf"):
        say("Reading the GGUF file; the first time it is converted, which takes a while.")
    return await asyncio.to_thread(read)


@dataclass(frozen=True)
class Joining:
    """What a joiner knows when it looks for the base model."""

    seal: RunSeal
    recipe: Recipe
    given: str | None
    """Where the person says that the base model is."""
    remembered: str | None
    """Where it was when this node took part before."""
    cache: Path
    stored: Path
    """File with the founder's manifest, if this node took part before."""
    peers: Sequence[PeerId]
    """Peers of the run that answer."""


async def base_of_joiner(joining: Joining, running: RunningP2P, say: Say) -> BaseWeights:
    """Find the base model of the run that is joined, or as much of it as there is.

    Raises:
        RunMismatch: the model that is here is another one.
        ModelError: neither this machine nor a peer nor the hub has it, or it cannot be used.
    """
    folder, where = await asyncio.to_thread(_local, joining)
    if folder is not None and await asyncio.to_thread(_is_complete, folder):
        whole = await whole_base(str(folder), cache=joining.cache, revision=None, say=say)
        _refuse_other(whole.identity, joining.seal.model, where)
        base = whole.weights(joining.seal, joining.recipe, joining.cache, joining.stored)
        if base.manifest is not None or not joining.peers:
            return base
        manifest = await _manifest(joining, running)
        return _weights(folder, joining.seal, joining.recipe, joining.cache, manifest, is_whole=True)
    manifest = await _manifest(joining, running)
    if folder is None:
        folder = await _from_others(joining, manifest, running, say)
    elif manifest is None:
        await asyncio.to_thread(weight_files, folder)  # says what it lacks
    maths = await asyncio.to_thread(lambda: maths_of(read_config(folder)))
    if maths != joining.seal.model.config:
        _refuse_other(ModelIdentity(digest="0" * 64, config=maths), joining.seal.model, where)
    base = _weights(folder, joining.seal, joining.recipe, joining.cache, manifest, is_whole=False)
    return replace(base, hub_name=joining.given) if joining.given and is_hub_name(joining.given) else base


def _local(joining: Joining) -> tuple[Path | None, str]:
    """Return the model's folder on this machine, complete or not, and the name by which it was found."""
    recipe = joining.recipe
    candidates = [joining.given] if joining.given else [joining.remembered, recipe.base_model]
    for where in candidates:
        folder = local_base_model(where, cache=joining.cache, revision=recipe.revision_of_model) if where else None
        if where and folder is not None and (joining.given or (folder / "config.json").is_file()):
            read_config(folder)
            return folder, where
    if joining.given and not is_hub_name(joining.given):
        raise WeightsMissing(
            f"There is no model at {joining.given}.",
            hint="Check --base-model, or leave it out to take the model from the swarm.",
        )
    fetched = fetched_folder(joining.cache, joining.seal.model)
    return (fetched, str(fetched)) if (fetched / "config.json").is_file() else (None, recipe.base_model)


async def _manifest(joining: Joining, running: RunningP2P) -> Manifest | None:
    """Return the founder's manifest, from this machine or from a peer; None if it is nowhere."""
    model = joining.seal.model
    for path in (joining.stored, fetched_folder(joining.cache, model) / MANIFEST_FILE):
        if (manifest := await asyncio.to_thread(read_manifest, path, model)) is not None:
            return manifest
    try:
        return await fetch_manifest(running, joining.peers, joining.seal.fingerprint, model)
    except NoPeerReachable:
        return None


async def _from_others(joining: Joining, manifest: Manifest | None, running: RunningP2P, say: Say) -> Path:
    """Return a new folder with configuration and tokenizer, from the neighbour or from the hub."""
    hub_name = joining.given or joining.recipe.base_model
    reason = "no peer that was asked gives it"
    if manifest is not None and joining.given is None:
        say("The base model is not on this machine: taking it from the swarm.")
        into = FetchedFolder(fetched_folder(joining.cache, joining.seal.model), manifest)
        try:
            await fetch_small_files(running, joining.peers, joining.seal.fingerprint, into)
            return into.folder
        except NoPeerReachable as error:
            reason = error.message
    if not is_hub_name(hub_name):
        raise WeightsMissing(
            f"The base model is not at {hub_name}, and {reason}.",
            hint="Give the folder of the base model on this machine with --base-model.",
        )
    folder = await asyncio.to_thread(download_small_files, hub_name, joining.recipe.revision_of_model)
    if manifest is None:  # without a list of the tensors there is no telling a part of the model from another model's
        whole = await whole_base(hub_name, cache=joining.cache, revision=joining.recipe.revision_of_model, say=say)
        _refuse_other(whole.identity, joining.seal.model, hub_name)
    return folder


def _weights(
    folder: Path, seal: RunSeal, recipe: Recipe, cache: Path, manifest: Manifest | None, *, is_whole: bool
) -> BaseWeights:
    return BaseWeights(
        folder=folder,
        is_whole=is_whole,
        model=seal.model,
        manifest=manifest,
        fingerprint=seal.fingerprint,
        cache=cache,
        hub_name=recipe.base_model,
        revision=recipe.revision_of_model,
    )


def _is_complete(folder: Path) -> bool:
    try:
        weight_files(folder)
    except WeightsMissing:
        return False
    return True


def _refuse_other(mine: ModelIdentity, theirs: ModelIdentity, where: str) -> None:
    if mine.digest == theirs.digest:
        return
    names = sorted(mine.config.keys() | theirs.config.keys())
    lines = [
        f"  {name}: {mine.config.get(name)!r} here, {theirs.config.get(name)!r} in the swarm"[:300]
        for name in names
        if mine.config.get(name) != theirs.config.get(name)
    ] or ["  the configuration is equal; the weights differ"]
    raise RunMismatch(
        f"The base model at {where} is not the swarm's:\n"
        + "\n".join([*lines[:20], f"  digest: {mine.digest[:16]}… here, {theirs.digest[:16]}… in the swarm"]),
        hint="Get the same weights as the founder, and name them with --base-model FOLDER.",
    )
