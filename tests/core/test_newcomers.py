"""Steps wait for newcomers, and not for ever."""

from hypothesis import given
from hypothesis import strategies as st

from node.core.newcomers import HOLD_S, Newcomers


def test_a_step_waits_for_each_who_fetches():
    newcomers = Newcomers()
    assert not newcomers.are_awaited(0.0)

    for start_s in (10.0, 10.0 + 2 * HOLD_S, 100.0):
        newcomers.expect(start_s)
        assert newcomers.are_awaited(start_s)
        assert newcomers.are_awaited(start_s + 0.99 * HOLD_S)
        assert not newcomers.are_awaited(start_s + HOLD_S)


@given(st.lists(st.floats(0.0, 60.0), max_size=200))
def test_however_many_fetch_half_of_the_time_is_left_for_steps(times_s):
    newcomers, fetched, held = Newcomers(), sorted(times_s), 0

    for tick in range(600):
        now_s = tick / 10
        while fetched and fetched[0] <= now_s:
            newcomers.expect(fetched.pop(0))
        held += newcomers.are_awaited(now_s)

    assert held <= 300 + 10 * HOLD_S
