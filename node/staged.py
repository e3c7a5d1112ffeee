"""A model whose decoder layers are in the swarm, for the commands that use the result.

The ends (embedding, norm, head) are loaded here; hidden states go through the node that runs under the same home, which
brings them through all stages. So nothing needs the whole model, and the text stays on this machine.
"""

from __future__ import annotations

import secrets
from dataclasses import dataclass, field
from typing import Self

import torch
from torch import Tensor

from node.control.client import ControlClient
from node.core.types import NO_SHARD, LayerRange, Microbatch, StagePlan
from node.model.lora import LoraLinear
from node.model.shard import load_shard
from node.pipeline.wire import hidden_bytes, hidden_from
from node.result import Result
from node.specs import Cutting, load_spec
from node.v1 import control_pb2


@dataclass
class Text:
    """A text that grows; its beginning is kept by the holders of the stages, and here in case they lose it."""

    name: str = field(default_factory=lambda: secrets.token_hex(8))
    ids: list[int] = field(default_factory=list)


class SwarmModel:
    """The whole model over the swarm's stages; a context manager that holds the connection to the running node."""

    def __init__(self, result: Result, node: ControlClient, device: str) -> None:
        """Load the ends.

        Raises:
            ModelError: this machine has not even the ends of the base model.
        """
        # with no layers to load, one range stands for whatever cut the run has
        cutting = Cutting(StagePlan((LayerRange(0, 1),)), NO_SHARD, drives=True)
        spec = load_spec(result.recipe, device, cutting)
        self._ends = load_shard(result.base_folder, spec)
        self._node = node
        self._dtype = "float32" if spec.compute == "float32" else "bfloat16"
        self.config = self._ends.config
        self.device = self._ends.device
        self.linears: dict[str, LoraLinear] = {}

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._node.close()

    def evaluate(self, batch: Microbatch, *, adapter: bool = True) -> float:
        """Return the loss sum of a microbatch in nats, with or without the adapter."""
        ids, _ = self._ends.tensors(batch)
        hidden = self._run(self._ends.embed(ids), batch.lengths, adapter=adapter)
        assert hidden is not None, "whole documents need nothing that came before"
        return self._ends.evaluate_hidden(hidden, batch)

    def new_cache(self) -> Text:
        """Return an empty text."""
        return Text()

    def continue_text(self, input_ids: Tensor, cache: Text, *, adapter: bool = True) -> Tensor:
        """Return the logits [V], fp32, of the token after these [T], which continue the text in `cache`."""
        start = len(cache.ids)
        cache.ids.extend(int(token) for token in input_ids)
        hidden = self._continue(input_ids, start, cache, adapter=adapter)
        if hidden is None:  # a holder has lost what came before
            hidden = self._continue(torch.tensor(cache.ids, device=self.device), 0, cache, adapter=adapter)
        assert hidden is not None, "all of it was sent"
        return self._ends.next_logits(hidden)

    def _continue(self, ids: Tensor, start: int, text: Text, *, adapter: bool) -> Tensor | None:
        hidden = self._ends.embed(ids)
        return self._run(hidden, (len(ids),), adapter=adapter, text=text.name, start=start)

    def _run(
        self, hidden: Tensor, lengths: tuple[int, ...], *, adapter: bool, text: str = "", start: int = 0
    ) -> Tensor | None:
        request = control_pb2.RunStagesRequest(
            hidden=hidden_bytes(hidden, self._dtype),
            dtype=self._dtype,
            lengths=lengths,
            without_adapter=not adapter,
            text=text,
            start=start,
        )
        answer = self._node.run_stages(request)
        if answer.needs_all:
            return None
        return hidden_from(answer.hidden, self._dtype, lengths, self._ends.hidden_size).to(self.device)
