"""What a home's run has come to, for the commands that use the result: evaluation, chat and export.

The latest checkpoint is the result. A node that is running is asked to save first, so that what is read here is
what it holds now.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load as load_safetensors
from torch import Tensor

from node.config.recipe import Recipe
from node.config.sections import DatasetSpec
from node.control.client import ControlClient, running_pid
from node.core.errors import CheckpointError
from node.export.peft import AdapterCard
from node.host.home import Home, LocalRun
from node.model.shard import ModelShard
from node.training.checkpoint import CheckpointStore

_VALUES = "values/"


@dataclass(frozen=True)
class Result:
    """An adapter with everything that is needed to use it."""

    recipe: Recipe
    local: LocalRun
    version: int
    tensors: Mapping[str, Tensor]
    """By peft's names, fp32 on the CPU."""
    counters: Mapping[str, int]
    num_stages: int
    """Into which the run cuts the model; with more than one, this machine may hold a part of the base model only."""

    @property
    def base_folder(self) -> Path:
        """The base model on this machine."""
        return Path(self.local.base_model)

    @property
    def name(self) -> str:
        """The run's name, for people."""
        return self.recipe.potluck.name or Path(self.recipe.base_model).name

    def card(self, *, base_loss: float | None = None, adapter_loss: float | None = None) -> AdapterCard:
        """Return what the model card says."""
        return AdapterCard(
            name=self.name,
            rounds=self.version,
            tokens=self.counters.get("committed_tokens", 0),
            contributors=max(1, self.counters.get("contributors", 1)),
            base_loss=base_loss,
            adapter_loss=adapter_loss,
        )


def open_result(home: Path, *, data: tuple[Path, ...] = ()) -> Result:
    """Read the latest result under `home`.

    Args:
        home: A node's home; the node may be running.
        data: Files that replace the run's data, for evaluation.

    Raises:
        ConfigError: there is no run under this home.
        CheckpointError: nothing was saved yet, or nothing whole.
    """
    folder = Home(home).current_run()
    sealed, local = folder.load_seal(), folder.load_local()
    recipe = Recipe.from_shared_json(sealed.seal.recipe)
    num_stages = recipe.potluck.stages if isinstance(recipe.potluck.stages, int) else 1
    gathered: tuple[int, int, Mapping[int, bytes]] | None = None
    if running_pid(home) is not None:
        with ControlClient(home) as node:
            node.save_checkpoint()
            if num_stages > 1:
                header, by_stage = node.gather_adapter()
                gathered = (header.version, header.committed_tokens, by_stage)
    checkpoint = CheckpointStore(folder.checkpoints, read_only=True).load_latest(sealed.seal.fingerprint)
    if checkpoint is None and gathered is None:
        raise CheckpointError(
            f"The run under {home} has not saved anything yet.", hint="Let it make a step first (`potluck status`)."
        )
    counters = dict(checkpoint.counters) if checkpoint is not None else {}
    if gathered is not None:
        version, counters["committed_tokens"], adapters = gathered
    else:
        assert checkpoint is not None, "there is one or the other"
        version, adapters = checkpoint.version, checkpoint.adapters
    if missing := sorted(set(range(num_stages)) - adapters.keys()):
        raise CheckpointError(
            f"This node's checkpoint holds {len(adapters)} of the {num_stages} stages of the model; "
            f"it lacks stage {', '.join(map(str, missing))}.",
            hint="Start the node again (the command that it was started with), so that the swarm gives the rest, or do "
            "this on a node that holds all stages.",
        )
    tensors: dict[str, Tensor] = {}
    for content in adapters.values():
        loaded = load_safetensors(content)
        tensors |= {name.removeprefix(_VALUES): t for name, t in loaded.items() if name.startswith(_VALUES)}
    paths = [str(path) for path in data] or list(local.data)
    recipe = recipe.with_local({"datasets": tuple(DatasetSpec(path=path).model_dump() for path in paths)})
    return Result(recipe, local, version, tensors, counters, num_stages)


def put_into(shard: ModelShard, tensors: Mapping[str, Tensor]) -> None:
    """Copy an adapter's values into a loaded model.

    Raises:
        CheckpointError: they are not this model's.
    """
    if shard.lora.keys() != tensors.keys():
        raise CheckpointError("The saved adapter is not one for this base model.", hint="Check --base-model.")
    with torch.no_grad():
        for name, parameter in shard.lora.items():
            parameter.copy_(tensors[name])
