"""The search finds what it has to find, in every form."""

import random
from pydoc_data.topics import topics

import pytest

from leaks.marks import Leaks, forms_of, marked_rows

ROWS = marked_rows(1, 20)
IDS = [[random.Random(n).randrange(200, 49_000) for _ in range(40)] for n in range(20)]
NOISE = random.Random(7).randbytes(1 << 20)


@pytest.fixture(scope="module")
def leaks():
    return Leaks(ROWS, IDS)


def test_noise_and_other_texts_are_no_leak(leaks):
    assert leaks.in_bytes(NOISE) == []
    assert leaks.in_bytes("".join(topics.values()).encode()) == []
    assert leaks.in_bytes(b"") == leaks.in_bytes(b"short") == []


@pytest.mark.parametrize("offset", range(9))
@pytest.mark.parametrize("encoding", ["utf-8", "utf-16-le", "utf-16-be"])
def test_eight_bytes_of_a_row_are_found_wherever_they_lie(leaks, encoding, offset):
    piece = ROWS[3].encode(encoding)[10:18]
    assert leaks.in_bytes(NOISE[: 1000 + offset] + piece + NOISE[:1000]) == [piece]


@pytest.mark.parametrize("form", range(len(list(forms_of(IDS[0][:4])))))
def test_four_tokens_in_a_row_are_found_in_every_form_and_three_are_not(leaks, form):
    four = list(forms_of(IDS[5][7:11]))[form]
    three = list(forms_of(IDS[5][7:10]))[form]

    assert four in leaks.in_bytes(NOISE[:501] + four + NOISE[:1000])
    assert leaks.in_bytes(NOISE[:501] + three + NOISE[:1000]) == []
