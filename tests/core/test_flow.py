"""How many microbatches are under way, against a simulated way with one bottleneck."""

import heapq

import pytest

from node.core.routing import MAX_IN_FLIGHT, Flow


def drive(flow, *, delay_s, service_s, is_link, drivers=1, until_s=200.0):
    """Send microbatches of several alike drivers through one first-in-first-out bottleneck after a fixed delay.

    Every 25 s all of them finish what is under way and begin again, as at a round.

    Returns:
        The share of the bottleneck's time that was used after the first 50 s, without what a round itself costs, and
        the most that were under way then.
    """
    flows = [flow() for _ in range(drivers)]
    under_way = [0] * drivers
    events, free_s, used_s, most, number = [], 0.0, 0.0, 0, 0
    now_s, flush_s, lost_s = 0.0, 25.0, 0.0

    def begin():
        nonlocal free_s, number
        for index, one in enumerate(flows):
            while under_way[index] < one.in_flight(MAX_IN_FLIGHT):
                arrives_s = now_s + delay_s
                begins_s = max(arrives_s, free_s)
                free_s = begins_s + service_s
                number += 1
                waited_s = 0.0 if is_link else begins_s - arrives_s  # a link does not say how long its queue was
                heapq.heappush(events, (free_s, number, index, free_s - now_s - waited_s))
                under_way[index] += 1

    begin()
    while events and now_s < until_s:
        now_s, _, index, took_s = heapq.heappop(events)
        under_way[index] -= 1
        flows[index].done(unqueued_s=took_s, now_s=now_s, is_local=False)
        if now_s > 50.0:
            used_s += service_s
            most = max(most, *under_way)
        if now_s < flush_s:
            begin()
        elif not any(under_way):
            flush_s += 25.0
            lost_s += delay_s if now_s > 50.0 else 0.0
            begin()
    return used_s / (now_s - 50.0 - lost_s), most


@pytest.mark.parametrize("is_link", [False, True])
@pytest.mark.parametrize(("delay_s", "service_s"), [(0.0, 1.0), (0.5, 1.0), (2.0, 0.5), (4.0, 0.4)])
def test_the_bottleneck_is_kept_busy_without_a_long_queue(delay_s, service_s, is_link):
    used, most = drive(Flow, delay_s=delay_s, service_s=service_s, is_link=is_link)

    needed = (delay_s + service_s) / service_s
    assert used > 0.96
    assert most <= 2 * needed + 3


def test_drivers_that_share_a_link_do_not_drive_each_other_up():
    used, most = drive(Flow, delay_s=0.5, service_s=0.7, is_link=True, drivers=2)

    assert used > 0.96
    assert most <= 10


def test_a_queue_that_counted_as_the_way_would_fill_all_there_is_room_for():
    class Naive(Flow):
        """Takes the latest time for the least one."""

        def in_flight(self, limit):
            self._took = type(self._took)([max(self._took)]) if self._took else self._took
            return super().in_flight(limit)

    _, most = drive(Naive, delay_s=0.5, service_s=0.7, is_link=True, drivers=2)
    assert most > 12


def test_a_driver_whose_way_is_all_its_own_has_one_under_way():
    flow = Flow()
    for number in range(20):
        flow.done(unqueued_s=1.0, now_s=float(number), is_local=True)
    assert flow.in_flight(8) == 1


def test_memory_bounds_what_is_under_way():
    flow = Flow()
    for number in range(40):
        flow.done(unqueued_s=10.0, now_s=0.5 * number, is_local=False)
    assert (flow.in_flight(100), flow.in_flight(3)) == (32, 3)
