"""Who is waited for, and who is left out: what tells a slow peer from a dead one is that it moves."""

import pytest

from node.averaging import patience as patience_module
from node.averaging.exchange import Exchange
from node.averaging.patience import LEFT_OUT_S, MOVED_WITHIN_S, Patience
from node.core.deadline import NUM_NEEDED
from node.core.round_state import Ended
from node.core.types import RoundStatus

MEMBERS = frozenset({"me", "bert", "cleo"})
CEILING_S = 60.0


class Desk:
    """A patience with a clock of its own, and rounds that end as told."""

    def __init__(self):
        self.now = 100.0
        self.patience = Patience(clock=lambda: self.now)

    def ends(self, *, moved=None, status=RoundStatus.DROPPED, took_s=0.5, **named):
        exchange = Exchange("me", "none", self.now)
        exchange.opened_at = self.now + 0.1
        self.now += took_s
        exchange.committed_at = self.now if status is RoundStatus.COMMITTED else 0.0
        exchange.moved_at = {peer: self.now - ago_s for peer, ago_s in (moved or {}).items()}
        ended = Ended("r", status, MEMBERS, tokens=0, **{name: frozenset(who) for name, who in named.items()})
        self.patience.ended(ended, exchange, me="me")

    @property
    def left_out(self):
        return self.patience.left_out()

    @property
    def budget_s(self):
        return self.patience.budget({"bert", "cleo"}, ceiling_s=CEILING_S).budget_s


@pytest.fixture
def desk():
    desk = Desk()
    for _ in range(NUM_NEEDED):
        desk.ends(status=RoundStatus.COMMITTED)
    assert desk.budget_s < CEILING_S / 4
    return desk


def test_who_was_late_and_stood_still_is_left_out_for_a_while(desk):
    desk.ends(late={"cleo"}, moved={"bert": 0.1, "cleo": MOVED_WITHIN_S + 1})

    assert desk.left_out == {"cleo"}
    desk.now += LEFT_OUT_S + 1
    assert desk.left_out == frozenset()


def test_the_times_of_two_that_are_left_out_run_for_each_of_them(desk):
    desk.ends(culprits={"bert"}, took_s=0.0)
    desk.now += LEFT_OUT_S / 2
    desk.ends(culprits={"cleo"}, took_s=0.0)
    assert desk.left_out == {"bert", "cleo"}

    desk.now += LEFT_OUT_S / 2
    assert desk.left_out == {"cleo"}

    desk.patience.forgive()
    assert desk.left_out == frozenset()


def test_who_last_moved_as_long_ago_as_is_allowed_stood_still(desk):
    desk.patience.heard("bert")

    desk.ends(stalled={"bert"}, late={"cleo"}, moved={"cleo": MOVED_WITHIN_S}, took_s=MOVED_WITHIN_S)

    assert desk.left_out == {"bert", "cleo"}


def test_who_was_late_and_moved_is_given_twice_the_time_instead(desk):
    before_s = desk.budget_s

    desk.ends(late={"cleo"}, moved={"cleo": 0.1})

    assert desk.left_out == frozenset()
    assert desk.budget_s == 2 * before_s


def test_without_a_look_at_what_moves_a_slow_peer_would_be_left_out(desk, monkeypatch):
    monkeypatch.setattr(patience_module, "MOVED_WITHIN_S", -1.0)

    desk.ends(late={"cleo"}, moved={"cleo": 0.1})

    assert desk.left_out == {"cleo"}


def test_who_moves_but_never_gets_there_is_left_out_in_the_end(desk):
    for _ in range(2):
        desk.ends(late={"cleo"}, moved={"cleo": 0.1})
        assert desk.left_out == frozenset()

    desk.ends(late={"cleo"}, moved={"cleo": 0.1})

    assert desk.left_out == {"cleo"}


def test_who_has_not_answered_the_call_but_answers_pings_is_slow(desk):
    desk.patience.heard("cleo")

    desk.ends(status=RoundStatus.COMMITTED, stalled={"cleo", "dora"})

    assert desk.left_out == {"dora"}


def test_a_round_that_waited_for_somebody_in_vain_does_not_count_as_a_slow_one(desk):
    before_s = desk.budget_s

    for _ in range(NUM_NEEDED):
        desk.ends(status=RoundStatus.COMMITTED, stalled={"dora"}, took_s=20.0)

    assert desk.budget_s == before_s


def test_who_may_only_have_waited_for_others_is_left_out_the_second_time_alone(desk):
    desk.ends(unsure={"bert"})
    assert desk.left_out == frozenset()
    desk.ends(status=RoundStatus.COMMITTED)
    desk.ends(unsure={"bert"})
    assert desk.left_out == frozenset(), "a round was finished in between"

    desk.ends(unsure={"bert"})

    assert desk.left_out == {"bert"}


def test_who_sent_what_it_should_not_is_left_out_though_it_moves(desk):
    desk.ends(culprits={"bert"}, moved={"bert": 0.0})

    assert desk.left_out == {"bert"}


def test_a_node_never_leaves_itself_out(desk):
    desk.ends(culprits={"me"}, late={"me"}, stalled={"me"})

    assert desk.left_out == frozenset()
