"""A recipe's base model: whether its files are here and whole, and whether it fits."""

from __future__ import annotations

from pathlib import Path

from node.agreed import num_stages, resolved
from node.config.local import LocalSettings
from node.config.recipe import Recipe
from node.core.errors import NodeError
from node.doctor.finding import Finding, fail, ok, warn
from node.holding import Room, pick_shard
from node.host.devices import describe, pick_device
from node.host.shapes import ModelShape
from node.model.families import read_config
from node.model.source import load_tokenizer, local_base_model
from node.model.weights import read_header, weight_files
from node.specs import load_spec


def model_files(recipe: Recipe, cache: Path) -> tuple[Finding, Path | None]:
    """Say whether the base model's files are here and can be read, and return their folder if they are.

    The headers and lengths of all files are read, not the tensors: their hashes are checked when training starts.
    """
    name = recipe.base_model
    try:
        folder = local_base_model(name, cache=cache, revision=recipe.revision_of_model)
        if folder is None:
            if Path(name).expanduser().is_absolute() or name.startswith(".") or name.endswith(".gguf"):
                return fail("model", f"There is no model at {name}.", "check base_model in the recipe"), None
            text = f"{name} is not on this machine; it comes from the hub, or from the swarm's peers."
            return warn("model", text, f"hf download {name} fetches it beforehand"), None
        read_config(folder)
        files = sorted(set(weight_files(folder).values()))
        tensors = sum(len(read_header(file)) for file in files)
        load_tokenizer(folder)
    except NodeError as error:
        return fail("model", error.message, error.hint), None
    size = sum(file.stat().st_size for file in files)
    return ok(
        "model", f"{name}: {tensors} tensors in {len(files)} files, {size / 2**30:.1f} GiB, all headers whole"
    ), folder


def room(recipe: Recipe, folder: Path, settings: LocalSettings) -> Finding:
    """Say what of the model this machine can hold, driven by its own data and with nobody else there."""
    try:
        device = pick_device(settings.device)
        shape = ModelShape.of(read_config(folder))
        recipe = resolved(recipe, recipe.max_steps, num_stages(recipe, folder))
        bf16 = load_spec(recipe, device).compute == "bfloat16"
        has = Room.of(recipe, shape, describe(device), settings, drives=True, bf16=bf16)
        shard = pick_shard(has, settings, (), before=(), lends=False)
    except NodeError as error:
        return fail("room", error.message, error.hint or "potluck plan RECIPE says what would fit")
    if not has.num_stages and has.plan.num_stages == 1:
        text = f"The model does not fit on {device}: {has.free_bytes / 2**30:.1f} GiB is free there."
        return fail("room", text, "potluck plan RECIPE says what is needed; potluck.stages: auto cuts it into parts")
    if shard.stop_stage - shard.first_stage < has.plan.num_stages:
        text = f"{device} can hold {has.layers_text(shard)} of {shape.num_layers}; the rest must be in the swarm."
        return warn("room", text, "potluck plan RECIPE --peers 8GB,12GB says which machines would do")
    return ok("room", f"the whole model fits on {device}")
