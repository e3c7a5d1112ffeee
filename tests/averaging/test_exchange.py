"""The tensors of a round, without a wire: what each member sends is what the next one takes in, and nothing else is."""

import asyncio
import dataclasses
import math

import pytest
import torch

from node.averaging.exchange import Exchange, Sums, refuse_sums, sum_of
from node.averaging.strategy import SealedStages
from node.core.round_messages import SpanResult
from node.core.round_shares import next_base_hash, round_digest, shares_of
from node.core.types import NO_SHARD, Shard
from node.network.round_words import parse_result
from node.network.rounds import Bulk, Parts, PeerLost, digest_of
from node.training.adapter import SealedGradient

SIZES = {0: 10, 1: 17}
SHARDS = {"a": Shard(0, 2), "b": Shard(0, 1), "c": Shard(1, 2), "d": NO_SHARD}
WEIGHTS = {"a": {0: 3, 1: 5}, "b": {0: 4}, "c": {1: 0}, "d": {}}


@dataclasses.dataclass
class Answered:
    """As much of an answer as the shares are made of."""

    shard: Shard
    weight: int
    tokens: int
    session: str
    sizes: tuple


SHARES = shares_of(
    {
        peer: Answered(shard, 1, 7 * number, "5e", tuple((stage, SIZES[stage]) for stage in shard.stages))
        for number, (peer, shard) in enumerate(SHARDS.items(), 1)
    }
)


def gradients(peer):
    generator = torch.Generator().manual_seed(ord(peer))
    return {stage: torch.randn(SIZES[stage], generator=generator) for stage in SHARDS[peer].stages}


def opened(peer, codec="none", **changes):
    exchange = Exchange(peer, codec, started_at=1.0)
    exchange.shares = SHARES
    exchange.sums = Sums(gradients(peer), WEIGHTS[peer])
    return dataclasses.replace(exchange, **changes)


def spans_there(share, shard):
    return [span for span in share.spans if shard.holds(span.stage)]


def run_round(codec):
    """Let all members exchange everything; return them and the results of all."""
    members = {peer: opened(peer, codec) for peer in SHARDS}
    for peer, exchange in members.items():
        for share in exchange.near:
            parts = exchange.parts_for(share)
            assert tuple(len(part) for part in parts.parts) == members[share.peer_id].part_sizes(peer)
            members[share.peer_id].take_parts(exchange.mine, parts)
    reduced = {peer: exchange.reduce() for peer, exchange in members.items()}
    for exchange in members.values():
        for share in exchange.near:
            bulks = [
                bulk for stage, bulk in sorted(reduced[share.peer_id][0].items()) if exchange.mine.shard.holds(stage)
            ]
            assert tuple(len(bulk.data) for bulk in bulks) == exchange.result_sizes(share)
            results = exchange.take_spans(share, bulks)
            assert set(results) <= set(reduced[share.peer_id][1])
            assert [result.owner for result in results] == [share.peer_id] * len(bulks)
    return members, tuple(sorted(result for _, results in reduced.values() for result in results))


@pytest.mark.parametrize("codec", ["none", "bf16"])
def test_every_holder_of_a_stage_ends_with_the_same_weighted_mean(codec):
    members, results = run_round(codec)

    means = {peer: exchange.mean("r", results, base_hash="0b") for peer, exchange in members.items()}

    for stage in SIZES:
        held = [mean.by_stage[stage] for peer, mean in means.items() if SHARDS[peer].holds(stage)]
        assert len(held) == 2
        assert torch.equal(*held)
        brought = [(gradients(peer)[stage], WEIGHTS[peer][stage]) for peer in SHARDS if SHARDS[peer].holds(stage)]
        expected = sum(gradient for gradient, _ in brought) / sum(weight for _, weight in brought)
        torch.testing.assert_close(
            held[0], expected, rtol=0 if codec == "none" else 2**-7, atol=0.02 * (codec != "none")
        )
    whole = torch.cat([means["a"].by_stage[stage] for stage in SIZES]).double()
    assert means["a"].norm_sq == pytest.approx(float(whole @ whole))
    assert means["a"].tokens == 7 * (1 + 2 + 3 + 4)
    assert {mean.base_hash for mean in means.values()} == {next_base_hash("0b", round_digest("r", SHARES, results))}
    assert len({mean.norm_sq for mean in means.values()}) == 1
    assert means["d"].by_stage == {}


