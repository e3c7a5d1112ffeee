"""Build a part of a model out of transformers' own modules, reading only the tensors that it holds.

The whole model is made on the meta device, what others hold is replaced by modules that pass their input on, and the
rest gets its weights tensor by tensor, quantised as they come. The family's own forward then still does positions,
layer types and residuals, and all names stay those of the whole model.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import AutoConfig, AutoModelForCausalLM

from node.core.errors import UnsupportedModel
from node.core.types import LayerRange
from node.model import attention
from node.model.families import read_config
from node.model.lora import LoraLinear, StepContext
from node.model.norms import RmsNorm
from node.model.quantization import DenseWeight, FrozenWeight, Nf4Weight
from node.model.spec import LoadSpec
from node.model.weights import TensorEntry, WeightReader

_EMBEDDING, _HEAD = "model.embed_tokens.weight", "lm_head.weight"
_DROPOUTS = ("attention_dropout", "resid_pdrop", "embd_pdrop")


class PassOn(nn.Module):
    """Stands where a module is that this shard does not hold."""

    def forward(self, hidden_states: Tensor, *_: Any, **__: Any) -> Tensor:
        """Return the hidden states as they came."""
        return hidden_states


@dataclass(frozen=True)
class Built:
    """A causal language model of transformers that holds some layers, and what its layers share."""

    model: Any
    layers: LayerRange | None
    """None if the spec asked for no layer."""
    linears: dict[str, LoraLinear]
    """All linear layers of the decoder layers held, by name, in the order of their names."""
    step: StepContext


def build(folder: Path, spec: LoadSpec) -> Built:
    """Build and load what `spec` names of the model in `folder`, without adapters.

    Only its tensors are read, one at a time; beside what is kept, no more is held than the largest of them takes.

    Raises:
        UnsupportedModel: The family is not supported, or the spec does not fit the model.
        WeightsMissing: A tensor is not there.
    """
    model, layers = _outline(folder, spec)
    dtype = _dtype_of(spec)
    step = StepContext()
    _materialise(model, folder, spec, dtype, step)
    _rebuild_buffers(model, spec.device)
    for name, module in list(model.named_modules()):
        if (norm := RmsNorm.of(module)) is not None:
            model.set_submodule(name, norm)
    model.train(spec.gradient_checkpointing)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    return Built(model, layers, dict(sorted(linears.items())), step)


def tensor_names(folder: Path, spec: LoadSpec, stored: Collection[str]) -> set[str]:
    """Return the names of the tensors that `build` reads, out of those that the model has `stored`.

    Of the folder only `config.json` is read.

    Raises:
        UnsupportedModel: The family is not supported, or the spec does not fit the model.
        WeightsMissing: There is no readable `config.json`.
    """
    model, _ = _outline(folder, spec)
    return set(_stored_names(model, stored).values())


def adapter_shapes(folder: Path, spec: LoadSpec) -> list[tuple[str, tuple[int, ...]]]:
    """Return name and shape of each parameter of the adapter on the layers that `spec` names; no weights are read.

    Raises:
        UnsupportedModel: The family is not supported, or the spec does not fit the model.
        WeightsMissing: There is no readable `config.json`.
    """
    model, _ = _outline(folder, spec)
    lora, shapes = spec.lora, list[tuple[str, tuple[int, ...]]]()
    for name, module in model.named_modules():
        is_chosen = lora.targets is None or name.rpartition(".")[2] in lora.targets
        if isinstance(module, nn.Linear) and ".layers." in name and is_chosen:
            shapes.append((f"{name}.lora_A.weight", (lora.r, module.in_features)))
            shapes.append((f"{name}.lora_B.weight", (module.out_features, lora.r)))
            if lora.use_dora:
                shapes.append((f"{name}.lora_magnitude_vector", (module.out_features,)))
    return shapes


def _outline(folder: Path, spec: LoadSpec) -> tuple[Any, LayerRange | None]:
    """Return the model with what `spec` holds of it on the meta device, and the layers held."""
    read_config(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config.use_cache = False
    for name in _DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    layers = spec.range_of(config.num_hidden_layers)
    if layers is not None and layers.stop > config.num_hidden_layers:
        raise UnsupportedModel(
            f"The model has {config.num_hidden_layers} layers, so it has no layers {layers.start} to {layers.stop}.",
            hint="Check `potluck.stages` in the recipe.",
        )
    attention.register()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME, dtype=_dtype_of(spec))
    base = model.model
    for index in range(len(base.layers)):
        if layers is None or not layers.start <= index < layers.stop:
            base.layers[index] = PassOn()
    if not spec.ends:
        base.embed_tokens, base.norm, model.lm_head = PassOn(), PassOn(), PassOn()
    return model, layers


def _dtype_of(spec: LoadSpec) -> torch.dtype:
    return torch.float32 if spec.compute == "float32" else torch.bfloat16


def _stored_names(model: Any, stored: Collection[str]) -> dict[str, str]:
    """Return for each parameter of `model` the name of the tensor that holds its value."""
    # A tied head is the same parameter twice, and would stay on the meta device if it were named once.
    names = {name: name for name, _ in model.named_parameters(remove_duplicate=False)}
    if _HEAD in names and _HEAD not in stored and model.lm_head.weight is model.model.embed_tokens.weight:
        names[_HEAD] = _EMBEDDING
    return names


def _materialise(model: Any, folder: Path, spec: LoadSpec, dtype: torch.dtype, step: StepContext) -> None:
    """Give every parameter of `model` its stored value, and replace the layers' linear modules by our own."""
    reader = WeightReader(folder)
    stored = _stored_names(model, reader.names)
    kept: dict[str, nn.Parameter] = {}
    linears: dict[str, dict[str, Any]] = {}
    order = {name: position for position, name in enumerate(reader.names)}
    try:
        for name in sorted(stored, key=lambda name: (order.get(stored[name], -1), name)):
            path, _, leaf = name.rpartition(".")
            module = model.get_submodule(path)
            _check(name, reader.entry(stored[name]), module.get_parameter(leaf).shape)
            if isinstance(module, nn.Linear) and ".layers." in name:
                parts = linears.setdefault(path, {"weight": None, "bias": None})
                tensor = reader.read(stored[name], dtype, spec.device)
                parts[leaf] = _frozen(tensor, spec, dtype) if leaf == "weight" else tensor
                continue
            if stored[name] not in kept:
                value = reader.read(stored[name], dtype, spec.device)
                kept[stored[name]] = nn.Parameter(value, requires_grad=False)
            module.register_parameter(leaf, kept[stored[name]])
    finally:
        reader.close()
    for path, parts in linears.items():
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, LoraLinear(path, parts["weight"], parts["bias"], step))


