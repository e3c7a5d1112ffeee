"""The node's life as a table."""

import pytest

from node.core.lifecycle import LIVE, TRANSITIONS, Signal, State, next_state


def test_every_live_state_can_be_stopped_and_can_fail():
    for state in LIVE:
        assert next_state(state, Signal.STOP_REQUESTED) is State.DRAINING
        assert next_state(state, Signal.FATAL) is State.FAILED


def test_every_state_but_the_first_can_be_reached():
    assert {*TRANSITIONS.values()} == {*State} - {State.STARTING}


def test_the_last_states_lead_nowhere():
    assert not [pair for pair in TRANSITIONS if pair[0] in (State.STOPPED, State.FAILED)]


def test_a_pair_outside_the_table_is_a_bug():
    with pytest.raises(AssertionError, match="paused does not know the signal 'loaded'"):
        next_state(State.PAUSED, Signal.LOADED)
