"""The one entry to this room: a recipe and a tokenizer in, documents to train on and to measure with out.

Tokenised examples stay in memory (8 bytes a token) and are not cached on disk: ten thousand rows take
seconds, and a cache that outlives an edit of the data would be a worse surprise than the wait.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

from node.config.recipe import Recipe
from node.config.sections import DatasetSpec
from node.core.errors import DataError
from node.core.types import IGNORED_LABEL, Document
from node.data import hub
from node.data.formats import Chat, RowError, Text, parse
from node.data.rows import BadRow, Row, Rows, find_files, read_rows
from node.data.split import content_key, held_out_keys
from node.data.templates import ChatRenderer, Encoder, Rendered, Tokenizer, cut

_BUILDERS = frozenset({"json", "csv", "parquet", "text"})

BATCH_ROWS = 256
"""Rows that are tokenised at once: enough to keep the tokenizer's threads busy."""


@dataclass(frozen=True, slots=True)
class SkippedRows:
    """Bad rows of one source that were left out."""

    path: str
    count: int
    first: str
    """The first complaint, with file and line."""


@dataclass(frozen=True, slots=True)
class DataReport:
    """What became of the data."""

    num_rows: int
    num_train_tokens: int
    num_held_out_tokens: int
    num_too_long: int
    """Examples above `sequence_len`, dropped or cut as the recipe says."""
    skipped: tuple[SkippedRows, ...]
    notes: tuple[str, ...]
    digest: str
    """SHA-256, in hex, of the training documents in their order: equal data, equal digest."""


@dataclass(frozen=True, slots=True)
class PreparedData:
    """Documents ready for `MicrobatchStream`."""

    train: tuple[Document, ...]
    held_out: tuple[Document, ...]
    report: DataReport


@dataclass(slots=True)
class _Intake:
    """What is known so far about rows that were read."""

    on_bad_row: Literal["fail", "skip"]
    num_rows: int = 0
    num_too_long: int = 0
    skipped: dict[str, tuple[int, str]] = field(default_factory=dict)  # path -> (count, first complaint)
    documents: list[tuple[str, Document]] = field(default_factory=list)  # (key for the split, document)

    def bad(self, path: str, where: str, reason: str) -> None:
        complaint = f"{where}: {reason}"
        if self.on_bad_row == "fail":
            raise DataError(complaint, hint="correct the row, or set potluck.on_bad_row: skip to leave bad rows out")
        count, first = self.skipped.get(path, (0, complaint))
        self.skipped[path] = (count + 1, first)


def prepare(recipe: Recipe, tokenizer: Tokenizer, paths: Sequence[str | Path] = ()) -> PreparedData:
    """Read, check, tokenise and split the data of this node.

    Args:
        recipe: Names the data and says how to treat it.
        tokenizer: The base model's.
        paths: Files and folders that go before the recipe's `datasets`.

    Raises:
        DataError: A file or (unless the recipe says skip) a row is unusable, or nothing is left.
    """
    specs = tuple(DatasetSpec(path=str(path)) for path in paths) or recipe.datasets
    if not specs:
        raise DataError("there is no data to train on", hint="add --data FILE, or `datasets:` to the recipe")
    renderer = ChatRenderer(tokenizer, recipe.chat_template, train_on_inputs=recipe.train_on_inputs)
    encoder = Encoder(tokenizer, recipe.sequence_len)
    intake = _Intake(recipe.potluck.on_bad_row)
    has_chats = False
    for spec in specs:
        for batch in _batches(_examples(spec, renderer, intake)):
            has_chats |= any(isinstance(example, Rendered) for _, example in batch)
            _encode(batch, encoder, recipe, intake)
    held = held_out_keys((key for key, _ in intake.documents), recipe.val_set_size)
    train = tuple(document for key, document in intake.documents if key not in held)
    held_out = tuple(document for key, document in intake.documents if key in held)
    if not train:
        raise DataError(
            f"no example is left of {intake.num_rows} rows: {intake.num_too_long} are longer than sequence_len "
            f"{recipe.sequence_len}, {sum(count for count, _ in intake.skipped.values())} are bad",
            hint="raise sequence_len, or set excess_length_strategy: truncate",
        )
    notes = _notes(recipe, intake, renderer.note if has_chats else "", has_held_out=bool(held_out))
    return PreparedData(train, held_out, _report(intake, train, held_out, notes))


