"""Let a loaded model speak: token by token, as text that can be shown while it grows.

The same shard answers as the base model and as the tuned one, so nothing is loaded twice. Chat templates are not
known here; what comes in is the text to continue.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any, Protocol

import torch
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from node.model.lora import LoraLinear
from node.model.quantization import DenseWeight

_ENDS_OF_TURN = ("<|im_end|>", "<|eot_id|>", "<end_of_turn>", "<|end|>", "<|endoftext|>", "</s>")
"""Tokens with which chat templates end an answer; models do not always name theirs as their end-of-text."""

_BYTES_PER_WEIGHT = 4
"""At most, of a dequantised weight."""

_HALF_CHARACTER = "\ufffd"


class Speaker(Protocol):
    """A whole model as a conversation needs it: a shard of all layers, or one whose layers are elsewhere."""

    @property
    def config(self) -> Any:
        """The model's configuration."""

    @property
    def device(self) -> torch.device:
        """Where tokens and logits are."""

    @property
    def linears(self) -> Mapping[str, LoraLinear]:
        """The linear layers of the decoder layers that are here."""

    def new_cache(self) -> Any:
        """Return what is kept of an empty text."""

    def continue_text(self, input_ids: Tensor, cache: Any, *, adapter: bool = True) -> Tensor:
        """Return the logits [V] of the token after these [T], which continue the text in `cache`."""


class ChatModel:
    """A whole model with its tokenizer, to be asked."""

    def __init__(self, shard: Speaker, tokenizer: PreTrainedTokenizerBase, *, spare_bytes: int = 0) -> None:
        """Prepare to answer.

        Args:
            shard: The whole model with its adapter; no other thread may use it meanwhile.
            tokenizer: The model's.
            spare_bytes: Memory that may be spent for speed. If the layers' weights fit dequantised, they are kept so:
                the values are the same, and on a CPU a token takes two thirds of the time.
        """
        self._shard = shard
        self._tokenizer = tokenizer
        self._stops = _stop_ids(shard.config.eos_token_id, tokenizer)
        linears = shard.linears.values()
        dense_bytes = sum(linear.weight.shape[0] * linear.weight.shape[1] for linear in linears) * _BYTES_PER_WEIGHT
        if dense_bytes <= spare_bytes:
            for linear in linears:
                linear.weight = DenseWeight(linear.weight.dense())

    def reply(
        self, prompt: str, *, adapter: bool, max_new_tokens: int, temperature: float = 0.0, seed: int = 0
    ) -> Iterator[str]:
        """Yield the continuation of `prompt` piece by piece; the pieces together are the answer.

        Args:
            prompt: Text with the template's special tokens written out.
            adapter: Answer with the adapter, or as the base model.
            max_new_tokens: Stop after so many tokens at the latest.
            temperature: 0 takes the likeliest token each time; higher values draw from the flattened distribution.
            seed: Of the draws.
        """
        generator = torch.Generator().manual_seed(seed)
        ids = torch.tensor(self._tokenizer(prompt, add_special_tokens=False, verbose=False)["input_ids"])
        cache = self._shard.new_cache()
        fed, new, shown = ids.to(self._shard.device), [], ""
        for _ in range(max_new_tokens):
            token = _choose(self._shard.continue_text(fed, cache, adapter=adapter), temperature, generator)
            if token in self._stops:
                break
            new.append(token)
            fed = torch.tensor([token], device=self._shard.device)
            # A token may end within a character; its other bytes come with the next one.
            text = str(self._tokenizer.decode(new, skip_special_tokens=True))
            if not text.endswith(_HALF_CHARACTER) and text.startswith(shown) and len(text) > len(shown):
                yield text[len(shown) :]
                shown = text
        text = str(self._tokenizer.decode(new, skip_special_tokens=True))
        if text[len(shown) :]:
            yield text[len(shown) :]


def _choose(logits: Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature <= 0:
        return int(logits.argmax())
    probabilities = torch.softmax(logits.cpu() / temperature, dim=-1)
    return int(torch.multinomial(probabilities, 1, generator=generator))


def _stop_ids(configured: Any, tokenizer: PreTrainedTokenizerBase) -> frozenset[int]:
    """Return the tokens that end an answer."""
    known = {str(token): index for index, token in tokenizer.added_tokens_decoder.items()}
    stops = {known[text] for text in _ENDS_OF_TURN if text in known}
    for ids in (configured, tokenizer.eos_token_id):
        stops |= {ids} if isinstance(ids, int) else set(ids or ())
    return frozenset(stops)
