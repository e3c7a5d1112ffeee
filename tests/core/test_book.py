"""Every microbatch counts once at every stage, whatever becomes of its holders."""

from array import array

from node.core.book import Book
from node.core.types import Microbatch, PeerId

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")


def batch(id, tokens=4):
    return Microbatch(id, array("i", range(tokens)), array("i", [-100, *range(1, tokens)]), (tokens,))


def book_of(*entries):
    book = Book()
    for id, counted_by in entries:
        book.done(batch(id), counted_by)
    return book


def test_a_round_settles_what_all_its_stages_have_counted():
    book = book_of((0, {0: (A, "1"), 1: (B, "1")}), (1, {0: (A, "1"), 1: (C, "1")}))

    settled = book.settle({A: "1", B: "1"})

    assert [entry.batch.id for entry in settled] == [0]
    assert (book.tokens, book.labels, book.first_id) == (4, 3, 1)


def test_a_member_with_another_session_settles_nothing():
    book = book_of((0, {0: (A, "1")}))

    assert book.settle({A: "2"}) == ()
    assert book.first_id == 0


def test_a_holder_that_lost_its_sums_has_its_microbatches_redone():
    book = book_of((0, {0: (A, "1"), 1: (B, "1")}), (1, {0: (A, "1"), 1: (C, "1")}))

    redo = book.lost({A: "1", B: "2", C: "1"})

    assert [entry.batch.id for entry in redo] == [0]
    assert book.doubts == frozenset()
    assert book.tokens == 4


def test_an_older_session_is_old_news_and_nothing_is_redone():
    book = book_of((0, {0: (A, "2")}))
    book.doubt(B, "2")

    assert book.lost({A: "1", B: "1"}) == ()
    assert book.doubts == {(B, "2")}


def test_a_holder_out_of_sight_is_in_doubt_until_it_shows_another_session():
    book = book_of((0, {0: (A, "1"), 1: (B, "1")}))

    assert [entry.batch.id for entry in book.lost({A: "1"})] == [0]
    assert book.doubts == {(B, "1")}
    book.lost({A: "1", B: "1"})
    assert book.doubts == {(B, "1")}
    book.lost({A: "1", B: "2"})
    assert book.doubts == frozenset()


def test_a_committed_round_without_the_doubtful_holder_ends_the_doubt():
    book = book_of()
    book.doubt(B, "1")

    book.settle({A: "1"})

    assert book.doubts == frozenset()


def test_nothing_is_redone_while_all_holders_keep_their_sessions():
    book = book_of((0, {0: (A, "1"), 1: (B, "1")}))

    assert book.lost({A: "1", B: "1", C: "9"}) == ()
    assert book.first_id == 0


def test_what_is_redone_comes_with_those_who_still_have_it_counted():
    book = book_of((0, {0: (A, "1"), 1: (B, "1"), 2: (C, "1")}))

    (entry,) = book.lost({A: "1", B: "2", C: "1"})

    assert entry.counted_by == {0: (A, "1"), 2: (C, "1")}


def test_tokens_of_a_microbatch_that_is_redone_after_a_round_are_told_once():
    book = book_of((0, {0: (A, "1"), 1: (B, "1")}))
    book.bring()

    book.settle({A: "1"})  # B was left out: its part of the microbatch comes with a later round
    (entry,) = book.lost({A: "1", C: "1"})
    book.done(entry.batch, {0: (A, "1"), 1: (C, "1")})

    assert (book.tokens, book.labels) == (0, 0)
    assert [entry.batch.id for entry in book.settle({A: "1", C: "1"})] == [0]