def _examples(spec: DatasetSpec, renderer: ChatRenderer, intake: _Intake) -> Iterator[tuple[Row, Text | Rendered]]:
    for row in _rows(spec):
        intake.num_rows += 1
        if isinstance(row, BadRow):
            intake.bad(spec.path, row.where, row.reason)
            continue
        try:
            example = parse(row.value, spec)
            rendered = renderer.render(example) if isinstance(example, Chat) else example
        except RowError as error:
            intake.bad(spec.path, row.where, str(error))
            continue
        except DataError as error:
            raise DataError(f"{row.where}: {error.message}", hint=error.hint) from error
        yield row, rendered


def _rows(spec: DatasetSpec) -> Rows:
    path = Path(spec.path).expanduser()
    if path.is_dir() and hub.is_saved_folder(path):
        yield from hub.read_saved(path, spec.split)
        return
    if not path.exists() and spec.path in _BUILDERS and spec.data_files:
        path = Path()  # Axolotl's `path: json` with `data_files`: the ending says the kind already
    # `a/b` may be a hub name; a name with an ending, a leading dot or slash is a file that is missing.
    if not path.exists() and not path.suffix and not spec.path.startswith((".", "/", "~")):
        yield from hub.read_hub(spec)
        return
    if spec.split != "train":
        raise DataError(
            f"{spec.path}: 'split: {spec.split}' is for hub data sets, and this is a local path",
            hint="name the file of that split, or cut the file",
        )
    for named in [path / name for name in spec.data_files] or [path]:
        for file in find_files(named):
            yield from read_rows(file)


def _batches(examples: Iterable[tuple[Row, Text | Rendered]]) -> Iterator[list[tuple[Row, Text | Rendered]]]:
    batch: list[tuple[Row, Text | Rendered]] = []
    for item in examples:
        batch.append(item)
        if len(batch) == BATCH_ROWS:
            yield batch
            batch = []
    if batch:
        yield batch


def _encode(batch: Sequence[tuple[Row, Text | Rendered]], encoder: Encoder, recipe: Recipe, intake: _Intake) -> None:
    """Tokenise a batch, texts and conversations each in one call, and keep the documents in the rows' order."""
    texts = [example.text for _, example in batch if isinstance(example, Text)]
    chats = [example for _, example in batch if isinstance(example, Rendered)]
    pieces_of_texts = encoder.texts(texts) if texts else iter(())
    documents_of_chats = encoder.chats(chats) if chats else iter(())
    for row, example in batch:
        if isinstance(example, Text):
            for number, piece in enumerate(next(pieces_of_texts)):
                key = content_key(row.value, recipe.seed, number if row.is_plain_text else 0)
                intake.documents.append((key, piece))
        else:
            document = _fit(next(documents_of_chats), recipe, row.where, intake)
            if document is not None:
                intake.documents.append((content_key(row.value, recipe.seed), document))


def _fit(document: Document, recipe: Recipe, where: str, intake: _Intake) -> Document | None:
    if len(document) <= recipe.sequence_len:
        return document
    intake.num_too_long += 1
    if recipe.excess_length_strategy == "raise":
        raise DataError(
            f"{where}: the example has {len(document)} tokens, more than sequence_len {recipe.sequence_len}",
            hint="raise sequence_len, or set excess_length_strategy: drop or truncate",
        )
    if recipe.excess_length_strategy == "drop":
        return None
    document = cut(document, recipe.sequence_len)
    has_answer = any(label != IGNORED_LABEL for label in document.labels)
    return document if has_answer else None


def _notes(recipe: Recipe, intake: _Intake, template_note: str, *, has_held_out: bool) -> tuple[str, ...]:
    notes = [template_note] if template_note else []
    if intake.num_too_long:
        done = "dropped" if recipe.excess_length_strategy == "drop" else "cut"
        notes.append(
            f"{intake.num_too_long} of {intake.num_rows} examples are longer than sequence_len {recipe.sequence_len} "
            f"and were {done} (excess_length_strategy)"
        )
    if recipe.val_set_size and not has_held_out:
        notes.append("nothing is held out: there is only one example")
    return tuple(notes)


def _report(
    intake: _Intake, train: Sequence[Document], held_out: Sequence[Document], notes: tuple[str, ...]
) -> DataReport:
    digest = hashlib.sha256()
    for document in train:
        digest.update(len(document).to_bytes(8, "little") + document.input_ids.tobytes() + document.labels.tobytes())
    return DataReport(
        num_rows=intake.num_rows,
        num_train_tokens=sum(map(len, train)),
        num_held_out_tokens=sum(map(len, held_out)),
        num_too_long=intake.num_too_long,
        skipped=tuple(SkippedRows(path, count, first) for path, (count, first) in intake.skipped.items()),
        notes=notes,
        digest=digest.hexdigest(),
    )
