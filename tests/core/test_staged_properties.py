"""The invariants of rounds over several stages, over schedules of deaths, stalls, lies, partitions and bad networks."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st
from round_world import VIEW_S, Fault
from staged_world import Node, StagedWorld
from test_round_properties import FAULTS_END_S, HEALED_S, faults, over_schedules, run_checked

import node.core.round_calls
import node.core.round_shares
from node.core.types import NO_SHARD, RoundStatus, Shard

FIRST, SECOND, THIRD, BOTH, LAST_TWO = Shard(0, 1), Shard(1, 2), Shard(2, 3), Shard(0, 2), Shard(1, 3)
LAYOUTS = {
    "2 stages x 2": (2, (FIRST, FIRST, SECOND, SECOND)),
    "overlapping": (3, (BOTH, LAST_TWO, FIRST, THIRD, NO_SHARD)),
    "whole replicas": (2, (BOTH, BOTH, BOTH)),
    "holders and drivers": (2, (NO_SHARD, FIRST, BOTH, SECOND, NO_SHARD)),
}
layouts = st.sampled_from(sorted(LAYOUTS))


def world_of(layout, seed, faults=(), **options):
    num_stages, shards = LAYOUTS[layout]
    return StagedWorld(random.Random(seed), shards, num_stages, faults, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_faults_every_microbatch_of_every_driver_comes_to_every_stage_once(layout):
    for seed in range(12):
        world = world_of(layout, seed, fifo=True, delay_s=0.005)
        run_checked(world, 6.0, every_s=0.5)

        assert world.num_committed() > 0
        world.quiet()
        until = world.now + HEALED_S
        while world.now < until and not world.is_settled():
            run_checked(world, world.now + 0.5)
        assert world.is_settled()


@over_schedules(400)
@given(
    layout=layouts,
    seed=st.integers(0, 2**32),
    faults=faults,
    fifo=st.booleans(),
    duplicates=st.sampled_from([0.0, 0.3]),
    loss=st.sampled_from([0.0, 0.02, 0.2]),
)
def test_every_schedule_steps_all_stages_together_and_ends_in_one_place(layout, seed, faults, fifo, duplicates, loss):
    world = world_of(layout, seed, faults, fifo=fifo, duplicates=duplicates, loss=loss)

    run_checked(world, FAULTS_END_S, every_s=0.5)
    run_checked(world, max([FAULTS_END_S, *(f.at_s + f.seconds for f in faults if f.kind == "restart")]) + 0.5)
    healed_by = world.quiet() + 2 * HEALED_S
    is_whole = {stage for n in world.nodes.values() if n.is_up for stage in n.shard.stages} == set(
        range(world.num_stages)
    )
    while is_whole and world.now < healed_by and not world.is_settled():
        run_checked(world, world.now + 0.5, every_s=0.5)

    assert not is_whole or len(world.places()) <= 1, f"not one place after healing: {world.standings()}"
    for node in world.nodes.values():
        assert not (is_whole and node.is_up) or not node.book.tokens, f"{node.id} still holds work"


def quorum_of_every_stage(world, members):
    """Whether the members are more than half of all holders, stage by stage."""
    for stage in range(world.num_stages):
        holders = {id for id, shard in world.shards.items() if shard.holds(stage)}
        if 2 * len(holders & set(members)) <= len(holders):
            return False
    return True


def rounds_through_a_short_partition(seed, layout):
    """Return the members of all rounds that committed while a swarm was cut in two, all of it alive and in view."""
    world = world_of(layout, seed, [Fault(3.0, "partition", seed, VIEW_S - 1.0)], fifo=True, delay_s=0.005)
    world.lost_answers = 0.0
    world.run(3.0)
    is_together = len(world.places()) == 1 and not any(n.state.must_sync for n in world.nodes.values())
    sees_all = all(len(n.heard) == len(world.nodes) - 1 for n in world.nodes.values())
    if not (is_together and sees_all and not any(s for n in world.nodes.values() for _, _, s, _ in n.heard.values())):
        return world, {}
    run_checked(world, 3.0 + VIEW_S - 1.0, every_s=0.5)
    ends = [(at, end) for node in world.nodes.values() for at, end in node.rounds]
    return world, {e.round: e.members for at, e in ends if at > 3.2 and e.status is not RoundStatus.DROPPED}


@pytest.mark.parametrize("layout", LAYOUTS)
def test_while_the_swarm_is_cut_in_two_no_stage_steps_without_more_than_half_of_its_holders(layout):
    for seed in range(40):
        world, rounds = rounds_through_a_short_partition(seed, layout)
        for members in rounds.values():
            assert quorum_of_every_stage(world, members), f"{sorted(members)} stepped"


def test_without_the_quorum_of_each_stage_a_part_would_step(monkeypatch):
    """The property above must bite: with its guard taken out, it fails."""
    monkeypatch.setattr(node.core.round_shares, "has_quorum", lambda members, alive, dead: True)

    def fails(seed):
        world, rounds = rounds_through_a_short_partition(seed, "whole replicas")
        return any(not quorum_of_every_stage(world, members) for members in rounds.values())

    assert any(fails(seed) for seed in range(20))


def test_no_round_is_committed_while_a_stage_has_no_holder_and_again_when_it_has_one():
    away = [Fault(2.0, "restart", 2, 4.0), Fault(2.0, "restart", 3, 4.0)]
    world = world_of("2 stages x 2", 5, away, fifo=True, delay_s=0.005)
    world.run(1.99)
    before = world.num_committed()
    assert before > 0

    run_checked(world, 6.0, every_s=0.5)
    ends = [end for node in world.nodes.values() for at, end in node.rounds if at > 2.5]
    assert not any(end.status is RoundStatus.COMMITTED for end in ends)
    run_checked(world, 14.0, every_s=0.5)

    assert world.num_committed() > before


@pytest.mark.parametrize("sabotage", ["no doubts", "old sums kept"])
def test_the_staged_properties_notice_broken_books(sabotage, monkeypatch):
    """The net has to be fine enough: with a guard taken out, some schedule must fail."""
    if sabotage == "no doubts":  # a holder that may have counted what another counted too takes part
        monkeypatch.setattr(node.core.round_calls, "doubted", lambda answers: frozenset())
    else:  # a holder that follows another lineage keeps its sums under a new session
        monkeypatch.setattr(Node, "discard", lambda self: setattr(self, "num_sessions", self.num_sessions + 1))

    def fails(seed):
        rng = random.Random(seed)
        chosen = [Fault(rng.uniform(0.5, 8), "stall", rng.randrange(5), rng.choice([0.6, 2, 4])) for _ in range(4)]
        world = world_of("2 stages x 2", seed, chosen)
        try:
            run_checked(world, 10.0, every_s=0.5)
        except AssertionError:
            return True
        return False

    assert any(fails(seed) for seed in range(60))
