"""Answers of the base and of the tuned model, token by token."""

from types import MappingProxyType

import pytest
import torch
from reference import loaded

from node.model.chat import ChatModel
from node.model.shard import load_shard
from node.model.source import load_tokenizer
from node.model.spec import LoadSpec, LoraSpec

QUESTION = "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n"


class NumberTokenizer:
    """A tokenizer for tiny models: a text is numbers with blanks between."""

    eos_token_id = 2
    added_tokens_decoder = MappingProxyType({})

    def __call__(self, text, **_):
        return {"input_ids": [int(number) for number in text.split()]}

    def decode(self, ids, **_):
        return "".join(f"{number} " for number in ids)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gemma3_text", "qwen2", "qwen3", "phi3", "smollm3"])
@pytest.mark.parametrize("adapter", [True, False])
def test_answer_with_a_cache_is_that_of_reading_the_whole_text_again(tiny, family, adapter):
    shard = loaded(tiny(family))
    chat = ChatModel(shard, NumberTokenizer())
    prompt = [*range(90, 109)]  # longer than the windows of the families that have one

    reply = [
        int(number)
        for number in "".join(
            chat.reply(" ".join(map(str, prompt)), adapter=adapter, max_new_tokens=12, temperature=0.0)
        ).split()
    ]

    assert reply
    for position, token in enumerate(reply):
        ids = torch.tensor(prompt + reply[:position])
        logits = shard.logits(ids, [len(ids)], adapter=adapter)[-1]
        assert int(logits.argmax()) == token


def test_adapter_can_be_switched_without_loading_again(smollm2):
    shard = load_shard(smollm2, LoadSpec(lora=LoraSpec(r=4, alpha=8.0)))
    chat = ChatModel(shard, load_tokenizer(smollm2), spare_bytes=1 << 30)

    base = list(chat.reply(QUESTION, adapter=False, max_new_tokens=9))
    with torch.no_grad():
        for name, parameter in shard.lora.items():
            if "lora_B" in name:
                parameter.normal_(std=0.5)
    tuned = "".join(chat.reply(QUESTION, adapter=True, max_new_tokens=9))
    again = "".join(chat.reply(QUESTION, adapter=False, max_new_tokens=9))

    assert "".join(base).startswith("The capital of France is Paris")
    assert len(base) > 3, "the answer came in one piece"
    assert again == "".join(base) != tuned


def test_temperature_draws_by_the_seed(tiny):
    chat = ChatModel(loaded(tiny("llama")), NumberTokenizer())

    replies = [
        "".join(chat.reply("5 6 7", adapter=True, max_new_tokens=8, temperature=1.5, seed=seed)) for seed in (1, 1, 2)
    ]

    assert replies[0] == replies[1] != replies[2]


def test_characters_of_several_tokens_come_whole(smollm2):
    tokenizer = load_tokenizer(smollm2)
    text = "Grüße, 世界 🎉 — done"
    shard = Parrot(tokenizer(text, add_special_tokens=False)["input_ids"], tokenizer.eos_token_id)

    pieces = list(ChatModel(shard, tokenizer).reply("x", adapter=True, max_new_tokens=99))

    assert "".join(pieces) == text
    assert not any("\ufffd" in piece for piece in pieces)


class Parrot:
    """A shard that says the tokens it was given."""

    has_ends, linears, device = True, {}, torch.device("cpu")

    def __init__(self, ids, end):
        self._ids, self._end = list(ids), end
        self.config = self
        self.eos_token_id = end

    def new_cache(self):
        return iter([*self._ids, self._end])

    def continue_text(self, _input_ids, cache, **_):
        logits = torch.zeros(60000)
        logits[next(cache)] = 1.0
        return logits
