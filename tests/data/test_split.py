"""The held-out split: decided by content, so the same after a restart and in any order."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.data.split import content_key, held_out_keys

ROWS = [{"text": f"row {i}"} for i in range(200)]


@given(st.permutations(range(40)))
def test_split_does_not_depend_on_the_order(order):
    keys = [content_key(ROWS[i], 42) for i in range(40)]

    assert held_out_keys((keys[i] for i in order), 0.2) == held_out_keys(keys, 0.2)


@pytest.mark.parametrize(
    ("size", "number"), [(0, 0), (0.001, 1), (0.05, 10), (0.999, 199), (1, 1), (50, 50), (1000, 199)]
)
def test_share_and_count_hold_out_that_many_but_never_all(size, number):
    assert len(held_out_keys((content_key(row, 42) for row in ROWS), size)) == number


def test_single_row_is_trained_on():
    assert held_out_keys([content_key(ROWS[0], 42)] * 3, 0.5) == frozenset()


def test_another_seed_holds_out_other_rows():
    split = [held_out_keys((content_key(row, seed) for row in ROWS), 0.1) for seed in (1, 2)]
    rows = [
        {row["text"] for row in ROWS if content_key(row, seed) in keys}
        for seed, keys in zip((1, 2), split, strict=True)
    ]

    assert len(rows[0]) == len(rows[1]) == 20
    assert rows[0] != rows[1]


def test_key_depends_on_content_and_not_on_the_order_of_columns():
    assert content_key({"a": 1, "b": "é"}, 1) == content_key({"b": "é", "a": 1}, 1)
    assert (
        len({content_key({"a": 1}, 1), content_key({"a": 2}, 1), content_key({"a": 1}, 2), content_key({"a": 1}, 1, 1)})
        == 4
    )
