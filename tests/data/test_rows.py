"""Rows out of files of every kind, and the place of each one that is wrong."""

import json
import random

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from node.core.errors import DataError
from node.data.rows import BadRow, Row, find_files, read_rows


def values(path):
    return [row.value for row in read_rows(path)]


def write(path, content):
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_jsonl_gives_a_row_a_line_and_passes_over_empty_ones(tmp_path):
    path = write(tmp_path / "a.jsonl", b'\xef\xbb\xbf{"text": "\xc3\xa9"}\n\n  \n{"text": "b"}')

    assert list(read_rows(path)) == [Row(f"{path}:1", {"text": "é"}), Row(f"{path}:4", {"text": "b"})]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ('{"text": ', "expected one JSON object, but Expecting value at column 9"),
        ("[1]", 'expected a JSON object like {"text": ...}, found list'),
        ('"text"', 'expected a JSON object like {"text": ...}, found str'),
        ("null", 'expected a JSON object like {"text": ...}, found NoneType'),
        (b'{"text": "\xff"}', "expected one JSON object, but the line is not UTF-8 text"),
        ("[" * 100_000, "expected one JSON object, but maximum recursion depth exceeded"),
        ('{"n": ' + "9" * 5000 + "}", "expected one JSON object, but Exceeds the limit"),
    ],
    ids=["torn", "list", "string", "null", "latin-1", "deep", "long-number"],
)
def test_bad_line_of_jsonl_is_named_and_the_others_are_read(tmp_path, line, reason):
    line = line if isinstance(line, bytes) else line.encode()
    path = write(tmp_path / "a.jsonl", b'{"text": "a"}\n' + line + b'\n{"text": "c"}\n')

    first, bad, last = read_rows(path)

    assert isinstance(bad, BadRow)
    assert bad.where == f"{path}:2"
    assert bad.reason.startswith(reason)
    assert (first.value, last.value) == ({"text": "a"}, {"text": "c"})


@pytest.mark.parametrize(
    ("text", "places"),
    [
        ('[{"text": "a"},\n {"text": "b"}]', [":1", ":2"]),
        ('{"text": "a"}\n{"text": "b"}\n', [":1", ":2"]),
        ('{"version": 1, "data": [{"text": "a"},\n{"text": "b"}]}', [": row 1", ": row 2"]),
        ('\n\n  [\n{"text": "a"}\n,\n{"text": "b"}\n]\n', [":4", ":6"]),
    ],
    ids=["list", "lines", "inside-an-object", "spread"],
)
def test_json_is_read_in_its_usual_shapes_with_lines(tmp_path, text, places):
    path = write(tmp_path / "a.json", text)

    rows = list(read_rows(path))

    assert [row.value for row in rows] == [{"text": "a"}, {"text": "b"}]
    assert [row.where for row in rows] == [f"{path}{place}" for place in places]


def test_one_conversation_as_json_is_one_row(tmp_path):
    conversation = {"messages": [{"role": "user", "content": "a"}]}

    assert values(write(tmp_path / "a.json", json.dumps(conversation))) == [conversation]


def test_broken_json_is_refused_by_line(tmp_path):
    path = write(tmp_path / "a.json", '[{"text": "a"},\n {"text" "b"}]')

    with pytest.raises(DataError, match=r"a\.json:2: not valid JSON: Expecting ':' delimiter at column 10"):
        values(path)


def test_csv_keeps_numbers_as_text_and_line_breaks_in_cells(tmp_path):
    path = write(tmp_path / "a.csv", 'prompt,completion\n"a\nb",42\n\nc,"d, e"\n')

    rows = list(read_rows(path))

    assert [dict(row.value) for row in rows] == [
        {"prompt": "a\nb", "completion": "42"},
        {"prompt": "c", "completion": "d, e"},
    ]
    assert [row.where for row in rows] == [f"{path}:2", f"{path}:5"]


def test_tsv_is_split_at_tabs(tmp_path):
    assert values(write(tmp_path / "a.tsv", "prompt\tcompletion\na, b\tc\n")) == [{"prompt": "a, b", "completion": "c"}]


