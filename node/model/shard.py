"""The part of a model that this node holds: frozen weights, trainable adapters, forward and backward.

Legend: T tokens of a microbatch, H hidden size. Documents lie end to end; positions restart with each and attention
stays within it. Nothing here knows about peers, optimizers or files of a run.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import Cache, DynamicCache

from node.core.errors import UnsupportedModel
from node.core.types import IGNORED_LABEL, LayerRange, Microbatch
from node.model.build import Built, PassOn, build
from node.model.loss import SummedCrossEntropy
from node.model.spec import LoadSpec, LoraSpec

TextCache = Cache
"""Keys and values of one text; `ModelShard.new_cache` makes an empty one."""


def load_shard(folder: Path, spec: LoadSpec) -> ModelShard:
    """Load what `spec` names of the model in `folder`, with fresh adapters.

    Raises:
        UnsupportedModel: The model's family is not supported, or the spec does not fit the model.
        WeightsMissing: The model is incomplete.
    """
    built = build(folder, spec)
    return ModelShard(built, add_adapters(built, spec), spec)


def add_adapters(built: Built, spec: LoadSpec) -> dict[str, nn.Parameter]:
    """Give the linear layers that `spec` names fresh adapters; return their parameters in the order of their names.

    Raises:
        UnsupportedModel: The model has no layers of a name that is asked for.
    """
    targets = spec.lora.targets
    names = {name.rpartition(".")[2] for name in built.linears}
    if targets is not None and built.layers is not None and (unknown := sorted(set(targets) - names)):
        raise UnsupportedModel(
            f"The model has no linear layers named {', '.join(unknown)}.",
            hint=f"`lora_target_modules` may name {', '.join(sorted(names))}.",
        )
    parameters: dict[str, nn.Parameter] = {}
    for name, linear in built.linears.items():
        if targets is None or name.rpartition(".")[2] in targets:
            parameters.update(linear.add_adapter(spec.lora, spec.seed, spec.device))
    return dict(sorted(parameters.items()))


class ModelShard:
    """Some decoder layers of a model, and with `ends` also its embedding, final norm and head."""

    def __init__(self, built: Built, lora: dict[str, nn.Parameter], spec: LoadSpec) -> None:
        self.lora = lora
        """The adapters' fp32 masters by peft's names (without `base_model.model.`), in the order of the names.

        Whoever owns the optimizer may re-point `.data` and pre-assign `.grad`: gradients are added in place.
        """
        self.layers = built.layers
        self.config = built.model.config
        self.num_layers: int = self.config.num_hidden_layers
        self.hidden_size: int = self.config.hidden_size
        self.device = torch.device(spec.device)
        self.dtype = torch.float32 if spec.compute == "float32" else torch.bfloat16
        """Of the hidden states."""
        self.has_ends = spec.ends
        self.lora_spec: LoraSpec = spec.lora
        self.step = built.step
        self.linears = built.linears
        self._lm = built.model
        self._layers: Any = built.model.model
        self._embedding = self._layers.embed_tokens
        self._norm = self._layers.norm
        self._layers.norm = nn.Identity()  # `forward` is the decoder layers alone; the norm belongs to the head
        self._held: nn.ModuleList = self._layers.layers
        self._parts: dict[LayerRange, nn.ModuleList] = {}
        if spec.gradient_checkpointing:
            self._lm.gradient_checkpointing_enable({"use_reentrant": False})

    def embed(self, input_ids: Tensor) -> Tensor:
        """Return the hidden states [T, H] of the tokens [T] (int64) before the first layer."""
        assert self.has_ends, "this shard holds no embedding"
        with torch.no_grad():
            hidden: Tensor = self._embedding(input_ids)
        return hidden

    def forward(self, hidden: Tensor, lengths: Sequence[int], layers: LayerRange | None = None) -> Tensor:
        """Return the hidden states [T, H] after `layers` (None: all that are held).

        Args:
            hidden: [T, H] in the compute type.
            lengths: Lengths of the documents, which sum to T.
            layers: A part of the layers held.
        """
        self._choose(layers)
        positions = torch.cat([torch.arange(length, device=hidden.device) for length in lengths])
        output: Tensor = self._layers(
            inputs_embeds=hidden[None],
            position_ids=positions[None],
            use_cache=False,
            document_lengths=tuple(lengths),
        ).last_hidden_state
        return output[0]

    def lora_of(self, layers: LayerRange) -> dict[str, nn.Parameter]:
        """Return the adapters' parameters that belong to `layers`."""
        return {name: p for name, p in self.lora.items() if layers.start <= _layer_of(name) < layers.stop}

    def _choose(self, layers: LayerRange | None) -> None:
        """Let the decoder run `layers` alone; the family's own forward still numbers them as in the whole model."""
        if layers is None:
            self._layers.layers = self._held
            return
        if layers not in self._parts:
            held = range(len(self._held))
            self._parts[layers] = nn.ModuleList(
                self._held[index] if layers.start <= index < layers.stop else PassOn() for index in held
            )
        self._layers.layers = self._parts[layers]

    def loss_sum(self, hidden: Tensor, labels: Tensor, lengths: Sequence[int]) -> Tensor:
        """Return the sum of the cross entropy over all labels, in nats, a fp32 scalar with a gradient.

        `labels[t]` is the token at t itself, or `IGNORED_LABEL`; it is predicted from `hidden[t - 1]`, and the first
        label of a document never counts, whatever it is.

        Args:
            hidden: [T, H] after the last layer.
            labels: [T] int64.
            lengths: Lengths of the documents, which sum to T.
        """
        assert self.has_ends, "this shard holds no head"
        targets = labels.clone()
        targets[_first_positions(lengths, labels.device)] = IGNORED_LABEL
        predicted = torch.nonzero(targets != IGNORED_LABEL)[:, 0]
        # Rows without a label cost nothing: on chat data that is often the larger part of the head's work.
        rows = self._norm(hidden.index_select(0, predicted - 1))
        head = self._lm.lm_head.weight
        loss: Tensor = SummedCrossEntropy.apply(rows, head, targets[predicted], self._softcap())  # type: ignore[no-untyped-call]
        return loss

    def loss_and_gradient(self, hidden: Tensor, batch: Microbatch) -> tuple[float, Tensor]:
        """Return the loss sum of a microbatch in nats, and its gradient [T, H] for `hidden` [T, H]."""
        _, labels = self.tensors(batch)
        leaf = hidden.detach().requires_grad_()
        loss = self.loss_sum(leaf, labels, batch.lengths)
        loss.backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None, "autograd gives a leaf its gradient"
        return float(loss.detach()), leaf.grad

    def train_microbatch(self, batch: Microbatch, *, dropout_seed: int) -> float:
        """Run forward and backward of the summed loss; add to the adapters' gradients; return the loss sum in nats.

        The shard must hold the whole model. The same seed gives the same dropout masks.
        """
        input_ids, labels = self.tensors(batch)
        self.step.adapter, self.step.dropout_seed = True, dropout_seed
        hidden = self.forward(self.embed(input_ids), batch.lengths)
        loss = self.loss_sum(hidden, labels, batch.lengths)
        loss.backward()  # type: ignore[no-untyped-call]
        return float(loss.detach())

    def evaluate(self, batch: Microbatch, *, adapter: bool = True) -> float:
        """Return the loss sum in nats without dropout and without touching gradients, with or without the adapter."""
        input_ids, labels = self.tensors(batch)
        self.step.adapter, self.step.dropout_seed = adapter, None
        with torch.no_grad():
            hidden = self.forward(self.embed(input_ids), batch.lengths)
            return float(self.loss_sum(hidden, labels, batch.lengths))

    def evaluate_hidden(self, hidden: Tensor, batch: Microbatch) -> float:
        """Return the loss sum in nats of a microbatch whose hidden states [T, H] came out of the last layer."""
        _, labels = self.tensors(batch)
        with torch.no_grad():
            return float(self.loss_sum(hidden, labels, batch.lengths))

    def logits(self, input_ids: Tensor, lengths: Sequence[int], *, adapter: bool = True) -> Tensor:
        """Return the logits [T, V] of the tokens [T] in documents of these lengths, without a gradient."""
        self.step.adapter, self.step.dropout_seed = adapter, None
        with torch.no_grad():
            logits: Tensor = self._lm.lm_head(self._norm(self.forward(self.embed(input_ids), lengths)))
        softcap = self._softcap()
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    def new_cache(self) -> Cache:
        """Return an empty cache of keys and values for `continue_text`."""
        return DynamicCache(config=self.config)

    def continue_text(self, input_ids: Tensor, cache: Cache, *, adapter: bool = True) -> Tensor:
        """Return the logits [V], fp32, of the token after these, without a gradient. The shard holds the whole model.

        Args:
            input_ids: [T] int64: with an empty cache the whole text so far, afterwards one token at a time.
            cache: What `new_cache` gave; the tokens are added to it. One cache belongs to one text, with or without
                the adapter throughout.
            adapter: Whether the adapter takes part.
        """
        hidden = self.continue_hidden(self.embed(input_ids), cache.get_seq_length(), cache, None, adapter=adapter)
        return self.next_logits(hidden)

    def continue_hidden(
        self, hidden: Tensor, start: int, cache: Cache, layers: LayerRange | None, *, adapter: bool = True
    ) -> Tensor:
        """Return the hidden states [T, H] of a text's next tokens after `layers`, without a gradient.

        Args:
            hidden: [T, H] before these layers.
            start: Tokens of the text that are in the cache.
            cache: Of these layers and this text alone; the tokens are added to it.
            layers: A part of the layers held; None for all.
            adapter: Whether the adapter takes part.
        """
        self.step.adapter, self.step.dropout_seed = adapter, None
        self._choose(layers)
        positions = torch.arange(start, start + len(hidden), device=self.device)
        with torch.no_grad():
            output: Tensor = self._layers(
                inputs_embeds=hidden[None],
                position_ids=positions[None],
                cache=cache,
                use_cache=True,
                document_lengths=(len(hidden),),
            ).last_hidden_state[0]
        return output

    def next_logits(self, hidden: Tensor) -> Tensor:
        """Return the logits [V], fp32, of the token after the last of `hidden` [T, H], without a gradient."""
        with torch.no_grad():
            logits: Tensor = self._lm.lm_head(self._norm(hidden[-1])).float()
        softcap = self._softcap()
        return logits if softcap is None else softcap * torch.tanh(logits / softcap)

    def _softcap(self) -> float | None:
        softcap: float | None = getattr(self.config, "final_logit_softcapping", None)
        return softcap

    def tensors(self, batch: Microbatch) -> tuple[Tensor, Tensor]:
        """Return the token ids and the labels of a microbatch, [T] int64 each, on the device."""
        assert self.has_ends, "only a shard with embedding and head can run a microbatch alone"
        input_ids = torch.frombuffer(batch.input_ids, dtype=torch.int32).to(self.device, torch.int64)
        labels = torch.frombuffer(batch.labels, dtype=torch.int32).to(self.device, torch.int64)
        return input_ids, labels


def _layer_of(name: str) -> int:
    """Return the index of the decoder layer in a parameter's name, such as `model.layers.17.mlp.up_proj...`."""
    return int(name.partition(".layers.")[2].partition(".")[0])


def _first_positions(lengths: Sequence[int], device: torch.device) -> Tensor:
    starts = [0]
    for length in lengths[:-1]:
        starts.append(starts[-1] + length)
    return torch.tensor(starts, device=device)
