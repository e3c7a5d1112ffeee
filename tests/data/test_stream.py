"""The stream of microbatches: every document once a pass, and the same from any point that it stopped at."""

import itertools
import json
from array import array

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.errors import CheckpointError, DataError
from node.core.types import IGNORED_LABEL, Document
from node.data.stream import Cursor, MicrobatchStream, Packing, in_order


def documents_of(lengths):
    """Documents whose tokens name the document, so that one can tell them apart in a batch."""
    return [Document(array("i", [i] * n), array("i", [IGNORED_LABEL] + [i] * (n - 1))) for i, n in enumerate(lengths)]


lengths = st.lists(st.integers(1, 16), min_size=1, max_size=30)
packings = st.builds(Packing, st.integers(1, 4), st.just(16), st.booleans())


def stream_of(documents, packing, **options):
    return MicrobatchStream(documents, packing, **{"seed": 1, "salt": "anna", **options})


@given(lengths, packings, st.integers(1, 3))
def test_every_document_is_seen_once_a_pass(lengths, packing, num_epochs):
    documents = documents_of(lengths)
    stream = stream_of(documents, packing, num_epochs=num_epochs)

    seen = [[batch.input_ids[start] for start in starts_of(batch)] for batch in stream]

    assert sorted(itertools.chain(*seen)) == sorted(list(range(len(lengths))) * num_epochs)
    assert stream.is_finished
    assert stream.epoch == num_epochs


def starts_of(batch):
    return [0, *itertools.accumulate(batch.lengths)][:-1]


@given(lengths, packings)
def test_microbatch_holds_whole_documents_within_its_budget(lengths, packing):
    documents = documents_of(lengths)

    for number, batch in enumerate(stream_of(documents, packing, num_epochs=1)):
        assert batch.id == number
        assert sum(batch.lengths) == len(batch.input_ids) == len(batch.labels) <= packing.budget_tokens
        for start, length in zip(starts_of(batch), batch.lengths, strict=True):
            document = documents[batch.input_ids[start]]
            assert batch.input_ids[start : start + length] == document.input_ids
            assert batch.labels[start : start + length] == document.labels
            assert batch.labels[start] == IGNORED_LABEL
        assert batch.num_labels == sum(batch.lengths) - len(batch.lengths)
        if not packing.sample_packing:
            assert len(batch.lengths) <= packing.micro_batch_size


@given(lengths, st.integers(1, 4))
def test_packed_microbatch_takes_the_next_document_whenever_it_fits(lengths, micro_batch_size):
    packing = Packing(micro_batch_size, 16, sample_packing=True)
    batches = list(stream_of(documents_of(lengths), packing, num_epochs=1))

    for batch, following in itertools.pairwise(batches):
        assert batch.num_tokens + following.lengths[0] > packing.budget_tokens


@given(lengths, packings, st.integers(0, 40), st.integers(0, 40))
def test_stream_that_was_stopped_anywhere_goes_on_as_if_it_had_not_been(lengths, packing, first, second):
    documents = documents_of(lengths)
    whole = list(itertools.islice(stream_of(documents, packing), first + second + 3))

    before = stream_of(documents, packing)
    parts = list(itertools.islice(before, first))
    between = stream_of(documents, packing, cursor=restored(before.cursor))
    parts += itertools.islice(between, second)
    parts += itertools.islice(stream_of(documents, packing, cursor=restored(between.cursor)), 3)

    assert parts == whole


def restored(cursor):
    return Cursor.from_json(json.loads(json.dumps(cursor.as_json())))


def test_order_differs_between_passes_nodes_and_seeds_and_is_pinned():
    documents, packing = documents_of([1] * 20), Packing(20, 16, sample_packing=False)

    first, second = itertools.islice(stream_of(documents, packing), 2)
    other_node = next(stream_of(documents, packing, salt="ben"))
    other_seed = next(stream_of(documents, packing, seed=2))

    orders = [list(batch.input_ids) for batch in (first, second, other_node, other_seed)]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == [9, 18, 12, 16, 10, 2, 14, 13, 15, 1, 3, 19, 0, 7, 8, 4, 11, 5, 6, 17]


def test_part_of_a_pass_ends_there():
    stream = stream_of(documents_of([16] * 10), Packing(1, 16, sample_packing=True), num_epochs=1.5)

    assert len(list(stream)) == 15
    assert stream.epoch == 1.5


def test_resumed_stream_that_was_finished_stays_finished():
    documents, packing = documents_of([16] * 3), Packing(1, 16, sample_packing=True)
    stream = stream_of(documents, packing, num_epochs=1)
    list(stream)

    assert list(stream_of(documents, packing, num_epochs=1, cursor=stream.cursor)) == []


def test_nothing_to_train_on_is_said():
    with pytest.raises(DataError, match="no example is left"):
        stream_of([], Packing(1, 16, sample_packing=True))


def test_document_beyond_the_sequence_length_is_refused():
    with pytest.raises(DataError, match="17 tokens, more than sequence_len 16"):
        stream_of(documents_of([17]), Packing(4, 16, sample_packing=True))


def test_cursor_beyond_the_data_is_refused_with_what_to_do():
    with pytest.raises(DataError, match="after 9 examples of a pass, but the data has 3 now") as refusal:
        stream_of(documents_of([1] * 3), Packing(1, 16, sample_packing=True), cursor=Cursor(0, 9, 9))

    assert "--fresh" in refusal.value.hint


@pytest.mark.parametrize(
    "record", [{}, {"epoch": -1}, {"epoch": "0"}, {"epoch": True}, {"epoch": 1 << 60}, {"epoch": 0.5}]
)
def test_cursor_from_a_damaged_checkpoint_is_refused(record):
    with pytest.raises(CheckpointError, match="data cursor"):
        Cursor.from_json({"position": 0, "next_id": 0, **record})


@given(lengths, packings)
def test_evaluation_sees_every_document_once_in_order(lengths, packing):
    batches = list(in_order(documents_of(lengths), packing))

    assert [batch.input_ids[start] for batch in batches for start in starts_of(batch)] == list(range(len(lengths)))
