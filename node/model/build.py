"""Build a part of a model out of transformers' own modules, reading only the tensors that it holds.

The whole model is made on the meta device, what others hold is replaced by modules that pass their input on, and the
rest gets its weights tensor by tensor, quantised as they come. The family's own forward then still does positions,
layer types and residuals, and all names stay those of the whole model.
"""

from __future__ import annotations

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
from node.model.weights import WeightReader

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

    Raises:
        UnsupportedModel: The family is not supported, or the spec does not fit the model.
        WeightsMissing: A tensor is not there.
    """
    read_config(folder)
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    config.use_cache = False
    for name in _DROPOUTS:
        if hasattr(config, name):
            setattr(config, name, 0.0)
    dtype = torch.float32 if spec.compute == "float32" else torch.bfloat16
    attention.register()
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(config, attn_implementation=attention.NAME, dtype=dtype)
    layers = spec.range_of(config.num_hidden_layers)
    if layers is not None and layers.stop > config.num_hidden_layers:
        raise UnsupportedModel(
            f"The model has {config.num_hidden_layers} layers, so it has no layers {layers.start} to {layers.stop}.",
            hint="Check `potluck.stages` in the recipe.",
        )
    base = model.model
    for index in range(len(base.layers)):
        if layers is None or not layers.start <= index < layers.stop:
            base.layers[index] = PassOn()
    if not spec.ends:
        base.embed_tokens, base.norm, model.lm_head = PassOn(), PassOn(), PassOn()
    step = StepContext()
    _materialise(model, folder, spec, dtype, step)
    _rebuild_buffers(model, spec.device)
    for name, module in list(model.named_modules()):
        if (norm := RmsNorm.of(module)) is not None:
            model.set_submodule(name, norm)
    model.train(spec.gradient_checkpointing)
    linears = {name: module for name, module in model.named_modules() if isinstance(module, LoraLinear)}
    return Built(model, layers, dict(sorted(linears.items())), step)


def _materialise(model: nn.Module, folder: Path, spec: LoadSpec, dtype: torch.dtype, step: StepContext) -> None:
    """Give every parameter of `model` its stored value, and replace the layers' linear modules by our own."""
    reader = WeightReader(folder)
    # A tied head is the same parameter twice, and would stay on the meta device if it were named once.
    wanted = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    stored = {name: (name if name in reader else "model.embed_tokens.weight") for name in wanted}
    kept: dict[str, nn.Parameter] = {}
    linears: dict[str, dict[str, Any]] = {}
    order = {name: position for position, name in enumerate(reader.names)}
    for name in sorted(wanted, key=lambda name: (order.get(stored[name], -1), name)):
        path, _, leaf = name.rpartition(".")
        module = model.get_submodule(path)
        tensor = reader.read(stored[name])
        expected = module.get_parameter(leaf).shape
        if tensor.shape != expected or not tensor.is_floating_point():
            raise UnsupportedModel(
                f"Tensor {name} is {tensor.dtype} {list(tensor.shape)}, and the configuration asks for "
                f"{list(expected)}.",
                hint="Weights and config.json are not of the same model; download it again.",
            )
        if isinstance(module, nn.Linear) and ".layers." in name:
            parts = linears.setdefault(path, {"weight": None, "bias": None})
            parts[leaf] = _frozen(tensor, spec, dtype) if leaf == "weight" else _own(tensor, spec.device, dtype)
            continue
        if stored[name] not in kept:
            kept[stored[name]] = nn.Parameter(_own(tensor, spec.device, dtype), requires_grad=False)
        module.register_parameter(leaf, kept[stored[name]])
    reader.close()
    for path, parts in linears.items():
        parent, _, leaf = path.rpartition(".")
        setattr(model.get_submodule(parent), leaf, LoraLinear(path, parts["weight"], parts["bias"], step))


def _own(tensor: Tensor, device: str, dtype: torch.dtype) -> Tensor:
    """Return a copy: a tensor as read is a view of the mapped file and would keep all of it in memory."""
    return tensor.to(device=device, dtype=dtype, copy=True)


def _frozen(tensor: Tensor, spec: LoadSpec, dtype: torch.dtype) -> FrozenWeight:
    if spec.quantization == "none":
        return DenseWeight(_own(tensor, spec.device, dtype))
    return Nf4Weight.quantize(tensor.to(spec.device, dtype), dtype)


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