def _check(name: str, entry: TensorEntry, expected: torch.Size) -> None:
    """Refuse a tensor of another shape or kind than the configuration asks for, before anything is allocated."""
    if entry.shape != tuple(expected) or entry.float_type is None:
        raise UnsupportedModel(
            f"Tensor {name} is {entry.dtype} {list(entry.shape)}, and the configuration asks for {list(expected)}.",
            hint="Weights and config.json are not of the same model; download it again.",
        )


def _frozen(tensor: Tensor, spec: LoadSpec, dtype: torch.dtype) -> FrozenWeight:
    return DenseWeight(tensor) if spec.quantization == "none" else Nf4Weight.quantize(tensor, dtype)


def _rebuild_buffers(model: nn.Module, device: str) -> None:
    """Make the buffers that no file holds: rotary frequencies and Gemma's scale of the embedding."""
    for path, module in list(model.named_modules()):
        if path.rpartition(".")[2] == "rotary_emb":
            with torch.device(device):
                fresh = type(module)(config=model.config)
            model.set_submodule(path, fresh)
        elif hasattr(module, "scalar_embed_scale"):
            module.embed_scale = torch.tensor(module.scalar_embed_scale, device=device)
    left = [name for name, tensor in (*model.named_parameters(), *model.named_buffers()) if tensor.is_meta]
    assert not left, f"no value for {left}"
