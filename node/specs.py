"""What a recipe asks for, in the model room's terms. Loads nothing that trains, so that a plan is there at once."""

from __future__ import annotations

from dataclasses import dataclass

from node.config.recipe import Recipe
from node.core.types import Shard, StagePlan
from node.host.devices import describe
from node.model.spec import LoadSpec, LoraSpec


@dataclass(frozen=True)
class Cutting:
    """What of the model this node holds."""

    plan: StagePlan
    held: Shard
    """In a run of one stage always that one."""
    drives: bool
    """Whether it has data of its own, and so the model's ends."""


def lora_spec(recipe: Recipe) -> LoraSpec:
    """Return the recipe's adapter in the model room's terms."""
    return LoraSpec(
        r=recipe.lora_r,
        alpha=recipe.lora_alpha,
        dropout=recipe.lora_dropout,
        targets=None if recipe.lora_target_linear else recipe.lora_target_modules,
        use_rslora=recipe.peft_use_rslora,
        use_dora=recipe.peft_use_dora,
    )


def load_spec(recipe: Recipe, device: str, cutting: Cutting | None = None) -> LoadSpec:
    """Return what to load for the recipe on `device`, in the model room's terms; the whole model without a cutting."""
    is_bf16 = recipe.bf16 if isinstance(recipe.bf16, bool) else describe(device).has_bf16
    layers = cutting.held.layers(cutting.plan) if cutting is not None else None
    return LoadSpec(
        lora=lora_spec(recipe),
        layers=layers,
        holds_layers=cutting is None or layers is not None,
        ends=cutting is None or cutting.drives,
        quantization="nf4" if recipe.load_in_4bit else "none",
        compute="bfloat16" if is_bf16 else "float32",
        device=device,
        seed=recipe.seed,
        gradient_checkpointing=recipe.gradient_checkpointing,
    )
