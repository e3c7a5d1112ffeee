"""What to load: plain values that name a part of a model, its precision and its adapter. Torch-free."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from node.core.types import LayerRange

Quantization = Literal["nf4", "none"]
Compute = Literal["bfloat16", "float32"]


@dataclass(frozen=True, slots=True)
class LoraSpec:
    """A LoRA adapter in peft's terms (arXiv 2106.09685; rsLoRA arXiv 2312.03732; DoRA arXiv 2402.09353)."""

    r: int
    alpha: float
    dropout: float = 0.0
    """Probability that one input value of an adapter is zeroed while training."""
    targets: tuple[str, ...] | None = None
    """Short names of the linear layers that get an adapter, e.g. `q_proj`; None means every one of the layers."""
    use_rslora: bool = False
    use_dora: bool = False

    def __post_init__(self) -> None:
        assert self.r >= 1, f"rank {self.r} is not positive"
        assert 0.0 <= self.dropout < 1.0, f"dropout {self.dropout} is no probability below 1"

    @property
    def scaling(self) -> float:
        """The factor on B·A."""
        return self.alpha / (self.r**0.5 if self.use_rslora else self.r)


@dataclass(frozen=True, slots=True)
class LoadSpec:
    """Which part of a model to hold, and how."""

    lora: LoraSpec
    layers: LayerRange | None = None
    """The decoder layers to hold; None means all."""
    holds_layers: bool = True
    """False holds no decoder layer at all: with `ends`, what a node needs that only sends its data through others."""
    ends: bool = True
    """Whether to hold the embedding, the final norm and the head too."""
    quantization: Quantization = "nf4"
    compute: Compute = "bfloat16"
    device: str = "cpu"
    seed: int = 0
    """Seed of the adapter's start: the same on every replica of a run."""
    gradient_checkpointing: bool = False
    """Keep only each layer's input and recompute the rest in the backward: less memory, a third more time."""

    def __post_init__(self) -> None:
        assert self.holds_layers or self.layers is None, f"no layers at all, and yet the layers {self.layers}"

    def range_of(self, num_layers: int) -> LayerRange | None:
        """Return the layers held of a model of `num_layers`; None if none are."""
        if not self.holds_layers:
            return None
        return self.layers or LayerRange(0, num_layers)
