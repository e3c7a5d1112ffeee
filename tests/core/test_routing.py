"""Which holders a microbatch goes through, and with whom a repetition stays."""

from node.core.routing import Holder, Hop, route_again
from node.core.types import PeerId, Shard

A, B, C = PeerId("a"), PeerId("b"), PeerId("c")
HOLDERS = (Holder(A, Shard(0, 2)), Holder(B, Shard(1, 3)), Holder(C, Shard(1, 3)))
SECONDS = {A: 3.0, B: 2.0, C: 1.0}


def again(counted_by, avoid=()):
    return route_again(
        HOLDERS, 0, 3, cost=lambda peer, stages: SECONDS[peer] * stages, avoid=avoid, counted_by=counted_by
    )


def test_a_first_attempt_takes_the_cheapest_holders():
    assert again({}) == (Hop(A, 0, 1), Hop(C, 1, 3))


def test_a_repetition_stays_with_who_counted_it_though_another_is_cheaper():
    assert again({1: B, 2: B}) == (Hop(A, 0, 1), Hop(B, 1, 3))
    assert again({1: B}) == (Hop(A, 0, 1), Hop(B, 1, 2), Hop(C, 2, 3))


def test_a_repetition_goes_round_one_that_is_gone_or_failed():
    assert again({1: B, 2: B}, avoid={B}) == (Hop(A, 0, 1), Hop(C, 1, 3))
    assert again({0: PeerId("gone")}) == (Hop(A, 0, 1), Hop(C, 1, 3))


def test_no_route_is_found_if_a_stage_has_no_holder():
    assert again({1: B}, avoid={A}) is None
