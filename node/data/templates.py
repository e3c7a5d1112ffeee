"""From an example to token ids and labels: the chat template, and where in it the answers are.

The spans of the answers are found in the rendered *text* and carried to tokens by the tokenizer's offsets, so
that the ids are exactly those of the whole conversation. Templates come from the model's tokenizer only.
"""

from __future__ import annotations

import re
from array import array
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from node.core.errors import DataError
from node.core.types import IGNORED_LABEL, Document
from node.data.formats import Chat, Message, RowError

Span = tuple[int, int]

_STAND_IN = "POTLUCKSTANDIN"
_A_DAY = "26 Jul 2024"  # the one that Llama 3.1's own template falls back to
_ONE_DAY = "{% macro strftime_now(format) %}" + _A_DAY + "{% endmacro %}{{ '' }}"

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' }}"
    "{{ message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class Tokenizer(Protocol):
    """What this room needs of a transformers tokenizer (a fast one: it must give offsets)."""

    @property
    def eos_token_id(self) -> int | None:
        """Id of end-of-text."""

    @property
    def bos_token_id(self) -> int | None:
        """Id of begin-of-text."""

    @property
    def is_fast(self) -> bool:
        """Whether it can give the place of each token in the text."""

    @property
    def added_tokens_decoder(self) -> Mapping[int, Any]:
        """Tokens beside the ordinary vocabulary, id to token; `str` of one is its text."""

    @property
    def chat_template(self) -> Any:
        """The model's Jinja template; empty when it has none."""

    def __call__(self, text: list[str], **options: Any) -> Mapping[str, Any]:
        """Return `input_ids` and, with `return_offsets_mapping=True`, `offset_mapping`, one list a text."""

    def apply_chat_template(self, conversation: list[dict[str, str]], **options: Any) -> Any:
        """Return the rendered text with `tokenize=False`."""


@dataclass(frozen=True, slots=True)
class Rendered:
    """A conversation as text, and the spans of it that are answers, in characters."""

    text: str
    answers: tuple[Span, ...]
    needs_eos: bool
    """The template does not end the last answer with a special token, so end-of-text must follow."""


class ChatRenderer:
    """Renders conversations with one template."""

    def __init__(self, tokenizer: Tokenizer, template: str, *, train_on_inputs: bool = False) -> None:
        """Choose the template.

        Args:
            tokenizer: The base model's.
            template: `chatml`, or `tokenizer_default` for the model's own or else a plain one.
            train_on_inputs: Take the whole conversation for the answer.
        """
        self._tokenizer = tokenizer
        self._train_on_inputs = train_on_inputs
        special = sorted(map(str, tokenizer.added_tokens_decoder.values()), key=len, reverse=True)
        self._special = re.compile("|".join(map(re.escape, special)) or "(?!)")
        self._render: Callable[[Sequence[Message], bool], str] = self._by_model
        self._template: str | None = None
        self.note = ""
        """What a person should know about the choice; empty when it is the model's own template."""
        if template == "chatml":
            self._template = CHATML
        elif not tokenizer.chat_template:
            self._render = _plain
            self.note = "the model has no chat template: conversations are written as `### User:` and `### Assistant:`"
        elif isinstance(tokenizer.chat_template, str) and "strftime_now" in tokenizer.chat_template:
            # Templates that write today's date would make other documents tomorrow.
            self._template = _ONE_DAY + tokenizer.chat_template

    def render(self, chat: Chat) -> Rendered:
        """Return the text of the conversation and where its answers are.

        Raises:
            RowError: The template refuses this conversation.
            DataError: The answers cannot be found in what the template makes.
        """
        messages = chat.messages
        full = self._render(messages, False)
        if self._train_on_inputs:
            spans = [(0, len(full.rstrip()))]
        else:
            spans = [self._span(messages, i, full) for i, message in enumerate(messages) if message.role == "assistant"]
        tail = full[spans[-1][0] : spans[-1][1]]
        needs_eos = not any(match.end() == len(tail) for match in self._special.finditer(tail))
        return Rendered(full if not needs_eos else full[: spans[-1][1]], tuple(spans), needs_eos)

    def prompt(self, messages: Sequence[Message]) -> str:
        """Return the text that a model continues with its answer to these messages.

        Raises:
            RowError: The template refuses this conversation.
        """
        return self._render(messages, True)

    def _span(self, messages: Sequence[Message], index: int, full: str) -> Span:
        """Return the characters that the model has to produce for turn `index`.

        They go from the end of the generation prompt to the end of the end-of-turn token.
        """
        prompt = self._render(messages[:index], True)
        until = full if index == len(messages) - 1 else self._render(messages[: index + 1], False)
        if full.startswith(prompt) and full.startswith(until) and len(prompt) < len(until):
            return len(prompt), len(until.rstrip())
        return self._span_by_stand_in(messages, index, full, prompt)

    def _span_by_stand_in(self, messages: Sequence[Message], index: int, full: str, prompt: str) -> Span:
        """Find the turn by writing another answer into its place and looking what changes.

        Some templates write the last turn differently from the earlier ones (Qwen3 leaves out what was
        thought), so that the conversation up to a turn is not how the whole one begins.
        """
        changed = [*messages[:index], Message("assistant", _STAND_IN), *messages[index + 1 :]]
        before, found, after = self._render(changed, False).partition(_STAND_IN)
        if not found or not full.startswith(before) or not full.endswith(after) or len(before) + len(after) > len(full):
            raise DataError(
                f"the model's chat template writes turn {index + 1} differently depending on its answer, "
                "so the part to learn is unknown",
                hint="set train_on_inputs: true, or chat_template: chatml",
            )
        start = len(prompt) if before.startswith(prompt) else len(before)
        end = len(full) - len(after)
        if match := self._special.match(full, end + len(full[end:]) - len(full[end:].lstrip())):
            end = match.end()
        return start, end

    def _by_model(self, messages: Sequence[Message], add_generation_prompt: bool) -> str:
        conversation = [{"role": message.role, "content": message.content} for message in messages]
        try:
            text = self._tokenizer.apply_chat_template(
                conversation,
                tokenize=False,
                add_generation_prompt=add_generation_prompt,
                date_string=_A_DAY,
                chat_template=self._template,
            )
        except Exception as error:  # a template is the model's program and may raise anything
            reason = " ".join(str(error).split())[:200]
            raise RowError(f"the model's chat template refuses this conversation: {reason}") from error
        return str(text)


