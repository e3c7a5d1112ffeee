"""Where nodes go when they join, and when they move: alone, and fifty of them that come and go."""

import statistics

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from placement_world import World

from node.core.placement import (
    COOL_DOWN_S,
    LOPSIDED_PATIENCE_S,
    UNHELD_PATIENCE_S,
    Candidate,
    auto_num_stages,
    choose,
    is_lopsided,
    should_move,
)
from node.core.types import NO_SHARD, PeerId, Shard

LONG = COOL_DOWN_S + 10 * LOPSIDED_PATIENCE_S


def holder(name, first, stop, speed=1.0, capacity=None):
    return Candidate(PeerId(name), Shard(first, stop), speed, capacity or stop - first)


def test_a_node_that_can_hold_everything_does():
    assert choose(4, [holder("a", 0, 2)], 9) == Shard(0, 4)


def test_a_node_without_room_holds_nothing():
    assert choose(4, [], 0) == NO_SHARD


def test_a_joiner_takes_what_nobody_holds():
    assert choose(6, [holder("a", 0, 2), holder("b", 4, 6)], 2) == Shard(2, 4)


def test_a_joiner_takes_where_the_swarm_is_slowest():
    assert choose(4, [holder("a", 0, 2, speed=5), holder("b", 2, 4, speed=1)], 2) == Shard(2, 4)


def test_of_equal_places_the_one_with_fewest_hops_wins():
    assert choose(6, [holder("a", 0, 3)], 3) == Shard(3, 6)


def test_a_small_model_is_not_cut_and_a_large_one_finely_into_parts_of_a_gigabyte_at_most():
    assert auto_num_stages(30, 2 << 20) == 1
    assert auto_num_stages(32, 110 << 20) == 16
    assert auto_num_stages(12, 110 << 20) == 12
    assert auto_num_stages(80, 430 << 20) == 40


def test_nobody_moves_before_the_patience_is_over():
    holders = [holder("a", 0, 2), holder("b", 0, 2)]
    for peer in ("a", "b"):
        wait = {"settled_s": LONG, "lopsided_s": UNHELD_PATIENCE_S / 2}
        assert should_move(4, holders, PeerId(peer), **wait) is None


def test_one_replica_moves_to_the_stages_that_nobody_holds():
    holders = [holder("a", 0, 2), holder("b", 0, 2)]
    wait = {"settled_s": LONG, "lopsided_s": 1.5 * UNHELD_PATIENCE_S}

    moves = [should_move(4, holders, PeerId(peer), **wait) for peer in ("a", "b")]

    assert sorted(moves, key=str) == [Shard(2, 4), None] or sorted(moves, key=str) == [None, Shard(2, 4)]


def test_the_last_holder_of_a_stage_stays():
    holders = [holder("a", 0, 2), holder("b", 2, 4)]
    wait = {"settled_s": LONG, "lopsided_s": LONG}

    assert not is_lopsided(4, holders)
    assert all(should_move(4, holders, PeerId(peer), **wait) is None for peer in ("a", "b"))


def test_a_node_that_has_just_moved_does_not_move_for_speed_alone():
    holders = [holder("a", 0, 2, 9.0), holder("b", 0, 2, 9.0), holder("c", 2, 4, 1.0)]

    assert is_lopsided(4, holders)
    assert all(should_move(4, holders, h.peer_id, settled_s=COOL_DOWN_S / 2, lopsided_s=LONG) is None for h in holders)


@pytest.mark.parametrize("seed", range(4))
def test_fifty_nodes_that_come_and_go_keep_all_stages_held_and_even(seed):
    world = World(num_stages=10, seed=seed)
    for _ in range(25):
        world.join()

    for _ in range(6 * 360):  # six hours
        world.tick(stay_s=2 * 3600, rest_s=1800)

    assert world.left_alone == 0
    assert world.longest_unheld_s <= 10 * UNHELD_PATIENCE_S
    assert len(world.shares) >= 0.9 * 6 * 360
    assert statistics.mean(world.shares) >= 0.5
    assert world.moves <= 0.5 * world.node_hours


@pytest.mark.parametrize("seed", range(4))
def test_in_a_steady_swarm_the_moves_end(seed):
    world = World(num_stages=8, seed=seed)
    for _ in range(30):
        world.join()

    for _ in range(12 * 360):
        world.tick()
    before = world.moves
    for _ in range(12 * 360):
        world.tick()

    assert world.moves == before
    assert min(world.throughputs()) > 0


@settings(max_examples=60, deadline=None)
@given(
    num_stages=st.integers(2, 12),
    held=st.lists(st.tuples(st.integers(0, 11), st.integers(1, 6), st.floats(0.1, 10)), min_size=1, max_size=12),
)
def test_at_most_one_node_moves_and_no_stage_loses_its_last_holder(num_stages, held):
    holders = [
        holder(f"p{i}", min(first, num_stages - 1), min(num_stages, min(first, num_stages - 1) + length), speed)
        for i, (first, length, speed) in enumerate(held)
    ]
    covered = {stage for h in holders for stage in h.shard.stages}

    moves = {
        h.peer_id: to
        for h in holders
        if (to := should_move(num_stages, holders, h.peer_id, lopsided_s=LONG, settled_s=LONG)) is not None
    }

    assert len(moves) <= 1
    after = {stage for h in holders for stage in moves.get(h.peer_id, h.shard).stages}
    assert covered <= after
