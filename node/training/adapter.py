"""All trainable parameters of one stage as one flat buffer, with what the optimizer keeps beside them.

One buffer means one thing to average, one optimizer operation and one hash. The model goes on seeing ordinary
parameters: their `data` and `grad` are views into the buffers here. Everything in this file runs on the engine's
thread, except for what takes or gives an `AdapterState` or `SealedGradient`, which are copies.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from node.training.optimizer import AdamWSettings, adamw_step, clip_scale
from node.training.state import AdapterState, Layout, decode, encode


@dataclass(frozen=True)
class SealedGradient:
    """What a replica brings to one averaging round."""

    version: int
    """The adapter version that the gradient was computed at."""
    base_hash: str
    """`StageAdapter.digest()` at that version."""
    gradient: Tensor
    """Sum of the gradients of all its microbatches, [N] fp32 on the CPU."""
    weight: int
    """Label tokens behind the sum: the mean over all replicas divides by the sum of these."""
    tokens: int
    """Tokens that went through the model for it."""


@dataclass(frozen=True, slots=True)
class StepInfo:
    """How one optimizer step went."""

    gradient_norm: float
    """Of the mean gradient, before clipping."""
    clipped: bool


class StageAdapter:
    """The LoRA parameters of one stage, their accumulated gradient and their Adam moments.

    `values`, `gradients`, `exp_avg` and `exp_avg_sq` are [N] fp32 on the parameters' device. The parameters' `grad`
    stay views of `gradients` for good: autograd adds into them, and nobody may set them to None.
    """

    def __init__(self, stage: int, parameters: Mapping[str, nn.Parameter]) -> None:
        """Take over `parameters`: their values are copied into the flat buffer and they become views of it.

        Args:
            stage: The stage's index in the run's plan.
            parameters: fp32 parameters by canonical name, all on one device.
        """
        self.stage = stage
        self._parameters = dict(parameters)
        self.layout = Layout.of([(name, tuple(p.shape)) for name, p in parameters.items()])
        device = next(iter(parameters.values())).device
        for name, parameter in parameters.items():
            assert parameter.dtype == torch.float32, f"{name} is {parameter.dtype}: the masters must be fp32"
            assert parameter.device == device, f"{name} is on {parameter.device}, others are on {device}"
        self.values, self.gradients, self.exp_avg, self.exp_avg_sq = (
            torch.zeros(self.layout.numel, dtype=torch.float32, device=device) for _ in range(4)
        )
        self.version = 0
        self.committed_tokens = 0
        self.weight = 0
        self.tokens = 0
        self._digest: str | None = None
        gradients = self.layout.views(self.gradients)
        for name, view in self.layout.views(self.values).items():
            parameter = parameters[name]
            view.copy_(parameter.data)
            parameter.data = view
            parameter.grad = gradients[name]

    @contextlib.contextmanager
    def muted(self) -> Iterator[None]:
        """Let a backward run without adding to the accumulator: this stage has counted the microbatch already."""
        gradients = {name: p.grad for name, p in self._parameters.items()}
        scratch = self.layout.views(torch.zeros_like(self.gradients))
        for name, parameter in self._parameters.items():
            parameter.grad = scratch[name]
        try:
            yield
        finally:
            for name, parameter in self._parameters.items():
                parameter.grad = gradients[name]

    def count(self, tokens: int, weight: int) -> None:
        """Note that one more microbatch's gradient is in the accumulator.

        Args:
            tokens: Tokens that went through the model.
            weight: Tokens among them that took part in the loss.
        """
        assert 0 <= weight <= tokens, f"{weight} labels among {tokens} tokens"
        self.tokens += tokens
        self.weight += weight

    def seal(self) -> SealedGradient:
        """Hand out what has accumulated; later microbatches start from zero.

        Costs one copy of [N]. The buffer itself stays, since the parameters' `grad` point into it.
        """
        sealed = SealedGradient(
            version=self.version,
            base_hash=self.digest(),
            gradient=self.gradients.to("cpu", copy=True),
            weight=self.weight,
            tokens=self.tokens,
        )
        self.discard()
        return sealed

    def give_back(self, sealed: SealedGradient) -> None:
        """Add to the accumulator what a dropped round did not use, also if the version has moved on since."""
        assert sealed.gradient.shape == self.gradients.shape, "this gradient belongs to another stage"
        self.gradients.add_(sealed.gradient.to(self.gradients.device))
        self.weight += sealed.weight
        self.tokens += sealed.tokens

    def discard(self) -> None:
        """Forget what has accumulated."""
        self.gradients.zero_()
        self.weight = self.tokens = 0

    def step(self, mean: Tensor, norm_sq: float, tokens: int, settings: AdamWSettings, lr: float) -> StepInfo:
        """Make the optimizer step of one committed round; the version grows by one.

        Equal arguments on equal state give equal bits on every machine.

        Args:
            mean: The round's mean gradient, [N] fp32 on the CPU, checked for finiteness; left as it is.
            norm_sq: Its squared norm as the round's result carries it. A norm computed here would differ from
                the others' in the last bits, and so would everything after it.
            tokens: Tokens of all members together.
            settings: The recipe's optimizer.
            lr: The rate of this step, `learning_rate(schedule, version)`.
        """
        assert mean.shape == self.values.shape, f"a mean of {tuple(mean.shape)} for {tuple(self.values.shape)}"
        assert 0 <= norm_sq < math.inf, f"a squared norm of {norm_sq}"
        norm = math.sqrt(norm_sq)
        scale = clip_scale(norm, settings.max_grad_norm)
        adamw_step(
            self.values,
            mean.to(self.values.device),
            self.exp_avg,
            self.exp_avg_sq,
            step=self.version + 1,
            lr=lr,
            settings=settings,
            scale=scale,
        )
        self.version += 1
        self.committed_tokens += tokens
        self._digest = None
        return StepInfo(gradient_norm=norm, clipped=scale < 1.0)

    def digest(self) -> str:
        """Return the hex hash of version, committed tokens, layout, values and moments; computed once a version."""
        if self._digest is None:
            self._digest = self._borrowed_state().digest(self.layout)
        return self._digest

    def state(self) -> AdapterState:
        """Return a copy of this version on the CPU, without the accumulator."""
        copies = (t.to("cpu", copy=True) for t in (self.values, self.exp_avg, self.exp_avg_sq))
        return AdapterState(self.version, self.committed_tokens, *copies)

    def load_state(self, state: AdapterState) -> None:
        """Go to another version; the accumulator stays, since its microbatches are nobody else's.

        Raises:
            CheckpointError: The state cannot be one of this stage; nothing has changed.
        """
        state.check(self.layout)
        self.values.copy_(state.values)
        self.exp_avg.copy_(state.exp_avg)
        self.exp_avg_sq.copy_(state.exp_avg_sq)
        self.version = state.version
        self.committed_tokens = state.committed_tokens
        self._digest = None

    def tensors(self) -> dict[str, Tensor]:
        """Return copies of the parameters by canonical name on the CPU: what an export writes."""
        return {name: view.clone() for name, view in self.layout.views(self.values.to("cpu")).items()}

    def to_bytes(self) -> bytes:
        """Return this version as a safetensors file (`node.training.state.encode`)."""
        return encode(self._borrowed_state(), self.layout, digest=self.digest())

    def from_bytes(self, data: bytes, *, digest: str | None = None) -> None:
        """Go to the version in `data`, after every check.

        Args:
            data: What another replica's `to_bytes` returned.
            digest: The hash that the swarm announced for it, if there is one to hold it against.

        Raises:
            CheckpointError: The bytes are refused; nothing has changed.
        """
        self.load_state(decode(data, self.layout, digest=digest))

    def _borrowed_state(self) -> AdapterState:
        """Return this version without a copy where the buffers are on the CPU: for use within one call."""
        return AdapterState(
            self.version, self.committed_tokens, self.values.cpu(), self.exp_avg.cpu(), self.exp_avg_sq.cpu()
        )
