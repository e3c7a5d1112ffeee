"""From "start this recipe" or "join that address" to a run that this node takes part in.

Everything that can be refused is refused here, before any weights are loaded: another base model, another recipe,
a wrong clock, an address where nobody is.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from coordinator.address import is_coordinator_address
from node.agreed import num_stages, refuse_to_lend_a_whole_model, resolved, total_steps
from node.base_model import Joining, base_of_joiner, whole_base
from node.config.recipe import Recipe, differing_fields
from node.config.sections import DatasetSpec
from node.core import versions
from node.core.errors import ConfigError, DataError, NodeError, RunMismatch
from node.core.types import PeerId, SwarmView
from node.data.dataset import PreparedData, prepare
from node.greeting import greet
from node.host.home import Home, LocalRun, RunFolder
from node.model.source import load_tokenizer
from node.model.store import MANIFEST_FILE
from node.network.addresses import split_peer_id
from node.network.door import MAX_CLOCK_DIFFERENCE_S, Welcomed
from node.network.processes import RunningP2P
from node.trust.identity import Identity
from node.trust.seal import RunSeal, SealedRun, seal_run
from node.weights import BaseWeights

Say = Callable[[str], None]


@dataclass(frozen=True)
class Request:
    """What the person asked for."""

    recipe: Recipe | None
    """The recipe file, resolved; None for a joiner without one."""
    address: str | None
    """The address to join, of a peer or of a coordinator; None for a founder."""
    data: tuple[Path, ...] = ()
    """Files and folders that replace the recipe's `datasets`."""
    base_model: str | None = None
    """Where the base model is on this machine, if not where the recipe says."""
    lend: bool = False
    """Train on no data here: only hold stages for others."""
    fresh: bool = False
    """Start the run over; what there was is moved aside."""
    model_cache: Path = field(default_factory=Path)


@dataclass(frozen=True)
class Enlisted:
    """A run that this node takes part in, with everything that is needed to load it."""

    sealed: SealedRun
    recipe: Recipe
    base: BaseWeights
    """The base model as far as it is here; `ensure_weights` brings what a shard needs of the rest."""
    data: PreparedData | None
    """None for a node that only lends its stages."""
    folder: RunFolder
    known_addresses: tuple[str, ...]
    """Peers to dial: the one given, and the ones met before."""

    @property
    def fingerprint(self) -> str:
        """The run's identity."""
        return self.sealed.seal.fingerprint

    @property
    def model_folder(self) -> Path:
        """Where the base model's configuration and tokenizer are, and of its weights what is here."""
        return self.base.folder

    def neighbours(self, view: SwarmView) -> list[PeerId]:
        """Return who may have what this node lacks of the base model: who is seen, and who was dialled."""
        dialled = [split_peer_id(address)[1] for address in self.known_addresses]
        seen = [peer.peer_id for peer in view.peers]
        return [peer for peer in dict.fromkeys([*seen, *dialled]) if peer != view.me]

    def with_model_folder(self, folder: Path) -> Enlisted:
        """Return it with the folder that `ensure_weights` has filled."""
        if folder == self.base.folder:
            return self
        local = self.folder.load_local()
        self.folder.save_local(local.model_copy(update={"base_model": str(folder)}))
        return replace(self, base=replace(self.base, folder=folder))


async def found(request: Request, home: Home, identity: Identity, say: Say) -> Enlisted:
    """Found a run, or take up the one that the same recipe made here before.

    Raises:
        NodeError: the model, the data or the recipe cannot be used.
    """
    assert request.recipe is not None, "a founder has a recipe"
    recipe = _with_data(request.recipe, request.data)
    base = await whole_base(
        request.base_model or recipe.base_model,
        cache=request.model_cache,
        revision=recipe.revision_of_model,
        say=say,
    )
    origin = recipe.fingerprint(base.identity.digest)
    stored = _find_stored(home, origin)
    if stored is not None and request.fresh:
        say(f"The run so far was moved to {home.archive_run(stored)}.")
        stored = None
    if stored is not None:
        sealed = stored.load_seal()
        agreed = Recipe.from_shared_json(sealed.seal.recipe)
        recipe = resolved(recipe, agreed.max_steps, agreed.potluck.stages)
        data = None if request.lend else await _prepare_data(recipe, base.folder, say)
        folder = stored
        home.create_run(sealed.seal.fingerprint)
    else:
        data = None if request.lend else await _prepare_data(recipe, base.folder, say)
        recipe = resolved(recipe, total_steps(recipe, data), num_stages(recipe, base.folder))
        fingerprint = recipe.fingerprint(base.identity.digest)
        seal = RunSeal(
            fingerprint=fingerprint, recipe=recipe.shared_json(), model=base.identity, founded_at_s=time.time()
        )
        sealed = seal_run(seal, identity)
        folder = home.create_run(fingerprint)
        folder.save_seal(sealed)
    weights = base.weights(sealed.seal, recipe, request.model_cache, folder.path / MANIFEST_FILE)
    _save(folder, origin, recipe, weights)
    return Enlisted(sealed, recipe, weights, data, folder, _addresses(folder))