def test_csv_row_with_a_cell_too_many_is_named(tmp_path):
    path = write(tmp_path / "a.csv", "prompt,completion\na,b\na,b,c\n")

    _, bad = read_rows(path)

    assert bad == BadRow(f"{path}:3", "expected 2 cells (prompt, completion), found 3")


@pytest.mark.parametrize("header", ["a,a", "a,", ""])
def test_csv_without_column_names_is_refused(tmp_path, header):
    with pytest.raises(DataError, match=r"a\.csv:1: expected a line of column names"):
        values(write(tmp_path / "a.csv", f"{header}\nx,y\n"))


def test_parquet_gives_its_rows_with_nested_turns(tmp_path):
    rows = [{"messages": [{"role": "user", "content": "a"}]}, {"messages": [{"role": "user", "content": "b"}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")

    found = list(read_rows(tmp_path / "a.parquet"))

    assert [row.value for row in found] == rows
    assert found[1].where == f"{tmp_path / 'a.parquet'}: row 2"


def test_a_flipped_bit_in_a_parquet_file_is_an_error_that_names_the_file_or_does_no_harm(tmp_path):
    pq.write_table(pa.table({"text": [f"row {i} " * 20 for i in range(300)]}), tmp_path / "good.parquet")
    good, dice = (tmp_path / "good.parquet").read_bytes(), random.Random(1)
    told = set()
    for _ in range(300):
        data = bytearray(good)
        data[dice.randrange(len(data))] ^= 1 << dice.randrange(8)
        try:
            values(write(tmp_path / "a.parquet", bytes(data)))
        except DataError as error:
            told.add(error.message)
    assert len(told) > 3, "damage of several kinds was met"
    assert all(message.startswith(f"{tmp_path / 'a.parquet'}: not a readable parquet file: ") for message in told)


def test_file_that_is_no_parquet_is_refused(tmp_path):
    with pytest.raises(DataError, match="not a readable parquet file"):
        values(write(tmp_path / "a.parquet", "text"))


def test_text_file_is_one_row_and_an_empty_one_is_none(tmp_path):
    path = write(tmp_path / "a.txt", "one\ntwo\n")

    assert list(read_rows(path)) == [Row(str(path), {"text": "one\ntwo\n"}, is_plain_text=True)]
    assert values(write(tmp_path / "b.md", " \n")) == []


def test_text_file_in_another_encoding_is_refused_by_byte(tmp_path):
    with pytest.raises(DataError, match=r"a\.txt: not UTF-8 text \(byte 3\)") as refusal:
        values(write(tmp_path / "a.txt", b"caf\xe9"))

    assert refusal.value.hint == "save the file as UTF-8"


def test_folder_gives_its_readable_files_in_order_and_no_hidden_ones(tmp_path):
    for name in ("b/2.txt", "a.jsonl", "b/1.md", "picture.png", ".hidden/x.txt", "b/.x.txt"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write(tmp_path / name, "x")

    found = [str(file.relative_to(tmp_path)) for file in find_files(tmp_path)]

    assert found == ["a.jsonl", "b/1.md", "b/2.txt"]


def test_readme_beside_tables_is_not_data_but_among_texts_it_is(tmp_path):
    write(tmp_path / "README.md", "x")
    write(tmp_path / "a.txt", "x")

    assert [file.name for file in find_files(tmp_path)] == ["README.md", "a.txt"]
    write(tmp_path / "b.jsonl", "x")
    assert [file.name for file in find_files(tmp_path)] == ["a.txt", "b.jsonl"]


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("none.jsonl", "there is no such file or folder"),
        ("a.docx", "files of kind '.docx' are not read"),
        ("empty", "0 files"),
    ],
)
def test_path_without_data_is_refused(tmp_path, name, message):
    write(tmp_path / "a.docx", "x")
    (tmp_path / "empty").mkdir()

    with pytest.raises(DataError, match=message):
        find_files(tmp_path / name)
