"""Texts that grow token by token over the stages held here: their keys and values, kept for a while.

All of it runs on the engine's thread.
"""

from __future__ import annotations

import time
from collections import OrderedDict

from torch import Tensor

from node.core.errors import NeedsInput
from node.core.types import LayerRange, PeerId
from node.model.shard import ModelShard, TextCache

_MAX_TEXTS = 8
_KEPT_S = 300.0
_MAX_TOKENS = 1 << 15

_Key = tuple[PeerId, str, LayerRange]


class Texts:
    """The caches of the texts that are being written, a bounded number of them."""

    def __init__(self, shard: ModelShard) -> None:
        self._shard = shard
        self._caches: OrderedDict[_Key, tuple[TextCache, int, float]] = OrderedDict()

    def extend(
        self, writer: PeerId, text: str, start: int, hidden: Tensor, layers: LayerRange, *, adapter: bool
    ) -> Tensor:
        """Return the hidden states [T, H] of a text's next T tokens after `layers`.

        Args:
            writer: Whose text it is.
            text: The writer's name for it.
            start: Tokens of the text before these; 0 begins it.
            hidden: [T, H] before `layers`.
            layers: A part of the layers held.
            adapter: Whether the adapter takes part; the same throughout a text.

        Raises:
            NeedsInput: the text so far is not here (any more): begin it again.
        """
        key = (writer, text, layers)
        now = time.monotonic()
        for old in [key for key, (_, _, used_at) in self._caches.items() if now - used_at > _KEPT_S]:
            del self._caches[old]
        cache, length, _ = self._caches.pop(key, (self._shard.new_cache(), 0, now))
        if start == 0:
            cache, length = self._shard.new_cache(), 0
        if start != length or length + len(hidden) > _MAX_TOKENS:
            raise NeedsInput(f"that text has {length} tokens here, not {start}")
        output = self._shard.continue_hidden(hidden, start, cache, layers, adapter=adapter)
        self._caches[key] = (cache, length + len(hidden), now)
        while len(self._caches) > _MAX_TEXTS:
            self._caches.popitem(last=False)
        return output