def test_a_result_names_the_digest_and_the_norm_of_its_bytes():
    members, results = run_round("none")

    for result in results:
        digest, norm_sq = parse_result(result.digest)
        values = members["a"].spans.get((result.stage, result.owner))
        assert values is not None, "a holds both stages"
        assert digest == digest_of(values.numpy().tobytes()).hex()
        assert norm_sq == pytest.approx(float(values.double() @ values.double()))


def test_a_lossy_codec_rounds_the_own_part_as_those_of_the_others():
    members, _ = run_round("bf16")

    rounded = {peer: gradients(peer)[0].bfloat16().float() for peer in "ab"}
    expected = ((rounded["a"] + rounded["b"]) / 7).bfloat16().float()
    assert torch.equal(torch.cat([members["a"].spans[0, "a"], members["a"].spans[0, "b"]]), expected)


def test_a_stage_of_which_nobody_counted_anything_gets_a_mean_of_zeros():
    exchange = opened("a", sums=Sums(gradients("a"), {0: 0, 1: 0}))
    exchange.parts = {"b": {0: (torch.zeros(5), 0)}, "c": {1: (torch.zeros(8), 0)}}

    reduced, _ = exchange.reduce()

    assert [bytes(bulk.data) for _, bulk in sorted(reduced.items())] == [bytes(4 * 5), bytes(4 * 8)]
    assert [bulk.norm_sq for bulk in reduced.values()] == [0, 0]


def test_the_parts_are_let_go_as_soon_as_they_are_reduced():
    members, _ = run_round("none")

    assert members["a"].parts == {}


def test_near_are_the_others_that_hold_a_stage_of_this_nodes():
    near = {peer: {share.peer_id for share in opened(peer).near} for peer in SHARDS}

    assert near == {"a": {"b", "c"}, "b": {"a"}, "c": {"a"}, "d": set()}


def spoilt(data, value):
    values = torch.frombuffer(bytearray(data), dtype=torch.float32).clone()
    values[-1] = value
    return values.numpy().tobytes()


@pytest.mark.parametrize("value", [math.nan, math.inf, -1e35])
def test_a_part_or_a_result_that_is_unusable_is_refused_and_its_sender_blamed(value):
    a, b = opened("a"), opened("b")
    parts = b.parts_for(a.mine)
    with pytest.raises(PeerLost, match="its part is unusable: it holds") as lost:
        a.take_parts(b.mine, Parts(parts.weights, (spoilt(parts.parts[0], value),)))
    assert lost.value.is_to_blame
    assert a.parts == {}

    a.take_parts(b.mine, parts)
    a.take_parts(opened("c").mine, opened("c").parts_for(a.mine))
    bulk = a.reduce()[0][0]
    with pytest.raises(PeerLost, match="its result is unusable: it holds") as lost:
        b.take_spans(a.mine, [dataclasses.replace(bulk, data=spoilt(bulk.data, value))])
    assert lost.value.is_to_blame
    with pytest.raises(PeerLost, match="its squared norm is") as lost:
        b.take_spans(a.mine, [dataclasses.replace(bulk, norm_sq=-abs(value))])
    assert lost.value.is_to_blame
    assert b.spans == {}


@pytest.mark.parametrize("number", [0, 2])
def test_more_or_fewer_parts_and_results_than_spans_are_an_error(number):
    a, b = opened("a"), opened("b")
    part, bulk = bytes(20), Bulk(bytes(20), b"", 0.0)

    with pytest.raises(ValueError, match="zip"):
        a.take_parts(b.mine, Parts((1,), (part,) * number))
    with pytest.raises(ValueError, match="zip"):
        a.take_parts(b.mine, Parts((1,) * number, (part,)))
    with pytest.raises(ValueError, match="zip"):
        b.take_spans(a.mine, [bulk] * number)


