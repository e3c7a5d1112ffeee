"""Who moves when no single move is enough, when the first in line stays, and when it is not worth it."""

from hypothesis import given, settings
from hypothesis import strategies as st

from node.core.placement import (
    LOPSIDED_PATIENCE_S,
    UNHELD_PATIENCE_S,
    Candidate,
    choose,
    is_lopsided,
    should_move,
)
from node.core.types import Shard

LONG_S = 1e9


def holder(name, first, stop, speed=1.0):
    return Candidate(name, Shard(first, stop), speed, stop - first)


def movers(num_stages, holders, *, lopsided_s):
    """Return who moves where, each asked by itself."""
    asked = {
        h.peer_id: should_move(num_stages, holders, h.peer_id, lopsided_s=lopsided_s, settled_s=LONG_S) for h in holders
    }
    return {name: shard for name, shard in asked.items() if shard is not None}


def test_the_first_ones_cover_the_model_edge_to_edge():
    holders = []
    for name in "abc":
        holders.append(Candidate(name, choose(9, holders, 3), 1.0, 3))

    assert [h.shard for h in holders] == [Shard(0, 3), Shard(3, 6), Shard(6, 9)]


def test_the_next_one_moves_if_the_first_does_not():
    holders = [holder("a", 0, 2), holder("b", 0, 2), holder("c", 2, 4)]

    assert movers(6, holders, lopsided_s=UNHELD_PATIENCE_S) == {"a": Shard(4, 6)}
    assert movers(6, holders, lopsided_s=2 * UNHELD_PATIENCE_S) == {"b": Shard(4, 6)}


def test_a_row_of_moves_brings_a_stage_that_no_single_move_brings():
    holders = [holder("a", 0, 3), holder("b", 2, 4), holder("c", 4, 6)]

    assert movers(7, holders, lopsided_s=UNHELD_PATIENCE_S) == {"b": Shard(3, 5)}
    holders[1] = holder("b", 3, 5)
    assert movers(7, holders, lopsided_s=UNHELD_PATIENCE_S) == {"c": Shard(5, 7)}


def test_a_row_of_moves_goes_to_the_front_too():
    holders = [holder("a", 1, 3), holder("b", 3, 5), holder("c", 4, 7)]

    assert movers(7, holders, lopsided_s=UNHELD_PATIENCE_S) == {"b": Shard(2, 4)}
    holders[1] = holder("b", 2, 4)
    assert movers(7, holders, lopsided_s=UNHELD_PATIENCE_S) == {"a": Shard(0, 2)}


def test_a_small_gain_is_not_worth_a_move():
    nearly = [holder("a", 0, 1, 1.1), holder("b", 0, 1, 0.3), holder("c", 1, 2, 1.0)]
    worth_it = [holder("a", 0, 1, 1.0), holder("b", 0, 1, 0.3), holder("c", 1, 2, 0.7)]

    assert not is_lopsided(2, nearly)
    assert movers(2, nearly, lopsided_s=LOPSIDED_PATIENCE_S) == {}
    assert is_lopsided(2, worth_it)
    assert movers(2, worth_it, lopsided_s=LOPSIDED_PATIENCE_S) == {"b": Shard(1, 2)}


@st.composite
def swarms(draw):
    num_stages = draw(st.integers(1, 9))
    holders = []
    for index in range(draw(st.integers(1, 8))):
        length = draw(st.integers(1, num_stages))
        first = draw(st.integers(0, num_stages - length))
        holders.append(holder(f"p{index}", first, first + length, draw(st.floats(0.1, 10))))
    return num_stages, holders


@given(swarm=swarms())
@settings(deadline=None, max_examples=50)
def test_from_any_start_moves_come_to_an_end(swarm):
    num_stages, holders = swarm

    for _ in range(60):
        moved = movers(num_stages, holders, lopsided_s=LOPSIDED_PATIENCE_S)
        if not moved:
            return
        holders = [
            Candidate(h.peer_id, moved.get(h.peer_id, h.shard), h.stage_tokens_per_s, h.capacity_stages)
            for h in holders
        ]
    raise AssertionError(f"they still move: {holders}")


@given(swarm=swarms(), capacity=st.integers(1, 9), random=st.randoms(use_true_random=False))
@settings(deadline=None, max_examples=50)
def test_a_newcomer_takes_the_same_whatever_the_order_of_its_view(swarm, capacity, random):
    num_stages, holders = swarm
    shuffled = list(holders)
    random.shuffle(shuffled)

    shard = choose(num_stages, holders, capacity)

    assert len(shard) == min(capacity, num_stages)
    assert choose(num_stages, shuffled, capacity) == shard
