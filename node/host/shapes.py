"""The size of a model, read from its configuration alone: which matrices a layer has, and how many numbers.

Knows the families that `node/model/families.py` supports, and is held against transformers' own models by the tests.
Legend: H hidden size, I intermediate size, Q all query heads' width, K all key heads' width, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from node.core.errors import UnsupportedModel
from node.core.text import brief

_LARGEST = {"num_hidden_layers": 1 << 12, "num_attention_heads": 1 << 12, "num_key_value_heads": 1 << 12}
_LARGEST_SIZE = 1 << 24


@dataclass(frozen=True, slots=True)
class _Family:
    """How one family's layer differs from Llama's."""

    norms: int = 2
    """Norms over H in a layer."""
    head_norms: bool = False
    """Norms over one head of the queries and one of the keys (Qwen 3, Gemma 3)."""
    wide_norms: bool = False
    """Norms over all heads of the queries and all of the keys (OLMo 2)."""
    fused: bool = False
    """Query, key and value are one matrix, gate and up another (Phi 3)."""
    query_bias: bool = False
    """Biases on query, key and value whatever the configuration says (Qwen 2)."""
    optional_biases: tuple[str, ...] = ("attention_bias",)
    """Keys of the configuration that this family heeds."""
    head_dim: int | None = None
    """Where the configuration names none; None means H / heads."""
    key_heads: int | None = None
    """Where the configuration names none; None means as many as query heads."""
    tied: bool = False
    """Where the configuration does not say."""


FAMILIES: Mapping[str, _Family] = {
    "gemma2": _Family(norms=4, head_dim=256, key_heads=4, tied=True),
    "gemma3_text": _Family(norms=4, head_norms=True, head_dim=256, key_heads=4, tied=True),
    "llama": _Family(optional_biases=("attention_bias", "mlp_bias")),
    "mistral": _Family(optional_biases=(), key_heads=8),
    "olmo2": _Family(wide_norms=True),
    "phi3": _Family(fused=True, optional_biases=()),
    "qwen2": _Family(query_bias=True, optional_biases=()),
    "qwen3": _Family(head_norms=True, head_dim=128),
    "smollm3": _Family(optional_biases=("attention_bias", "mlp_bias"), key_heads=4, tied=True),
}
"""By `model_type`."""


@dataclass(frozen=True, slots=True)
class Linear:
    """One matrix of a decoder layer, [outputs, inputs]."""

    name: str
    """As LoRA targets name it, e.g. `q_proj`."""
    inputs: int
    outputs: int
    bias: bool

    @property
    def numel(self) -> int:
        """Numbers in the matrix, without the bias."""
        return self.inputs * self.outputs


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What determines how large a model is."""

    family: str
    hidden: int
    intermediate: int
    num_layers: int
    queries: int
    """Q: query heads times head size."""
    keys: int
    """K: key heads times head size."""
    head_dim: int
    vocabulary: int
    tied: bool
    """The head is the embedding."""
    attention_bias: bool
    mlp_bias: bool

    @classmethod
    def of(cls, config: Mapping[str, object]) -> ModelShape:
        """Read a model's `config.json`, which comes from outside.

        Raises:
            UnsupportedModel: The family is not known, or a size is missing or absurd.
        """
        family = str(config.get("model_type"))
        if family not in FAMILIES:
            raise UnsupportedModel(
                f"Models of the type {family!r} are not supported.", hint=f"Supported types: {', '.join(FAMILIES)}."
            )
        traits = FAMILIES[family]
        heads = _size(config, "num_attention_heads")
        hidden = _size(config, "hidden_size")
        head_dim = _size(config, "head_dim", traits.head_dim or max(1, hidden // heads))
        return cls(
            family=family,
            hidden=hidden,
            intermediate=_size(config, "intermediate_size"),
            num_layers=_size(config, "num_hidden_layers"),
            queries=heads * head_dim,
            keys=_size(config, "num_key_value_heads", traits.key_heads or heads) * head_dim,
            head_dim=head_dim,
            vocabulary=_size(config, "vocab_size"),
            tied=_flag(config, "tie_word_embeddings", default=traits.tied),
            attention_bias="attention_bias" in traits.optional_biases and _flag(config, "attention_bias"),
            mlp_bias="mlp_bias" in traits.optional_biases and _flag(config, "mlp_bias"),
        )

    @property
    def linears(self) -> tuple[Linear, ...]:
        """The matrices of one decoder layer."""
        traits = FAMILIES[self.family]
        biased = self.attention_bias or traits.query_bias
        output = Linear("o_proj", self.queries, self.hidden, self.attention_bias)
        down = Linear("down_proj", self.intermediate, self.hidden, self.mlp_bias)
        if traits.fused:
            qkv = Linear("qkv_proj", self.hidden, self.queries + 2 * self.keys, bias=False)
            return qkv, output, Linear("gate_up_proj", self.hidden, 2 * self.intermediate, bias=False), down
        return (
            Linear("q_proj", self.hidden, self.queries, biased),
            Linear("k_proj", self.hidden, self.keys, biased),
            Linear("v_proj", self.hidden, self.keys, biased),
            output,
            Linear("gate_proj", self.hidden, self.intermediate, self.mlp_bias),
            Linear("up_proj", self.hidden, self.intermediate, self.mlp_bias),
            down,
        )

    @property
    def matrix_numel(self) -> int:
        """Numbers in the matrices of one layer: what is quantised."""
        return sum(linear.numel for linear in self.linears)

    @property
    def small_numel(self) -> int:
        """Numbers in the norms and biases of one layer: what is not."""
        traits = FAMILIES[self.family]
        norms = traits.norms * self.hidden
        norms += 2 * self.head_dim if traits.head_norms else 0
        norms += self.queries + self.keys if traits.wide_norms else 0
        return norms + sum(linear.outputs for linear in self.linears if linear.bias)

    @property
    def ends_numel(self) -> int:
        """Numbers in embedding, final norm and head."""
        return self.vocabulary * self.hidden * (1 if self.tied else 2) + self.hidden

    @property
    def numel(self) -> int:
        """Numbers in the whole model."""
        return self.num_layers * (self.matrix_numel + self.small_numel) + self.ends_numel


def _size(config: Mapping[str, object], key: str, default: int | None = None) -> int:
    value = config.get(key)
    if value is None and default is not None:
        return default
    limit = _LARGEST.get(key, _LARGEST_SIZE)
    if not isinstance(value, int) or isinstance(value, bool) or not 1 <= value <= limit:
        raise UnsupportedModel(
            f"The model's configuration has {key} = {brief(repr(value), 60)}, which is no size between 1 and {limit}.",
            hint="Download the model's config.json again.",
        )
    return value


def _flag(config: Mapping[str, object], key: str, *, default: bool = False) -> bool:
    value = config.get(key)
    return value if isinstance(value, bool) else default
