"""What a founder fixes for all peers, since they must see the same schedule, the same end and the same cut."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from node.config.recipe import Recipe
from node.core.errors import ConfigError
from node.data.dataset import PreparedData
from node.holding import stages_of
from node.host.shapes import ModelShape
from node.model.families import read_config


def resolved(recipe: Recipe, max_steps: int | None, stages: int | Literal["auto"]) -> Recipe:
    """Return the recipe with its numbers of steps and stages fixed, for all peers alike."""
    potluck = recipe.potluck.model_copy(update={"stages": stages})
    return recipe.model_copy(update={"max_steps": max_steps, "num_epochs": None, "potluck": potluck})


def num_stages(recipe: Recipe, model_folder: Path) -> int:
    """Return into how many stages the founder cuts the model.

    Raises:
        ConfigError: the model has fewer layers.
    """
    shape = ModelShape.of(read_config(model_folder))
    stages = recipe.potluck.stages
    if stages == "auto":
        return stages_of(shape, nf4=recipe.load_in_4bit)
    if stages > shape.num_layers:
        raise ConfigError(
            f"potluck.stages: {stages}, but {recipe.base_model} has {shape.num_layers} layers.",
            hint="Cut it into fewer stages, or write stages: auto.",
        )
    return stages


def refuse_to_lend_a_whole_model(recipe: Recipe, *, lends: bool) -> None:
    """Raise ConfigError if this node has nothing to do but to hold stages, and the run has none."""
    if lends and recipe.potluck.stages == 1:
        raise ConfigError(
            "This swarm does not cut its model into stages, so there is nothing to lend.",
            hint="Join with data of your own (--data FILE), or found a swarm with `potluck.stages` above 1.",
        )


def total_steps(recipe: Recipe, data: PreparedData | None) -> int:
    """`num_epochs` means passes over the founder's data; the swarm together makes as many steps.

    Raises:
        ConfigError: the founder has no data to count by.
    """
    if recipe.num_epochs is None:
        assert recipe.max_steps is not None, "a recipe has one of the two"
        return recipe.max_steps
    if data is None:
        raise ConfigError(
            "num_epochs counts passes over the founder's data, and this founder only lends its machine.",
            hint="Write max_steps in the recipe, or found the swarm on a machine with data.",
        )
    tokens = sum(len(document) for document in data.train) * recipe.num_epochs
    steps = max(1, math.ceil(tokens / recipe.potluck.averaging.target_batch_tokens))
    return min(steps, recipe.max_steps or steps)
