"""Rows out of local files, each with the place that a person can open: file and line.

The line-based formats are read here rather than by `datasets`, which copies a file into its cache first,
turns the CSV cell `42` into a number, and names no line when a row is wrong. Parquet is pyarrow's, which
comes with `datasets`; hub data sets are in `hub.py`.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from node.core.errors import DataError
from node.core.text import brief

MAX_ROW_BYTES = 16 << 20
"""A longer line is not training data but a file of another kind."""
MAX_JSON_BYTES = 2 << 30
MAX_FILES = 100_000

_PROSE = frozenset({".txt", ".md"})
_ABOUT = frozenset({"readme.md", "readme.txt", "license.md", "license.txt", "licence.txt", "dataset_infos.json"})


@dataclass(frozen=True, slots=True)
class Row:
    """One row as it stands in the file."""

    where: str
    """`file:line`, or `file: row n` where a format has no lines."""
    value: Mapping[str, object]
    is_plain_text: bool = False
    """The row is a whole text file, which may be split into held-out and trained pieces."""


@dataclass(frozen=True, slots=True)
class BadRow:
    """A place in a file where a row should be, and why there is none."""

    where: str
    reason: str


Rows = Iterator[Row | BadRow]


def find_files(path: Path) -> list[Path]:
    """Return `path` itself, or the readable files under it in sorted order, hidden ones left out.

    Raises:
        DataError: Nothing is there, or nothing that can be read.
    """
    if path.is_file():
        if path.suffix.lower() not in READERS:
            raise DataError(f"{path}: files of kind '{path.suffix}' are not read", hint=f"known are {_known()}")
        return [path]
    if not path.is_dir():
        raise DataError(
            f"{path}: there is no such file or folder", hint="check the path; --data takes files and folders"
        )
    files: list[Path] = []
    for file in sorted(path.rglob("*")):
        is_hidden = any(part.startswith(".") for part in file.relative_to(path).parts)
        if file.suffix.lower() in READERS and not is_hidden and file.is_file():
            files.append(file)
    if any(file.suffix.lower() not in _PROSE for file in files):
        # Beside tables these describe the data and are none.
        files = [file for file in files if file.name.lower() not in _ABOUT]
    if not files or len(files) > MAX_FILES:
        raise DataError(f"{path}: {len(files)} files of the kinds {_known()} in this folder; expected 1 to {MAX_FILES}")
    return files


def read_rows(file: Path) -> Rows:
    """Yield the rows of one file, in order.

    Raises:
        DataError: The file as a whole cannot be read. A single bad row is yielded as `BadRow`.
    """
    try:
        yield from READERS[file.suffix.lower()](file)
    except OSError as error:
        raise DataError(f"cannot read {file}: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 text (byte {error.start})", hint="save the file as UTF-8") from error


def _known() -> str:
    return ", ".join(sorted(suffix[1:] for suffix in READERS))


def _read_jsonl(file: Path) -> Rows:
    with file.open("rb") as stream:
        number = 0
        while line := stream.readline(MAX_ROW_BYTES + 1):
            number += 1
            where = f"{file}:{number}"
            if len(line) > MAX_ROW_BYTES:
                raise DataError(
                    f"{where}: the line is longer than {MAX_ROW_BYTES >> 20} MiB", hint="is this a jsonl file?"
                )
            if number == 1:
                line = line.removeprefix(b"\xef\xbb\xbf")
            if line.strip():
                yield _json_row(where, line)


def _json_row(where: str, line: bytes) -> Row | BadRow:
    try:
        value = json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        return BadRow(where, f"expected one JSON object, but {error.msg} at column {error.colno}")
    except UnicodeDecodeError:
        return BadRow(where, "expected one JSON object, but the line is not UTF-8 text")
    except (ValueError, RecursionError) as error:  # numbers of thousands of digits; brackets without end
        return BadRow(where, f"expected one JSON object, but {brief(error)}")
    return _object_row(where, value)


def _object_row(where: str, value: object) -> Row | BadRow:
    if isinstance(value, dict):
        return Row(where, value)
    return BadRow(where, f'expected a JSON object like {{"text": ...}}, found {type(value).__name__}')


def _read_json(file: Path) -> Rows:
    """Read a list of objects, objects one after another, or one object that holds the list."""
    if file.stat().st_size > MAX_JSON_BYTES:
        raise DataError(
            f"{file} is larger than {MAX_JSON_BYTES >> 30} GiB", hint="write it as jsonl, one object a line"
        )
    text = file.read_text(encoding="utf-8-sig")
    start = len(text) - len(text.lstrip())
    values = _json_values(file, text, start + 1 if text.startswith("[", start) else start)
    if text.startswith("{", start):
        found = list(values)
        value = found[0][1] if len(found) == 1 else None
        lists = [item for item in value.values() if isinstance(item, list)] if isinstance(value, dict) else []
        if len(lists) == 1 and lists[0] and all(isinstance(item, dict) for item in lists[0]) and not _is_one_row(value):
            yield from (Row(f"{file}: row {number}", item) for number, item in enumerate(lists[0], 1))
            return
        values = iter(found)
    for line, value in values:
        yield _object_row(f"{file}:{line}", value)


def _is_one_row(value: object) -> bool:
    return isinstance(value, dict) and bool(value.keys() & {"messages", "conversations", "prompt"})


def _json_values(file: Path, text: str, at: int) -> Iterator[tuple[int, object]]:
    decoder, line, counted = json.JSONDecoder(), 1, 0
    while True:
        while at < len(text) and text[at] in " \t\r\n,":
            at += 1
        if at >= len(text) or text[at] == "]":
            return
        line, counted = line + text.count("\n", counted, at), at
        try:
            value, at = decoder.raw_decode(text, at)
        except json.JSONDecodeError as error:
            # What follows a broken value cannot be told apart from it, so the whole file is refused.
            raise DataError(f"{file}:{error.lineno}: not valid JSON: {error.msg} at column {error.colno}") from error
        except (ValueError, RecursionError) as error:
            raise DataError(f"{file}:{line}: not valid JSON: {brief(error)}") from error
        yield line, value


def _read_csv(file: Path) -> Rows:
    csv.field_size_limit(MAX_ROW_BYTES)
    with file.open(encoding="utf-8-sig", newline="") as stream:
        reader = csv.reader(stream, delimiter="\t" if file.suffix.lower() == ".tsv" else ",", strict=True)
        line = 1
        try:
            header = next(reader, [])
            if not header or len(set(header)) != len(header) or not all(header):
                raise DataError(f"{file}:1: expected a line of column names, each once, found {_names(header)}")
            line = reader.line_num + 1
            for cells in reader:
                where, line = f"{file}:{line}", reader.line_num + 1
                if not cells:
                    continue
                if len(cells) != len(header):
                    yield BadRow(where, f"expected {len(header)} cells ({_names(header)}), found {len(cells)}")
                else:
                    yield Row(where, dict(zip(header, cells, strict=True)))
        except csv.Error as error:
            raise DataError(f"{file}:{line}: not valid CSV: {brief(error)}") from error


def _names(header: list[str]) -> str:
    return ", ".join(brief(name, 40) for name in header[:8]) or "none"


def _read_parquet(file: Path) -> Rows:
    try:
        with pq.ParquetFile(file) as table:
            number = 0
            for batch in table.iter_batches(batch_size=256):
                for value in batch.to_pylist():
                    number += 1
                    yield Row(f"{file}: row {number}", value)
    # where a file is damaged decides which of these it is: footer, page, column or text
    except (pa.ArrowException, OSError, UnicodeDecodeError) as error:
        if isinstance(error, OSError) and error.errno is not None:
            raise  # the system's own: the file cannot be read at all
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise DataError(f"{file}: not a readable parquet file: {reason}", hint="is the file whole?") from error


def _read_text(file: Path) -> Rows:
    text = file.read_text(encoding="utf-8-sig")
    if text.strip():
        yield Row(str(file), {"text": text}, is_plain_text=True)


READERS: Mapping[str, Callable[[Path], Rows]] = {
    ".jsonl": _read_jsonl,
    ".ndjson": _read_jsonl,
    ".json": _read_json,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".parquet": _read_parquet,
    ".txt": _read_text,
    ".md": _read_text,
}
"""File ending -> how its rows are read."""