def test_a_mean_that_overflows_is_nobodys_fault_and_no_result():
    exchange = opened("b", sums=Sums({0: torch.full((10,), 3e38)}, {0: 1}))
    exchange.parts = {"a": {0: (torch.full((5,), 3e38), 0)}}

    with pytest.raises(PeerLost, match="the mean is unusable: its squared norm is inf") as lost:
        exchange.reduce()

    assert not lost.value.is_to_blame
    assert exchange.spans == {}


@pytest.mark.parametrize(
    ("sender", "changes"),
    [("x", {}), ("d", {}), ("c", {}), ("a", {"ended": True}), ("a", {"parts": {"a": {}}})],
    ids=["stranger", "no stage", "no stage in common", "over", "twice"],
)
def test_who_has_no_part_to_send_is_told_so(sender, changes):
    with pytest.raises(PeerLost, match="you are not in that round, or it is over"):
        opened("b", **changes).part_sizes(sender)


async def test_closing_cuts_off_what_waits_and_what_is_under_way_but_not_itself():
    exchange = opened("a")
    exchange.result = asyncio.get_running_loop().create_future()
    endless = asyncio.create_task(asyncio.sleep(60))

    async def close():
        exchange.close()
        await asyncio.sleep(0)
        return "went on"

    closing = asyncio.create_task(close())
    exchange.tasks |= {endless, closing}

    assert await closing == "went on"
    assert exchange.ended
    assert exchange.opened.is_set()
    with pytest.raises(PeerLost, match="the round is over"):
        await exchange.result
    with pytest.raises(asyncio.CancelledError):
        await endless
    exchange.close()  # the second time too


async def test_closing_leaves_a_result_that_is_there():
    exchange = opened("a")
    exchange.result = asyncio.get_running_loop().create_future()
    exchange.result.set_result({})

    exchange.close()

    assert exchange.result.result() == {}


def sealed(*values, weight=2):
    return SealedGradient(3, "0b", torch.tensor(values), weight, weight)


def test_own_sums_with_nan_are_named_by_their_stage():
    good = SealedStages({0: sealed(1.0, 2.0)})
    bad = SealedStages({1: sealed(1.0, math.nan), 0: sealed(1.0, 2.0)})

    assert refuse_sums(good) == ""
    assert refuse_sums(bad).startswith("the gradient of stage 1 is unusable: it holds NaN")


def test_several_sealed_sums_are_added_stage_by_stage_and_left_as_they_were():
    entries = [SealedStages({0: sealed(1.0, 10.0**n, weight=n)}) for n in range(1, 4)]

    sums = sum_of(entries, {0: 2})

    assert sums.gradients[0].tolist() == [3.0, 1110.0]
    assert sums.weights == {0: 6}
    assert [entry.by_stage[0].gradient.tolist() for entry in entries] == [[1.0, 10.0], [1.0, 100.0], [1.0, 1000.0]]


def test_the_sum_of_one_is_that_one_and_the_sum_of_none_is_zeros():
    entry = SealedStages({0: sealed(1.0, 2.0)})

    assert sum_of([entry], {0: 2}).gradients[0] is entry.by_stage[0].gradient
    nothing = sum_of([], {0: 2, 1: 3})
    assert {stage: values.tolist() for stage, values in nothing.gradients.items()} == {0: [0, 0], 1: [0, 0, 0]}
    assert nothing.weights == {0: 0, 1: 0}


def test_a_span_result_is_of_its_stage_and_owner():
    _, results = run_round("none")

    assert [(r.stage, r.owner) for r in results] == [(0, "a"), (0, "b"), (1, "a"), (1, "c")]
    assert all(isinstance(result, SpanResult) for result in results)
