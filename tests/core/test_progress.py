"""What every node works out alike from the same view."""

import dataclasses

from node.core.progress import (
    SwarmTotals,
    leader,
    missing_stages,
    peer_ahead,
    peers_of_one_state,
    tokens_towards_next,
    totals,
    with_partners,
)
from node.core.types import NO_SHARD, Peer, PeerId, PeerState, Progress, Shard, SwarmView

WHOLE = Shard(0, 1)


def progress(version=3, hash="aa", committed=1000, tokens=100, rate=10.0, at_s=50.0, hashes=()):
    return Progress(version, hash, committed, tokens, rate, at_s, hashes)


def peer(name, state=PeerState.TRAINING, loss=None, shard=WHOLE, **changes):
    return Peer(PeerId(name), name, (), shard, state, loss, 0, progress(**changes), 99.0)


def view(*peers, me="b"):
    return SwarmView(PeerId(me), tuple(sorted(peers, key=lambda p: p.peer_id)))


def test_the_leader_is_the_lowest_id_among_those_with_the_same_bits():
    mine = progress()
    assert leader(view(peer("a"), peer("b"), peer("c")), mine) == "a"
    assert leader(view(peer("a", version=2), peer("b"), peer("c")), mine) == "b"
    assert leader(view(peer("a", hash="bb"), peer("b"), peer("c")), mine) == "b"
    assert leader(view(peer("a", state=PeerState.LOADING), peer("b")), mine) == "b"
    assert leader(view(peer("a"), peer("b")), mine, without={"a"}) == "b"


def test_this_node_counts_itself_whatever_its_record_says():
    mine = progress(version=9)
    assert [p.peer_id for p in peers_of_one_state(view(peer("a"), peer("b", version=8)), mine)] == ["b"]


def test_holders_of_other_stages_and_drivers_without_any_belong_to_one_state():
    first = peer("a", shard=Shard(0, 1), hashes=((0, "a0"),))
    both = peer("b", shard=Shard(0, 2), hashes=((0, "a0"), (1, "a1")))
    driver = peer("c", shard=NO_SHARD)
    spoilt = peer("d", shard=Shard(1, 2), hashes=((1, "ff"),))
    swarm = view(first, both, driver, spoilt)

    assert [p.peer_id for p in peers_of_one_state(swarm, both.progress)] == ["a", "b", "c"]
    assert missing_stages((first, driver), 3) == (1, 2)
    assert missing_stages((both,), 2) == ()


def test_of_one_lineage_with_unequal_bits_one_side_is_followed():
    one, other = peer("a", hashes=((0, "0a"),)), peer("b", hashes=((0, "f0"),))

    assert peer_ahead(view(one, other, me="b"), other.progress) == one
    assert peer_ahead(view(one, other, me="a"), one.progress) is None


def test_partners_of_the_latest_round_count_as_far_as_this_node():
    mine = progress(version=4, hash="bb", committed=1200, tokens=0, hashes=((0, "b0"), (1, "b1")))
    partner = peer("a", shard=Shard(1, 3), hashes=((1, "a1"), (2, "a2")), tokens=70)
    swarm = with_partners(view(partner, peer("b"), peer("c")), mine, {"a"}, stepped_at_s=60.0)

    assert [p.peer_id for p in peers_of_one_state(swarm, mine)] == ["a", "b"]
    fresh = progress(version=4, hash="bb", committed=1200, tokens=0, at_s=60.0, hashes=((1, "b1"),))
    assert swarm.peer("a").progress == fresh
    assert swarm.peer("c") == peer("c")


def test_a_partner_that_has_told_of_the_round_itself_is_taken_at_its_word():
    mine = progress(version=4)
    swarm = view(peer("a", version=4, tokens=70), peer("b"))

    assert with_partners(swarm, mine, {"a"}, stepped_at_s=60.0) == swarm


def test_tokens_of_others_are_counted_on_by_their_rate_but_not_for_ever():
    swarm = view(peer("a", tokens=200, rate=10.0, at_s=50.0), peer("b"))
    mine = progress(tokens=30)
    assert tokens_towards_next(swarm, mine, now_s=50.0) == 230
    assert tokens_towards_next(swarm, mine, now_s=54.0) == 270
    assert tokens_towards_next(swarm, mine, now_s=5000.0) == 330
    assert tokens_towards_next(swarm, mine, now_s=10.0) == 230, "a clock that is behind takes nothing away"
    assert tokens_towards_next(swarm, mine, now_s=54.0, without={"a"}) == 30
    first = view(peer("a"), peer("b", tokens=200, rate=10.0, at_s=50.0), me="a")
    assert tokens_towards_next(first, mine, now_s=50.0) == 230, "wherever this node stands among them"


def test_the_lineage_with_more_committed_tokens_is_followed():
    mine = progress()
    ahead = peer("a", version=2, hash="bb", committed=1001)
    assert peer_ahead(view(ahead, peer("b")), mine) == ahead
    last = dataclasses.replace(ahead, peer_id="c")
    assert peer_ahead(view(dataclasses.replace(ahead, progress=None), peer("b"), last), mine) == last
    assert peer_ahead(view(dataclasses.replace(ahead, peer_id="b"), peer("c")), mine) is None, "its own old record"
    assert peer_ahead(view(peer("a", version=9, hash="bb", committed=999), peer("b")), mine) is None
    assert peer_ahead(view(peer("a"), peer("b")), mine) is None
    assert peer_ahead(view(dataclasses.replace(ahead, state=PeerState.SYNCING), peer("b")), mine) is None


def test_two_halves_that_are_equally_far_agree_on_one_of_them():
    one, other = progress(hash="0a"), progress(hash="f0")
    a_sees = peer_ahead(view(peer("a", hash="0a"), peer("b", hash="f0"), me="a"), one)
    b_sees = peer_ahead(view(peer("a", hash="0a"), peer("b", hash="f0"), me="b"), other)
    assert (a_sees is None) != (b_sees is None)


def test_totals_weigh_losses_by_speed_and_leave_out_who_does_not_train():
    swarm = totals(
        view(
            peer("a", rate=30.0, loss=1.0),
            peer("b", rate=10.0, loss=3.0),
            peer("c", rate=99.0, loss=9.0, state=PeerState.PAUSED),
        )
    )
    assert swarm == SwarmTotals(num_peers=3, tokens_per_s=40.0, loss=1.5, version=3)


def test_totals_of_who_has_no_loss_no_rate_or_no_progress_yet():
    new = dataclasses.replace(peer("a"), progress=None)
    assert totals(view(new)) == SwarmTotals(num_peers=1, tokens_per_s=0, loss=None, version=0)
    slow = (peer("b", rate=0.0, loss=2.0), peer("c", rate=0.0, loss=4.0), peer("d", version=7))
    assert totals(view(new, *slow)) == SwarmTotals(num_peers=4, tokens_per_s=10.0, loss=3.0, version=7)
    assert totals(view(peer("b", rate=0.5, loss=2.0), peer("c", rate=1.5, loss=4.0))).loss == 3.5
