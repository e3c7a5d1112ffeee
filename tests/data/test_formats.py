"""What rows mean, and what is said of those that mean nothing."""

import contextlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.config.sections import DatasetSpec
from node.data.formats import Chat, Message, RowError, Text, parse

ANY = DatasetSpec(path="x")
ASK, ANSWER = Message("user", "q"), Message("assistant", "a")
TURNS = [{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]


@pytest.mark.parametrize(
    ("row", "example"),
    [
        ({"messages": TURNS}, Chat((ASK, ANSWER))),
        ({"messages": [{"role": "developer", "content": "s"}, *TURNS]}, Chat((Message("system", "s"), ASK, ANSWER))),
        ({"messages": [*TURNS, {"role": "user", "content": "bye"}]}, Chat((ASK, ANSWER))),
        ({"messages": [{"role": "user", "content": [{"type": "text", "text": "q"}]}, TURNS[1]]}, Chat((ASK, ANSWER))),
        ({"prompt": "q", "completion": "a"}, Chat((ASK, ANSWER))),
        ({"prompt": TURNS[:1], "completion": TURNS[1:]}, Chat((ASK, ANSWER))),
        ({"instruction": "q", "output": "a", "input": ""}, Chat((ASK, ANSWER))),
        ({"instruction": "q", "output": "a", "input": None}, Chat((ASK, ANSWER))),
        ({"instruction": "q", "output": "a", "input": "i"}, Chat((Message("user", "q\n\ni"), ANSWER))),
        ({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, Chat((ASK, ANSWER))),
        ({"conversations": TURNS}, Chat((ASK, ANSWER))),
        ({"conversation": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, Chat((ASK, ANSWER))),
        ({"text": "t", "meta": 3}, Text("t")),
    ],
)
def test_format_is_found_by_the_columns(row, example):
    assert parse(row, ANY) == example


@pytest.mark.parametrize(
    ("spec", "row", "example"),
    [
        ({"type": "text", "field": "body"}, {"body": "t", "text": "other"}, Text("t")),
        ({"field_messages": "chat"}, {"chat": TURNS}, Chat((ASK, ANSWER))),
        ({"type": "messages", "field_messages": "conversations", "message_property_mappings": {"role": "from", "content": "value"}},
         {"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}]}, Chat((ASK, ANSWER))),
        ({"type": "messages", "message_property_mappings": {"role": "who", "content": "what"}},
         {"messages": [{"who": "user", "what": "q"}, {"who": "bot", "what": "a"}]}, Chat((ASK, ANSWER))),
        ({"type": "prompt_completion"}, {"prompt": "q", "completion": "a", "text": "t"}, Chat((ASK, ANSWER))),
    ],
)  # fmt: skip
def test_named_format_and_columns_are_followed(spec, row, example):
    assert parse(row, DatasetSpec(path="x", **spec)) == example


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        (
            {},
            "expected the columns messages, or conversations, or prompt and completion, or instruction and output, or text; found none",
        ),
        ({"question": "q", "answer": "a"}, "expected the columns messages, .*; found question, answer"),
        ({"text": 3}, r"expected text in 'text', found a number \(3\)"),
        ({"text": None}, "expected text in 'text', found nothing"),
        ({"text": " \n"}, "expected text in 'text', found nothing but space"),
        ({"prompt": "q", "completion": ""}, "expected text in 'completion', found nothing but space"),
        ({"messages": []}, "expected a list of turns in 'messages', found an empty list"),
        ({"messages": "hi"}, "expected a list of turns in 'messages', found text"),
        ({"messages": ["hi"]}, "expected an object in turn 1 of 'messages', found text"),
        (
            {"messages": [{"role": "tool", "content": "x"}]},
            "expected 'role' of turn 1 of 'messages' to be system, user or assistant, found 'tool'",
        ),
        (
            {"messages": [{"content": "x"}]},
            "expected 'role' of turn 1 of 'messages' to be system, user or assistant, found nothing",
        ),
        (
            {"messages": [TURNS[0], {"role": "assistant", "content": None}]},
            "expected text in 'content' of turn 2 of 'messages', found nothing",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, TURNS[1]]},
            "expected text in turn 1 of 'messages', found a part of type 'image_url'",
        ),
        ({"messages": TURNS[:1]}, "expected an assistant turn to learn, found none"),
        ({"messages": TURNS[1:]}, "expected a user turn before the answer, found none"),
        (
            {"messages": [TURNS[0], TURNS[0], TURNS[1]]},
            "expected user and assistant to take turns, found two user turns in a row",
        ),
        ({"messages": [*TURNS, {"role": "system", "content": "s"}]}, "expected the system turn only at the beginning"),
        ({"messages": TURNS * 501}, "expected at most 1000 turns in 'messages', found 1002"),
        ({"text": "x" * (9 << 20)}, "expected at most 8388608 characters in 'text', found 9437184"),
        ({"instruction": "q", "output": "a", "input": 3}, r"expected text in 'input', found a number \(3\)"),
    ],
)
def test_bad_row_says_what_was_expected_and_found(row, complaint):
    with pytest.raises(RowError, match=f"^{complaint}$"):
        parse(row, ANY)


def test_named_format_that_the_row_has_not_is_a_bad_row():
    with pytest.raises(RowError, match="expected the column 'instruction'; found text"):
        parse({"text": "t"}, DatasetSpec(path="x", type="alpaca"))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["role", "content", "from", "value", "type", "text"]) | st.text(max_size=3),
            inner,
            max_size=3,
        )
    ),
    max_leaves=8,
)
columns = st.sampled_from(
    ["messages", "conversations", "prompt", "completion", "instruction", "output", "input", "text"]
)


@given(st.dictionaries(columns, json_values, max_size=4))
def test_no_row_whatever_raises_anything_but_a_bad_row(row):
    with contextlib.suppress(RowError):
        example = parse(row, ANY)
        assert isinstance(example, Text) or example.messages[-1].role == "assistant"
