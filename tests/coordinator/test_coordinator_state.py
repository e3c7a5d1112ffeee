"""One run as a coordinator sees it, pure: any order of messages and times leaves it in order."""

import dataclasses

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from light_nodes import make_facts, make_run

from coordinator.bounds import MemberFacts, RoundReport, RunFacts
from coordinator.run_state import HEARTBEAT_S, ROUND_S, Gone, Planned, Refused, RunState, State

PEERS = ("a", "b", "c")


def facts(**changes):
    return MemberFacts.read(make_facts(**changes))


def report(version, outcome="committed"):
    return RoundReport(
        version=version, outcome=outcome, num_members=2, tokens=1, seconds=1.0, bytes_sent=1, reason="", plan_id=""
    )


@pytest.fixture
def run():
    return RunState(RunFacts.read(make_run(target_batch_tokens=1000)))


def plans(changes):
    return [change.plan for change in changes if isinstance(change, Planned)]


def test_a_round_is_due_when_those_of_one_standing_have_enough_tokens(run):
    assert run.state is State.WAITING
    run.heartbeat("a", b"r", facts(state="loading"), 0.0)
    assert run.state is State.WARMUP
    run.heartbeat("a", b"r", facts(tokens=400, tokens_per_s=100.0), 0.0)
    assert run.state is State.TRAINING
    run.heartbeat("b", b"r", facts(tokens=400, tokens_per_s=100.0), 0.0)
    run.heartbeat("c", b"r", facts(version=2, tokens=900, tokens_per_s=100.0), 0.0)

    assert plans(run.tick(0.9)) == []
    assert run.next_tick(0.9) == pytest.approx(1.0)
    (plan,) = plans(run.tick(1.01))
    assert plan.members == (("a", 0, 4), ("b", 0, 4)), "not the one that is behind"
    assert (plan.version, plan.leader, plan.begin_at, plan.deadline) == (3, "a", 1.01, 1.01 + ROUND_S)
    assert run.state is State.ROUND_OPEN


def both(run, now, **changes):
    return [*run.heartbeat("a", b"r", facts(**changes), now), *run.heartbeat("b", b"r", facts(**changes), now)]


def test_after_a_round_none_is_called_for_the_version_before_it(run):
    assert len(plans(both(run, 0.0, tokens=600))) == 1

    assert plans(run.report(report(3), 0.1)) == []
    assert plans(both(run, 0.2, tokens=600)) == [], "their heartbeats still tell of before"
    assert len(plans(both(run, 0.3, version=4, base_hash="cd", tokens=600))) == 1


def test_after_a_dropped_round_there_is_another_one_a_little_later(run):
    both(run, 0.0, tokens=600)

    assert plans(run.report(report(3, "dropped"), 0.1)) == []
    assert len(plans(run.tick(2.2))) == 1


def test_without_a_holder_of_each_stage_no_round_is_due(run):
    run.heartbeat("a", b"r", facts(tokens=900, stop_stage=2), 0.0)

    assert plans(run.heartbeat("b", b"r", facts(tokens=900, stop_stage=2), 0.0)) == []
    assert len(plans(run.heartbeat("b", b"r", facts(tokens=900, first_stage=2), 0.0))) == 1


def test_who_falls_silent_is_gone_and_who_was_evicted_stays_out(run):
    run.heartbeat("a", b"r", facts(), 0.0)
    run.heartbeat("b", b"r", facts(), HEARTBEAT_S)

    assert run.tick(run.expires_s + 0.01) == [Gone("a")]
    assert run.evict("b") == [Gone("b", is_evicted=True)]
    with pytest.raises(Refused, match="evicted"):
        run.heartbeat("b", b"r", facts(), run.expires_s)


def test_a_joiner_is_shown_what_the_swarm_lacks_most(run):
    assert run.suggest(2) == (0, 2)
    run.heartbeat("a", b"r", facts(stop_stage=2), 0.0)
    assert run.suggest(2) == (2, 4)
    assert run.suggest(0) == (2, 3)
    assert run.suggest(99) == (0, 4)


def test_the_operators_word(run):
    both(run, 0.0, tokens=10)
    run.pause()
    assert run.state is State.PAUSED
    assert plans(both(run, 0.1, tokens=5000)) == []
    run.resume()
    assert len(plans(run.tick(0.2))) == 1
    run.finish()
    assert run.state is State.FINISHED
    assert plans(both(run, 0.3, version=9, tokens=5000)) == []


ACTIONS = st.one_of(
    st.tuples(
        st.just("heartbeat"), st.sampled_from(PEERS), st.integers(0, 12), st.integers(0, 2000), st.integers(0, 3)
    ),
    st.tuples(st.just("leave"), st.sampled_from(PEERS)),
    st.tuples(st.just("report"), st.integers(0, 12), st.sampled_from(["committed", "alone", "dropped"])),
    st.tuples(st.just("evict"), st.sampled_from(PEERS)),
    st.tuples(st.sampled_from(["pause", "resume", "finish"])),
    st.tuples(st.just("tick")),
)


@settings(max_examples=300, deadline=None)
@given(st.lists(st.tuples(ACTIONS, st.floats(0, 30)), max_size=40))
def test_in_any_order_it_stays_in_order(story):
    run, now, was_finished, highest = (
        RunState(RunFacts.read(make_run(max_steps=10, target_batch_tokens=1000))),
        0.0,
        False,
        0,
    )
    for (name, *details), later in story:
        now += later
        changes = act(run, name, details, now)
        for plan in plans(changes):
            assert not run.is_paused
            assert not run.is_finished
            held = [stage for _, first, stop in plan.members for stage in range(first, stop)]
            assert set(held) == set(range(4)), "a holder for each stage"
            assert len(plan.members) >= 2
            assert plan.begin_at <= plan.deadline
            assert {run.members[id].facts.standing for id, _, _ in plan.members} == {(plan.version, plan.base_hash)}
        assert run.version >= highest
        assert run.is_finished >= was_finished
        highest, was_finished = run.version, run.is_finished
        assert not set(run.evicted) & set(run.members)
        if name in ("heartbeat", "tick", "report"):
            assert run.next_tick(now) > now, "or it would spin"
            assert all(now - member.heard_at <= run.expires_s for member in run.members.values())
        assert dataclasses.replace(run).state is run.state


def act(run, name, details, now):
    match name, details:
        case "heartbeat", [peer, version, tokens, first]:
            told = facts(version=version, base_hash=f"{version:02x}", tokens=tokens, first_stage=first)
            try:
                return run.heartbeat(peer, b"r", told, now)
            except Refused:
                assert peer in run.evicted
                return run.tick(now)
        case "leave", [peer]:
            return run.leave(peer)
        case "report", [version, outcome]:
            return run.report(report(version, outcome), now)
        case "evict", [peer]:
            return run.evict(peer)
        case "tick", []:
            return run.tick(now)
        case _:
            return getattr(run, name)()
