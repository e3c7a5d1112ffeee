"""The state of one stage's adapter as bytes: what a checkpoint holds and what a joining peer downloads.

The bytes are an ordinary safetensors file. It is written and read here because both ends know the layout
exactly: the reader builds the only header it accepts and compares, so that nothing in the file decides what is
allocated or where it goes.
"""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from node.core.errors import CheckpointError, NewerFormat
from node.core.text import brief
from node.core.versions import UPGRADE_HERE, format_number

_PARTS = ("values", "exp_avg", "exp_avg_sq")
_FORMAT_NAME = "potluck-adapter"
_FORMAT_NUMBER = 1
_FORMAT = f"{_FORMAT_NAME}-{_FORMAT_NUMBER}"
_LARGEST_COUNT = 1 << 62

assert sys.byteorder == "little", "adapter files are little-endian and are read without a swap"


@dataclass(frozen=True, slots=True)
class Entry:
    """Where one parameter lies in the flat buffer."""

    name: str
    shape: tuple[int, ...]
    offset: int
    """First element."""
    numel: int


@dataclass(frozen=True)
class Layout:
    """The order of one stage's parameters in its flat buffer: sorted by name, without gaps."""

    entries: tuple[Entry, ...]

    @classmethod
    def of(cls, shapes: Sequence[tuple[str, tuple[int, ...]]]) -> Layout:
        """Lay the named shapes end to end, in the order of their names."""
        entries, offset = [], 0
        for name, shape in sorted(shapes):
            numel = 1
            for size in shape:
                numel *= size
            entries.append(Entry(name, tuple(shape), offset, numel))
            offset += numel
        assert offset > 0, "a stage without trainable parameters has no adapter"
        assert len({e.name for e in entries}) == len(entries), "two parameters have the same name"
        return cls(tuple(entries))

    @property
    def numel(self) -> int:
        """Elements of the flat buffer."""
        return self.entries[-1].offset + self.entries[-1].numel

    @cached_property
    def canonical(self) -> bytes:
        """The layout as bytes, equal for equal layouts alone."""
        return json.dumps([[e.name, e.shape] for e in self.entries], separators=(",", ":")).encode()

    def views(self, flat: Tensor) -> dict[str, Tensor]:
        """Cut the flat buffer [N] into views by name."""
        return {e.name: flat[e.offset : e.offset + e.numel].view(e.shape) for e in self.entries}


@dataclass(frozen=True)
class AdapterState:
    """One version of one stage's adapter and moments, apart from the model; all tensors are [N] fp32 on the CPU."""

    version: int
    committed_tokens: int
    values: Tensor
    exp_avg: Tensor
    exp_avg_sq: Tensor

    def digest(self, layout: Layout) -> str:
        """Return the hash that replicas compare: of both counters, the layout and every bit of the three tensors."""
        digest = hashlib.blake2b(digest_size=32)
        digest.update(self.version.to_bytes(8, "little"))
        digest.update(self.committed_tokens.to_bytes(8, "little"))
        digest.update(len(layout.canonical).to_bytes(8, "little"))
        digest.update(layout.canonical)
        for tensor in (self.values, self.exp_avg, self.exp_avg_sq):
            digest.update(_bytes_of(tensor))
        return digest.hexdigest()

    def check(self, layout: Layout) -> None:
        """Raise CheckpointError unless these tensors could be the adapter that `layout` describes."""
        for part in (self.version, self.committed_tokens):
            if not 0 <= part < _LARGEST_COUNT:
                raise CheckpointError(f"Adapter state refused: a counter is {part}.", hint=_HINT)
        for name, tensor in zip(_PARTS, (self.values, self.exp_avg, self.exp_avg_sq), strict=True):
            if tensor.dtype != torch.float32 or tuple(tensor.shape) != (layout.numel,):
                raise CheckpointError(
                    f"Adapter state refused: `{name}` is {tensor.dtype} of shape {tuple(tensor.shape)}, "
                    f"expected float32 of shape ({layout.numel},).",
                    hint=_HINT,
                )
            if not bool(torch.isfinite(tensor).all()):
                raise CheckpointError(f"Adapter state refused: `{name}` holds NaN or infinity.", hint=_HINT)
        if bool((self.exp_avg_sq < 0).any()):
            raise CheckpointError("Adapter state refused: `exp_avg_sq` holds a negative number.", hint=_HINT)


_HINT = "Take it from another peer or from an older checkpoint."


