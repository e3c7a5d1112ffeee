"""What a run needs, by arithmetic: memory on the device and beside it, bytes on the wire. No weights are loaded.

The activations are those that `node/model` keeps for the backward, counted in its code and checked against it by the
tests, as is the whole against the peak of a real process.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from node.host.shapes import FAMILIES, Linear, ModelShape

NF4_BYTES_PER_WEIGHT = 1 / 2 + 1 / 64 + 4 / (64 * 256)
"""4 bits, a scale of 8 bits for 64 weights, and a scale of 32 bits for 256 of those scales (arXiv 2305.14314)."""

PROCESS_BYTES = 560 << 20
"""Interpreter, torch, transformers, hivemind, tokenizer: measured in a node before it loads weights."""

CUDA_CONTEXT_BYTES = 500 << 20
"""What CUDA and its libraries take on the device. An estimate."""

CPU_CONTEXT_BYTES = 90 << 20
"""Code that oneDNN makes for each product, its scratch space, and what the load leaves in the heap: measured."""

CPU_HEAP_FACTOR = 1.38
"""The heap over what lives in it while a microbatch comes and goes, with glibc's allocator: measured.

Its threshold for handing memory back can be lowered (`MALLOC_MMAP_THRESHOLD_=65536`): the factor is then 1.0, and a
step takes half as long again.
"""

SAFETY = 1.1
"""The margin that `fits` asks for: longer documents, another allocator, other programs."""

_LOGITS_CHUNK_BYTES = 64 << 20
"""Logits in the compute type that exist at one time (`node.model.loss`)."""

_LOGITS_BLOCK_BYTES = 4 << 20
"""fp32 logits that are worked on at one time (`node.model.loss`)."""


@dataclass(frozen=True, slots=True)
class AdapterShape:
    """What determines how large an adapter is."""

    rank: int
    targets: tuple[str, ...] | None = None
    """Short names of the layers with an adapter; None means all."""
    use_dora: bool = False

    def layer_numel(self, shape: ModelShape) -> int:
        """Return the trainable numbers of one decoder layer."""
        return sum(
            self.rank * (linear.inputs + linear.outputs) + (linear.outputs if self.use_dora else 0)
            for linear in self.chosen(shape)
        )

    def chosen(self, shape: ModelShape) -> list[Linear]:
        """Return the matrices of one layer that have an adapter."""
        return [linear for linear in shape.linears if self.targets is None or linear.name in self.targets]


@dataclass(frozen=True, slots=True)
class Workload:
    """What one node does with the model."""

    tokens: int
    """Tokens of a microbatch."""
    quantization: Literal["nf4", "none"] = "nf4"
    compute: Literal["bfloat16", "float32"] = "bfloat16"
    gradient_checkpointing: bool = False
    on_gpu: bool = False
    num_layers: int | None = None
    """Decoder layers that this node holds; None means all."""
    ends: bool = True
    """Whether it holds embedding and head, that is, trains on data of its own."""


@dataclass(frozen=True, slots=True)
class MemoryPlan:
    """Bytes by what they are for. On a CPU all of them are main memory."""

    weights: int
    """Frozen decoder layers."""
    embedding_head: int
    adapter: int
    """fp32 masters."""
    optimizer: int
    """Two fp32 moments."""
    accumulators: int
    """The summed gradient, fp32."""
    activations: int
    """Kept from the forward for the backward."""
    workspace: int
    """The largest temporaries of one layer's backward."""
    logits: int
    """One chunk of logits, and the gradient of the last hidden states."""
    allocator: int
    """What the CPU's heap cannot give back between one tensor and the next."""
    context: int
    """Of the libraries that compute."""
    process: int
    """Main memory of the program itself."""
    averaging: int
    """Main memory of a round: what was sealed, the mean, and what arrives from others."""

    @property
    def device_bytes(self) -> int:
        """What the compute device needs."""
        on_device = self.weights + self.embedding_head + self.adapter + self.optimizer + self.accumulators
        on_device += self.activations + self.workspace + self.logits + self.allocator + self.context
        return on_device

    @property
    def host_bytes(self) -> int:
        """What the program needs in main memory beside the device's part."""
        return self.process + self.averaging

    @property
    def total_bytes(self) -> int:
        """Everything together: what a machine without a GPU needs."""
        return self.device_bytes + self.host_bytes


