"""What a row means: a conversation to answer, or a text to continue.

Five formats: `messages` (OpenAI's chat), `prompt_completion`, `alpaca` (instruction, input, output),
`sharegpt` (conversations with from and value) and `text`. All but the last become a conversation. A format is
found by the row's columns unless it is named.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from node.config.sections import DatasetSpec, DatasetType

MAX_CHARACTERS = 8 << 20
"""Upper bound on one turn: a longer one is a file in the wrong column."""
MAX_TURNS = 1000
_HALF = re.compile("[\ud800-\udfff]")
"""What JSON may hold and no text: half of a pair that stands for an emoji. No tokenizer takes it."""

_ROLES: Mapping[str, str] = {
    "system": "system",
    "developer": "system",
    "user": "user",
    "human": "user",
    "assistant": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "model": "assistant",
    "bot": "assistant",
}


class RowError(ValueError):
    """A row is not what its format wants; the text says what was expected and what was found."""


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a conversation."""

    role: str
    """`system`, `user` or `assistant`."""
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """A conversation that ends with an answer."""

    messages: tuple[Message, ...]


@dataclass(frozen=True, slots=True)
class Text:
    """A text to continue; every token is learnt."""

    text: str


Example = Chat | Text


def detect(row: Mapping[str, object]) -> DatasetType:
    """Return the format of a row by its columns.

    Raises:
        RowError: The columns fit none.
    """
    if "messages" in row:
        return "messages"
    if "conversations" in row or "conversation" in row:
        return "sharegpt"
    if "prompt" in row and "completion" in row:
        return "prompt_completion"
    if "instruction" in row and "output" in row:
        return "alpaca"
    if "text" in row:
        return "text"
    found = ", ".join(str(name)[:40] for name in list(row)[:8]) or "none"
    raise RowError(
        "expected the columns messages, or conversations, or prompt and completion, or instruction and output, "
        f"or text; found {found}"
    )


def parse(row: Mapping[str, object], spec: DatasetSpec) -> Example:
    """Return what the row says.

    Args:
        row: One row of a file.
        spec: Names the format and the columns, where they are not the usual ones.

    Raises:
        RowError: The row is not of that format.
    """
    kind = spec.type or ("messages" if spec.field_messages in row else detect(row))
    if kind == "text":
        return Text(_text(row, spec.field))
    if kind == "alpaca":
        given = row.get("input")
        question = _text(row, "instruction") + (f"\n\n{_text(row, 'input')}" if given not in (None, "") else "")
        return Chat((Message("user", question), Message("assistant", _text(row, "output"))))
    if kind == "prompt_completion":
        turns = (*_turns_or_text(row, "prompt", "user"), *_turns_or_text(row, "completion", "assistant"))
        return _chat(turns)
    default = ("messages", "role", "content") if kind == "messages" else ("conversations", "from", "value")
    field = spec.field_messages or (default[0] if default[0] in row else "conversation")
    mapping = spec.message_property_mappings
    keys = (mapping.role, mapping.content) if mapping else default[1:]
    return _chat(_turns(row.get(field), field if field in row else default[0], keys))


def _turns_or_text(row: Mapping[str, object], field: str, role: str) -> tuple[Message, ...]:
    if isinstance(row.get(field), list):
        return _turns(row[field], field, ("role", "content"))
    return (Message(role, _text(row, field)),)


def _turns(turns: object, field: str, keys: tuple[str, ...]) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        raise RowError(f"expected a list of turns in '{field}', found {_kind(turns)}")
    if len(turns) > MAX_TURNS:
        raise RowError(f"expected at most {MAX_TURNS} turns in '{field}', found {len(turns)}")
    messages = []
    for number, turn in enumerate(turns, 1):
        where = f"turn {number} of '{field}'"
        if not isinstance(turn, Mapping):
            raise RowError(f"expected an object in {where}, found {_kind(turn)}")
        # Half of the world's sharegpt files say role and content, and the other way round.
        role_key, content_key = keys
        if role_key not in turn and content_key not in turn:
            role_key, content_key = next((k for k in (("role", "content"), ("from", "value")) if k[0] in turn), keys)
        role = turn.get(role_key)
        if not isinstance(role, str) or role.lower() not in _ROLES:
            raise RowError(f"expected '{role_key}' of {where} to be system, user or assistant, found {_quoted(role)}")
        content = _parts(turn.get(content_key), where)
        messages.append(Message(_ROLES[role.lower()], _checked(content, f"'{content_key}' of {where}")))
    return tuple(messages)


def _parts(content: object, where: str) -> object:
    """Join OpenAI's `[{"type": "text", "text": ...}]`; leave anything else as it is."""
    if not isinstance(content, list):
        return content
    texts = []
    for part in content:
        if not isinstance(part, Mapping) or part.get("type") != "text" or not isinstance(part.get("text"), str):
            kind = part.get("type") if isinstance(part, Mapping) else part
            raise RowError(f"expected text in {where}, found a part of type {_quoted(kind)}")
        texts.append(str(part["text"]))
    return "".join(texts)


def _chat(messages: tuple[Message, ...]) -> Chat:
    if any(message.role == "system" for message in messages[1:]):
        raise RowError("expected the system turn only at the beginning")
    for before, after in pairwise(messages):
        if before.role == after.role:
            raise RowError(f"expected user and assistant to take turns, found two {after.role} turns in a row")
    # What follows the last answer teaches nothing.
    last = max((i for i, message in enumerate(messages) if message.role == "assistant"), default=None)
    if last is None:
        raise RowError("expected an assistant turn to learn, found none")
    if all(message.role != "user" for message in messages[:last]):
        raise RowError("expected a user turn before the answer, found none")
    return Chat(messages[: last + 1])


def _text(row: Mapping[str, object], field: str) -> str:
    if field not in row:
        found = ", ".join(str(name)[:40] for name in list(row)[:8]) or "none"
        raise RowError(f"expected the column '{field}'; found {found}")
    return _checked(row[field], f"'{field}'")


def _checked(value: object, where: str) -> str:
    if not isinstance(value, str):
        raise RowError(f"expected text in {where}, found {_kind(value)}")
    if not value.strip():
        raise RowError(f"expected text in {where}, found nothing but space")
    if (half := next(_HALF.finditer(value), None)) is not None:
        raise RowError(
            f"expected text in {where}, found half a character (\\u{ord(half[0]):04x}) at {half.start() + 1}"
        )
    if len(value) > MAX_CHARACTERS:
        raise RowError(f"expected at most {MAX_CHARACTERS} characters in {where}, found {len(value)}")
    return value


def _kind(value: object) -> str:
    names = {type(None): "nothing", dict: "an object", list: "a list", str: "text", bool: "true or false"}
    if isinstance(value, list) and not value:
        return "an empty list"
    return names.get(type(value), f"a number ({value})" if isinstance(value, (int, float)) else type(value).__name__)


def _quoted(value: object) -> str:
    return f"'{value[:40]}'" if isinstance(value, str) else _kind(value)