async def join(request: Request, home: Home, identity: Identity, running: RunningP2P, say: Say) -> Enlisted:
    """Join the run of the peer or coordinator at `request.address`, or one that this node took part in with that peer.

    Raises:
        NoPeerReachable: nobody answers, there or at any peer met before.
        RunMismatch: the base model or the recipe differs, with the fields that do.
        ConfigError: the address is malformed, or the clock is wrong.
        NodeError: the model or the data cannot be used.
    """
    assert request.address is not None, "a joiner has an address"
    welcomed, known = await greet(request.address, home, identity, running, say)
    _check_clock(welcomed)
    sealed = welcomed.run
    recipe = Recipe.from_shared_json(sealed.seal.recipe)
    if request.recipe is not None:
        _refuse_other_recipe(request.recipe, recipe)
        recipe = recipe.with_local({"datasets": request.recipe.model_dump()["datasets"]})
    recipe = _with_data(recipe, request.data)
    folder = home.run(sealed.seal.fingerprint)
    joining = Joining(
        seal=sealed.seal,
        recipe=recipe,
        given=request.base_model,
        remembered=_remembered_base(folder),
        cache=request.model_cache,
        stored=folder.path / MANIFEST_FILE,
        peers=[split_peer_id(address)[1] for address in known],
    )
    base = await base_of_joiner(joining, running, say)
    if recipe.fingerprint(sealed.seal.model.digest) != sealed.seal.fingerprint:
        raise RunMismatch(
            f"This Potluck {versions.software()} reads the swarm's recipe differently than its founder's did.",
            hint=f"{versions.UPGRADE_HERE} If it is the newer one, use the founder's version here.",
        )
    refuse_to_lend_a_whole_model(recipe, lends=request.lend)
    data = None if request.lend else await _prepare_data(recipe, base.folder, say)
    if request.fresh and folder.path.exists():
        say(f"What this node had of the run was moved to {home.archive_run(folder)}.")
    folder = home.create_run(sealed.seal.fingerprint)
    folder.save_seal(sealed)
    _save(folder, "", recipe, base)
    if is_coordinator_address(request.address):
        folder.save_coordinator(request.address)
    return Enlisted(sealed, recipe, base, data, folder, (*known, *_addresses(folder)))


def _check_clock(welcomed: Welcomed) -> None:
    ahead = welcomed.clock_ahead_s
    if abs(ahead) > MAX_CLOCK_DIFFERENCE_S:
        raise ConfigError(
            f"This machine's clock is {_duration(abs(ahead))} {'ahead of' if ahead > 0 else 'behind'} the swarm's.",
            hint="Set it, for example with `sudo timedatectl set-ntp true`; records of peers expire by the clock.",
        )


def _duration(seconds: float) -> str:
    for unit, size in (("days", 86400), ("h", 3600), ("min", 60)):
        if seconds >= 2 * size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def _refuse_other_recipe(mine: Recipe, theirs: Recipe) -> None:
    stages = theirs.potluck.stages if mine.potluck.stages == "auto" else mine.potluck.stages
    mine = resolved(mine, mine.max_steps or theirs.max_steps, stages)
    different = differing_fields(mine, theirs)
    if different:
        lines = "\n".join(f"  {name}: {a!r} here, {b!r} in the swarm" for name, a, b in different[:20])
        raise RunMismatch(
            f"Your recipe is not the swarm's:\n{lines}",
            hint="Join without a recipe to take the swarm's, or start a swarm of your own with `potluck start`.",
        )


async def _prepare_data(recipe: Recipe, model_folder: Path, say: Say) -> PreparedData:
    if not recipe.datasets:
        raise DataError(
            "There is nothing to train on.",
            hint="Give this node's own data with --data FILE (jsonl, json, csv, parquet, text, or a folder of them), "
            "or lend this machine to others with --lend.",
        )

    def work() -> PreparedData:
        return prepare(recipe, load_tokenizer(model_folder))

    data = await asyncio.to_thread(work)
    report = data.report
    say(f"{report.num_rows} rows: {report.num_train_tokens} tokens to train on, {report.num_held_out_tokens} held out.")
    for skipped in report.skipped:
        say(f"{skipped.path}: {skipped.count} bad rows left out, the first: {skipped.first}")
    for note in report.notes:
        say(note)
    return data


def _with_data(recipe: Recipe, paths: Sequence[Path]) -> Recipe:
    if not paths:
        return recipe
    return recipe.with_local({"datasets": tuple(DatasetSpec(path=str(path)).model_dump() for path in paths)})


def _find_stored(home: Home, origin: str) -> RunFolder | None:
    for folder in home.runs():
        try:
            if folder.load_local().origin == origin:
                return folder
        except NodeError:
            continue
    return None


def _remembered_base(folder: RunFolder) -> str | None:
    try:
        return folder.load_local().base_model
    except NodeError:
        return None


def _save(folder: RunFolder, origin: str, recipe: Recipe, base: BaseWeights) -> None:
    """Keep what this node needs to take part again."""
    if base.manifest is not None:
        folder.save_manifest(base.manifest.to_bytes())
    try:
        before = folder.load_local()
    except NodeError:
        before = LocalRun(base_model=str(base.folder))
    data = tuple(str(Path(spec.path).resolve()) if Path(spec.path).exists() else spec.path for spec in recipe.datasets)
    folder.save_local(
        before.model_copy(update={"origin": origin or before.origin, "data": data, "base_model": str(base.folder)})
    )


def _addresses(folder: RunFolder) -> tuple[str, ...]:
    return tuple(address for peer in folder.known_peers() for address in peer.addresses[:4])
