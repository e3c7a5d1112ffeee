"""Single steps of the round's machine that the schedules reach too seldom to show what is meant."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from node.core.round_messages import (
    Answer,
    Call,
    Knowledge,
    Open,
    Reason,
    Refusal,
    Share,
    Standing,
    Tell,
    cut,
    has_quorum,
)
from node.core.round_state import Applied, Apply, Ended, FellBehind, Phase, Received, RoundState, SealDone, Send, Tick
from node.core.round_step import step, wake_at_s

BASE = Standing(3, "aa", 100)


def state(**changes):
    return RoundState(**{"me": "b", "standing": BASE, "settings": "s", "num_values": 10, **changes})


def run(machine, *events, now_s=0.0):
    effects = ()
    for event in events:
        machine, effects = step(machine, event, now_s)
    return machine, effects


def call(round="r", standing=BASE, base_round="r0", settings="s"):
    return Call(round, standing, base_round, 5.0, settings)


def sent(effects, kind):
    return [(e.to, e.message) for e in effects if isinstance(e, Send) and isinstance(e.message, kind)]


@given(num_values=st.integers(0, 10_000), speeds=st.lists(st.floats(0.01, 1e6), min_size=1, max_size=9))
def test_spans_cover_the_vector_without_gap_or_overlap(num_values, speeds):
    spans = cut(num_values, speeds)

    assert len(spans) == len(speeds)
    assert [start for start, _ in spans] == [0, *(stop for _, stop in spans[:-1])]
    assert spans[-1][1] == num_values
    assert all(start <= stop for start, stop in spans)


def test_two_halves_of_a_swarm_never_both_have_a_quorum():
    everybody = frozenset("abcd")
    assert not has_quorum(frozenset("ab"), [everybody, everybody], frozenset())
    assert has_quorum(frozenset("ab"), [frozenset("abc")], frozenset())
    assert not has_quorum(frozenset("ab"), [frozenset("ab"), everybody], frozenset()), "one member sees more"
    assert has_quorum(frozenset("a"), [frozenset("ab")], frozenset("b")), "the other one is dead"


@pytest.mark.parametrize(
    ("theirs", "reason", "follows"),
    [
        (Standing(4, "bb", 200), Reason.BEHIND, True),
        (Standing(2, "cc", 50), Reason.AHEAD, False),
        (Standing(3, "00", 100), Reason.BEHIND, True),
        (Standing(3, "ff", 100), Reason.AHEAD, False),
    ],
)
def test_the_lighter_of_two_lineages_follows_the_heavier(theirs, reason, follows):
    machine, effects = run(state(), Received("a", call(standing=theirs)))

    ((_, refusal),) = sent(effects, Refusal)
    assert refusal.reason is reason
    assert any(isinstance(e, FellBehind) for e in effects) is follows
    assert machine.must_sync is follows


def test_a_call_with_other_settings_is_refused():
    machine, effects = run(state(), Received("a", call(settings="other")))

    assert sent(effects, Refusal)[0][1].reason is Reason.UNEQUAL_SETTINGS
    assert machine.phase is Phase.IDLE


def test_of_two_callers_the_lower_id_wins_and_the_other_is_told():
    machine, _ = run(state(me="c"), Received("b", call("rb")), SealDone("rb", 1, 1))

    machine, effects = run(machine, Received("a", call("ra")))
    assert machine.round.leader == "a"
    assert any(to == "b" for to, _ in [(e.to, e.message) for e in effects if isinstance(e, Send)])

    machine, effects = run(machine, Received("b", call("rb2")))
    assert machine.round.leader == "a"
    assert sent(effects, Refusal)[0][1].reason is Reason.BUSY


@pytest.mark.parametrize(
    "shares",
    [
        (Share("a", 1, 1, 0, 5), Share("b", 2, 1, 5, 10)),  # another weight than given
        (Share("b", 1, 1, 0, 5), Share("a", 1, 1, 5, 10)),  # out of order
        (Share("a", 1, 1, 0, 5), Share("b", 1, 1, 6, 10)),  # a gap
        (Share("a", 1, 1, 0, 5), Share("b", 1, 1, 5, 9)),  # too short
        (Share("a", 1, 1, 0, 7), Share("b", 1, 1, 7, 3)),  # backwards
        (Share("a", 1, 1, 0, 10),),  # without me
        (Share("b", 1, 1, 0, 10),),  # without its leader
    ],
)
def test_a_member_refuses_a_round_that_is_opened_wrongly(shares):
    machine, effects = run(state(), Received("a", call()), SealDone("r", 1, 1), Received("a", Open("r", shares)))

    assert machine.phase is Phase.IDLE
    assert any(isinstance(e, Ended) for e in effects)


def given_up_round():
    """A member that voted, whose leader fell silent, and who went on without the round."""
    from node.core.round_state import PartIn, Reduced, SpanIn

    shares = (Share("a", 1, 1, 0, 5), Share("b", 1, 1, 5, 10))
    machine, _ = run(
        state(),
        Received("a", call()),
        SealDone("r", 1, 1),
        Received("a", Open("r", shares)),
        PartIn("r", "a"),
        Reduced("r", "d1"),
        SpanIn("r", "a", "d0"),
    )
    assert machine.phase is Phase.VOTED
    digest = machine.round.digest
    machine, _ = step(machine, Tick(), wake_at_s(machine))
    assert machine.phase is Phase.DOUBTING
    machine, effects = step(machine, Tick(), wake_at_s(machine))
    assert machine.phase is Phase.IDLE
    assert any(isinstance(e, Ended) and e.is_in_doubt for e in effects)
    return machine, digest


def test_a_commit_that_comes_to_light_late_is_still_honoured():
    machine, digest = given_up_round()

    machine, effects = run(machine, Received("a", Tell("r", Knowledge.COMMITTED, digest)), now_s=20.0)

    assert any(isinstance(e, Apply) and e.round == "r" for e in effects)


def test_a_commit_with_another_digest_is_not_honoured():
    machine, _ = given_up_round()

    machine, effects = run(machine, Received("a", Tell("r", Knowledge.COMMITTED, "beef")), now_s=20.0)

    assert effects == ()


def test_a_call_built_upon_the_doubtful_round_proves_its_commit_and_is_answered_after_it():
    machine, _ = given_up_round()
    stepped = Standing(4, "bb", 102)

    machine, effects = run(machine, Received("a", call("r2", standing=stepped, base_round="r")), now_s=20.0)
    assert any(isinstance(e, Apply) and e.round == "r" for e in effects)
    machine, effects = run(machine, Applied("r", stepped), SealDone("r2", 0, 0), now_s=20.1)

    assert sent(effects, Answer)[0][1].round == "r2"


def test_once_a_later_round_is_open_the_doubtful_one_is_past():
    machine, digest = given_up_round()
    shares = (Share("a", 1, 1, 0, 5), Share("b", 2, 2, 5, 10))
    machine, _ = run(
        machine, Received("a", call("r2")), SealDone("r2", 2, 2), Received("a", Open("r2", shares)), now_s=20.0
    )
    assert machine.phase is Phase.EXCHANGING

    machine, effects = run(machine, Received("a", Tell("r", Knowledge.COMMITTED, digest)), now_s=20.0)

    assert effects == ()
    assert machine.round.id == "r2"