def plan_memory(shape: ModelShape, adapter: AdapterShape, work: Workload) -> MemoryPlan:
    """Return what training needs while a microbatch is at its peak."""
    layers = shape.num_layers if work.num_layers is None else work.num_layers
    item = 2 if work.compute == "bfloat16" else 4
    per_weight = NF4_BYTES_PER_WEIGHT if work.quantization == "nf4" else item
    trainable = layers * adapter.layer_numel(shape)
    kept = layer_activation_bytes(shape, adapter, work.tokens, item)
    inputs = work.tokens * shape.hidden * item
    activations = layers * inputs + kept if work.gradient_checkpointing else layers * kept
    workspace = _workspace_bytes(shape, work, item)
    logits = _logits_bytes(shape, work.tokens, item) if work.ends else 0
    waste = 0.0 if work.on_gpu else CPU_HEAP_FACTOR - 1.0
    return MemoryPlan(
        weights=round(layers * (shape.matrix_numel * per_weight + shape.small_numel * item)),
        embedding_head=shape.ends_numel * item if work.ends else 0,
        adapter=4 * trainable,
        optimizer=8 * trainable,
        accumulators=4 * trainable,
        activations=activations,
        workspace=workspace,
        logits=logits,
        allocator=round(waste * (activations + workspace + logits)),
        context=CUDA_CONTEXT_BYTES if work.on_gpu else CPU_CONTEXT_BYTES,
        process=PROCESS_BYTES,
        averaging=12 * trainable,
    )


def fits(needed_bytes: int, free_bytes: int) -> bool:
    """Return whether `needed_bytes` fit with a margin for what allocators waste."""
    return needed_bytes * SAFETY <= free_bytes


def layer_activation_bytes(shape: ModelShape, adapter: AdapterShape, tokens: int, item: int) -> int:
    """Return what one decoder layer keeps for its backward, for `tokens` tokens at `item` bytes a number.

    Counted in the model's code, each tensor once. The adapter's factors are kept too if they had to be cast.
    """
    traits = FAMILIES[shape.family]
    targets = adapter.chosen(shape)
    # The attention keeps queries, keys and values; the gated activation its two inputs and what the gate became.
    numbers = shape.queries + 2 * shape.keys + 3 * shape.intermediate
    # A matrix with an adapter keeps its input, which q, k and v share, as do gate and up; and x A'.
    inputs = {("attention" if x.name in _READ_ATTENTION_INPUT else x.name): x.inputs for x in targets}
    if {"gate_proj", "up_proj"} <= inputs.keys():
        del inputs["up_proj"]
    numbers += sum(inputs.values()) + adapter.rank * len(targets)
    if adapter.use_dora:
        # DoRA scales the frozen product and the update apart, and keeps both.
        numbers += 2 * sum(linear.outputs for linear in targets)
    # A norm keeps its input.
    normed = traits.norms * shape.hidden
    normed += shape.queries + shape.keys if traits.head_norms or traits.wide_norms else 0
    factors = 0 if item == 4 else adapter.layer_numel(shape) * item
    return tokens * (numbers + normed) * item + factors


_READ_ATTENTION_INPUT = ("q_proj", "k_proj", "v_proj")


def _workspace_bytes(shape: ModelShape, work: Workload, item: int) -> int:
    """Return the temporaries of a layer's backward: the gradients in flight and one dequantised matrix."""
    largest = max(linear.numel for linear in shape.linears) if work.quantization == "nf4" else 0
    return work.tokens * (3 * shape.intermediate + 4 * shape.hidden) * item + largest * item


def _logits_bytes(shape: ModelShape, tokens: int, item: int) -> int:
    """Return the loss's memory if every token has a label: normed rows, their gradient, a chunk of logits."""
    chunk = min(_LOGITS_CHUNK_BYTES, item * tokens * shape.vocabulary)
    return 2 * tokens * shape.hidden * item + chunk + _LOGITS_BLOCK_BYTES


@dataclass(frozen=True, slots=True)
class RoundTraffic:
    """What one averaging round costs one of `replicas` nodes."""

    payload_bytes: int
    """S: the adapter's gradient as it goes over the wire."""
    replicas: int

    @property
    def upload_bytes(self) -> int:
        """What a node sends: 2 (n - 1) / n times S, its parts and then its share of the result to all others."""
        return round(2 * (self.replicas - 1) / self.replicas * self.payload_bytes)

    def seconds(self, mbit_per_s: float) -> float:
        """Return how long the slower direction of a link of this speed takes."""
        return self.upload_bytes * 8 / (mbit_per_s * 1e6)


def round_traffic(trainable: int, replicas: int, compression: Literal["none", "bf16"] = "none") -> RoundTraffic:
    """Return the traffic of one round for an adapter of `trainable` numbers."""
    assert replicas >= 1, "a round has at least one member"
    return RoundTraffic(trainable * (4 if compression == "none" else 2), replicas)
