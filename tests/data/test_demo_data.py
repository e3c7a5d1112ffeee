"""The demo's data: there on every CPython, the same each time, and readable by the room's own formats."""

import json

from node.config.sections import DatasetSpec
from node.data.demo_data import MAX_ANSWER_CHARACTERS, write_docstrings, write_topics
from node.data.formats import Chat, Text, parse


def rows_of(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_topics_are_texts_of_the_language_reference(tmp_path):
    number = write_topics(tmp_path / "topics.jsonl")

    rows = rows_of(tmp_path / "topics.jsonl")
    assert len(rows) == number > 100
    assert all(isinstance(parse(row, DatasetSpec(path="x")), Text) for row in rows)
    assert sum(len(row["text"]) for row in rows) > 300_000
    assert any("for loop" in row["text"] or '"for" statement' in row["text"] for row in rows)


def test_docstrings_are_questions_and_answers_and_the_same_each_time(tmp_path):
    number = write_docstrings(tmp_path / "a.jsonl", limit=1500)
    write_docstrings(tmp_path / "b.jsonl", limit=1500)

    rows = rows_of(tmp_path / "a.jsonl")
    assert len(rows) == number == 1500
    assert (tmp_path / "a.jsonl").read_bytes() == (tmp_path / "b.jsonl").read_bytes()
    for row in rows:
        chat = parse(row, DatasetSpec(path="x"))
        assert isinstance(chat, Chat)
        assert 40 <= len(chat.messages[1].content) <= MAX_ANSWER_CHARACTERS
    assert len({row["messages"][1]["content"] for row in rows}) == 1500