def encode(state: AdapterState, layout: Layout, *, digest: str | None = None) -> bytes:
    """Return the state as a safetensors file whose metadata names version, tokens and digest.

    The tensors are called `values/<parameter>`, `exp_avg/<parameter>` and `exp_avg_sq/<parameter>`.

    Args:
        state: What to write.
        layout: The layout of its tensors.
        digest: `state.digest(layout)` if it is known already, since hashing costs more than the rest.
    """
    header = _header(layout, state.version, state.committed_tokens, digest or state.digest(layout))
    parts = (_bytes_of(t) for t in (state.values, state.exp_avg, state.exp_avg_sq))
    return b"".join((len(header).to_bytes(8, "little"), header, *parts))


def encoded_size_limit(layout: Layout) -> int:
    """Return the most bytes that `encode` can give for this layout: a bound for downloads."""
    longest = _header(layout, _LARGEST_COUNT, _LARGEST_COUNT, "0" * 64)
    return 8 + len(longest) + 12 * layout.numel


def decode(data: bytes | bytearray | memoryview, layout: Layout, *, digest: str | None = None) -> AdapterState:
    """Read what `encode` wrote and check every part of it. Needs no model and no engine: any thread will do.

    Args:
        data: The file; its length should be held against `encoded_size_limit` before it is fetched.
        layout: What this node holds; any other layout is refused.
        digest: The hash that the swarm announced for it. None: its own digest proves that the bytes are whole.

    Returns:
        A state that owns its memory.

    Raises:
        CheckpointError: The bytes are not such a file, are torn or altered, or belong to another layout.
    """
    view = memoryview(data)
    payload = 12 * layout.numel
    header_size = len(view) - 8 - payload
    if len(view) > encoded_size_limit(layout) or header_size <= 0:
        raise CheckpointError(
            f"Adapter state refused: it has {len(view)} bytes, and this adapter takes about {payload}.",
            hint="The file is torn, or it belongs to a run with other LoRA settings.",
        )
    if int.from_bytes(view[:8], "little") != header_size:
        raise CheckpointError("Adapter state refused: the header's length is wrong.", hint=_HINT)
    header = bytes(view[8 : 8 + header_size])
    version, committed_tokens, stated = _read_metadata(header)
    if header != _header(layout, version, committed_tokens, stated):
        raise CheckpointError(
            "Adapter state refused: its tensors are not those of this run (names, shapes or order differ).",
            hint="Check that `lora_r`, the target modules and the base model are the same.",
        )
    flat = torch.frombuffer(bytearray(view[8 + header_size :]), dtype=torch.float32)
    values, exp_avg, exp_avg_sq = flat.view(3, layout.numel).unbind()
    state = AdapterState(version, committed_tokens, values, exp_avg, exp_avg_sq)
    found = state.digest(layout)
    for source, wanted in (("the file says", stated), ("the swarm holds", digest)):
        if wanted is not None and found != wanted:
            raise CheckpointError(
                f"Adapter state refused: the digest of its bytes is {found[:16]}…, and {source} {wanted[:16]}….",
                hint=_HINT,
            )
    state.check(layout)
    return state


def _header(layout: Layout, version: int, committed_tokens: int, digest: str) -> bytes:
    """Return the safetensors header, padded with spaces to a multiple of 8 as the format recommends."""
    table: dict[str, object] = {
        "__metadata__": {
            "format": _FORMAT,
            "version": str(version),
            "committed_tokens": str(committed_tokens),
            "digest": digest,
        }
    }
    for index, part in enumerate(_PARTS):
        for entry in layout.entries:
            begin = 4 * (index * layout.numel + entry.offset)
            table[f"{part}/{entry.name}"] = {
                "dtype": "F32",
                "shape": list(entry.shape),
                "data_offsets": [begin, begin + 4 * entry.numel],
            }
    text = json.dumps(table, separators=(",", ":")).encode()
    return text + b" " * (-len(text) % 8)


def _read_metadata(header: bytes) -> tuple[int, int, str]:
    """Return version, committed tokens and digest from an untrusted header, whose size the caller has bounded."""
    try:
        metadata = json.loads(header)["__metadata__"]
        if (format_number(metadata["format"], _FORMAT_NAME) or 0) > _FORMAT_NUMBER:
            raise NewerFormat(
                f"Adapter state refused: its format is {metadata['format']}, and this Potluck reads {_FORMAT}.",
                hint=UPGRADE_HERE,
            )
        version, tokens, digest = (str(metadata[key]) for key in ("version", "committed_tokens", "digest"))
        if not (version.isdecimal() and tokens.isdecimal() and max(len(version), len(tokens)) < 20):
            raise ValueError("a counter is not a number")
        return int(version), int(tokens), digest
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise CheckpointError(
            f"Adapter state refused: its header cannot be read ({brief(error)}).", hint=_HINT
        ) from None


def _bytes_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor without copying them."""
    return tensor.numpy().data.cast("B")