def _plain(messages: Sequence[Message], add_generation_prompt: bool) -> str:
    text = "".join(
        f"{message.content}\n\n" if message.role == "system" else f"### {message.role.title()}:\n{message.content}\n\n"
        for message in messages
    )
    return text + ("### Assistant:\n" if add_generation_prompt else "")


class Encoder:
    """Turns texts and rendered conversations into documents, a batch at a time."""

    def __init__(self, tokenizer: Tokenizer, sequence_len: int) -> None:
        """Learn the tokenizer's habits.

        Args:
            tokenizer: The base model's.
            sequence_len: Most tokens of a piece of text.

        Raises:
            DataError: The tokenizer has no end-of-text token, or gives no offsets.
        """
        self._tokenizer = tokenizer
        self._sequence_len = sequence_len
        if not tokenizer.is_fast:
            raise DataError(
                "the model's tokenizer does not say where in the text a token stands",
                hint="the model's folder needs a tokenizer.json; a newer release of the model has one",
            )
        if tokenizer.eos_token_id is None:
            raise DataError("the model's tokenizer has no end-of-text token, so nothing would teach the model to stop")
        self._eos = tokenizer.eos_token_id
        # Whether texts begin with a begin-of-text token is the tokenizer's business; Gemma is lost without it.
        first = list(tokenizer(["x"], add_special_tokens=True)["input_ids"][0][:1])
        self._bos = array("i", first if first == [tokenizer.bos_token_id] else [])

    def texts(self, texts: Sequence[str]) -> Iterator[list[Document]]:
        """Yield the pieces of each text, at most `sequence_len` tokens long, end-of-text after the last."""
        room = self._sequence_len - len(self._bos)
        for ids in self._tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]:
            tokens = array("i", ids)
            tokens.append(self._eos)
            pieces = []
            for start in range(0, len(tokens), room):
                piece = self._bos + tokens[start : start + room]
                if len(piece) > 1:  # a single token has nothing to predict
                    pieces.append(Document(piece, array("i", [IGNORED_LABEL]) + piece[1:]))
            yield pieces

    def chats(self, chats: Sequence[Rendered]) -> Iterator[Document]:
        """Yield one document for each conversation, of any length, with labels on the answers only."""
        encoded = self._tokenizer(
            [chat.text for chat in chats], add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )
        for chat, ids, offsets in zip(chats, encoded["input_ids"], encoded["offset_mapping"], strict=True):
            tokens = array("i", ids)
            labels = self._answers_only(chat, tokens, offsets)
            if chat.needs_eos:
                tokens.append(self._eos)
                labels.append(self._eos)
            labels[0] = IGNORED_LABEL
            yield Document(tokens, labels)

    @staticmethod
    def _answers_only(chat: Rendered, tokens: array[int], offsets: Sequence[Span]) -> array[int]:
        labels = array("i", [IGNORED_LABEL]) * len(tokens)
        spans, at = chat.answers, 0
        for index, (start, _) in enumerate(offsets):
            while at < len(spans) and start >= spans[at][1]:
                at += 1
            # A token that begins in the question and ends in the answer is given, not predicted.
            if at < len(spans) and start >= spans[at][0]:
                labels[index] = tokens[index]
        return labels


def cut(document: Document, sequence_len: int) -> Document:
    """Return the first `sequence_len` tokens of a document."""
    return Document(document.input_ids[:sequence_len], document.labels[:sequence_len])
