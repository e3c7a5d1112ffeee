"""The round's words and bulk on the wire: what comes in is checked before anything is done with it."""

import asyncio
import dataclasses
from contextlib import AsyncExitStack, suppress

import pytest
import torch
from google.protobuf.message import DecodeError
from hivemind.p2p import PeerID
from hypothesis import given
from hypothesis import strategies as st

from node.core.round_messages import (
    Answer,
    Ask,
    Call,
    Fail,
    Knowledge,
    Open,
    Reason,
    Refusal,
    Share,
    Span,
    SpanResult,
    Tell,
    Verdict,
    Vote,
)
from node.core.types import NO_SHARD, Shard, Standing
from node.network.compression import decode, encode, num_bytes
from node.network.processes import start_p2p
from node.network.round_words import (
    MAX_MESSAGE_BYTES,
    MAX_SPANS,
    Malformed,
    from_wire,
    parse_result,
    result_text,
    to_wire,
)
from node.network.rounds import Bulk, Parts, PeerLost, RoundTransport, digest_of
from node.trust.identity import Identity
from node.v1 import round_pb2

PEERS = ["QmYyQSo1c1Ym7orWxLYvCrM2EmxFTANf8wXmmE7DWjhx5N", "QmcgpsyWgH8Y8ajJz1Cu72KnS5uo2Aa2LpzU7kinSupNKC"]
STANDING = Standing(7, "0f", 1234, ((1, "0a"), (2, "0b")))
SHARD = Shard(1, 3)
RESULTS = (SpanResult(1, PEERS[0], result_text("ab" * 32, 0.1)), SpanResult(2, PEERS[0], result_text("cd" * 32, 1e-9)))
ANSWER = Answer(
    "r.1",
    5,
    9,
    SHARD,
    "5e",
    STANDING.hashes,
    ((1, 50), (2, 70)),
    {PEERS[0]: SHARD, PEERS[1]: NO_SHARD},
    frozenset({(PEERS[1], "5f")}),
)
SPANS = (Span(1, 0, 50), Span(2, 30, 70))
WORDS = [
    Call("r.1", STANDING, "r.0", 2.5, "none/mean/3"),
    ANSWER,
    Refusal("r.1", Reason.BEHIND, STANDING),
    Open("r.1", (Share(PEERS[0], 5, 9, SHARD, "5e", SPANS), Share(PEERS[1], 0, 0, NO_SHARD, "", ()))),
    Fail("r.1", PEERS[0], "why"),
    Fail("r.1", None, ""),
    Vote("r.1", RESULTS),
    Verdict("r.1", committed=True, reason="", results=RESULTS),
    Verdict("r.1", committed=False, reason="no", must_discard=True),
    Ask("r.1"),
    Tell("r.1", Knowledge.COMMITTED, RESULTS),
    Tell("r.1", Knowledge.GAVE_UP),
    Call("r.1", STANDING, "", 2.5, "none/mean/3"),
]


@pytest.mark.parametrize("word", WORDS, ids=lambda word: type(word).__name__)
def test_words_come_back_as_they_went(word):
    wire = to_wire(word, fingerprint="f")

    assert wire.fingerprint == "f"
    assert from_wire(round_pb2.RoundMessage.FromString(wire.SerializeToString())) == word


@given(st.binary(max_size=200))
def test_garbage_is_malformed_or_a_word_and_nothing_else(data):
    wire = round_pb2.RoundMessage()
    try:
        wire.ParseFromString(data)
    except DecodeError:  # protobuf's own refusal, before our code sees anything
        return
    with suppress(Malformed):
        from_wire(wire)


def spoil(word, **changes):
    wire = to_wire(word, fingerprint="f")
    for path, value in changes.items():
        *parents, name = path.split("__")
        target = wire
        for parent in parents:
            target = getattr(target, parent)
        setattr(target, name, value)
    return wire


def with_stage(**changes):
    wire = to_wire(ANSWER, fingerprint="f")
    for name, value in changes.items():
        setattr(wire.answer.stages[0], name, value)
    return wire


def answered(**fields):
    return round_pb2.RoundMessage(round="r.1", answer=round_pb2.RoundAnswer(**fields))


def voted(**fields):
    return round_pb2.RoundMessage(round="r.1", vote=round_pb2.RoundVote(results=[round_pb2.RoundResult(**fields)]))


def opened(**fields):
    fields = {"peer_id": PEERS[0], **fields}
    return round_pb2.RoundMessage(round="r.1", open=round_pb2.RoundOpen(shares=[round_pb2.RoundShare(**fields)]))


A_SHARE = round_pb2.RoundShare(peer_id=PEERS[0])
MANY_HASHES = round_pb2.Standing(base_hash="0b", hashes=[round_pb2.StageHash(hash="0a")] * 65)
A_RESULT = round_pb2.RoundResult(stage=1, owner=PEERS[0], digest=RESULTS[0].digest)
MANY_SPANS = round_pb2.RoundShare(peer_id=PEERS[0], spans=[round_pb2.RoundSpan()] * (MAX_SPANS // 2 + 1))
UNUSABLE_RESULTS = [
    "",
    "../../x",
    "ab" * 32,
    "ab" * 32 + ":nan",
    "ab" * 32 + ":1e999",
    "ab" * 32 + ":-1.0",
    "ab" * 32 + ":1.2.3",
]


@pytest.mark.parametrize(
    "wire",
    [
        spoil(WORDS[0], round=""),
        spoil(WORDS[0], round="x" * 129),
        spoil(WORDS[0], call__budget_s=float("nan")),
        spoil(WORDS[0], call__budget_s=-1.0),
        spoil(WORDS[0], call__budget_s=1e9),
        spoil(WORDS[0], call__settings="s" * 201),
        spoil(WORDS[0], call__standing__base_hash="not hex"),
        spoil(WORDS[0], call__standing__version=2**63),
        spoil(WORDS[1], answer__weight=2**63),
        spoil(WORDS[2], refusal__reason=99),
        spoil(WORDS[11], tell__knowledge=0),
        spoil(ANSWER, answer__session="not hex"),
        spoil(ANSWER, answer__shard__first_stage=4),
        spoil(ANSWER, answer__shard__stop_stage=65),
        with_stage(stage=64),
        with_stage(num_values=2**63),
        with_stage(hash="0" * 17),
        round_pb2.RoundMessage(round="r.1"),
        answered(alive=[round_pb2.RoundSeen(peer_id="nobody")]),
        answered(alive=[round_pb2.RoundSeen(peer_id=PEERS[0])] * 257),
        answered(doubts=[round_pb2.RoundDoubt(peer_id=PEERS[0], session="x")]),
        voted(stage=64, owner=PEERS[0], digest=RESULTS[0].digest),
        voted(stage=1, owner="nobody", digest=RESULTS[0].digest),
        *(voted(stage=1, owner=PEERS[0], digest=text) for text in UNUSABLE_RESULTS),
        round_pb2.RoundMessage(round="r.1", vote=round_pb2.RoundVote(results=[A_RESULT] * (MAX_SPANS + 1))),
        round_pb2.RoundMessage(round="r.1", open=round_pb2.RoundOpen(shares=[MANY_SPANS] * 2)),
    ],
)
def test_values_out_of_bounds_are_malformed(wire):
    with pytest.raises(Malformed):
        from_wire(wire)


FULL = round_pb2.RoundShare(peer_id=PEERS[0], spans=[round_pb2.RoundSpan()] * (MAX_SPANS // 2))


@pytest.mark.parametrize(
    "wire",
    [
        spoil(WORDS[0], round="x" * 128),
        spoil(WORDS[0], call__budget_s=3600.0),
        spoil(WORDS[0], call__budget_s=5e-324),
        spoil(WORDS[0], call__settings="s" * 200),
        spoil(WORDS[0], call__base_round=""),
        spoil(WORDS[0], call__standing__version=2**62 - 1),
        spoil(WORDS[0], call__standing__base_hash="f" * 64),
        spoil(WORDS[1], answer__weight=2**62 - 1),
        spoil(ANSWER, answer__session="0f" * 16),
        spoil(ANSWER, answer__shard__first_stage=3),
        spoil(ANSWER, answer__shard__stop_stage=64),
        with_stage(stage=63),
        with_stage(hash="0" * 16),
        answered(alive=[round_pb2.RoundSeen(peer_id=PEERS[0])] * 256),
        voted(stage=0, owner=PEERS[0], digest="ab" * 32 + ":0.0"),
        round_pb2.RoundMessage(round="r.1", vote=round_pb2.RoundVote(results=[A_RESULT] * MAX_SPANS)),
        round_pb2.RoundMessage(round="r.1", open=round_pb2.RoundOpen(shares=[FULL] * 2)),
    ],
)
def test_values_at_their_bounds_are_words(wire):
    assert from_wire(wire).round == wire.round


@pytest.mark.parametrize(
    "wire",
    [
        spoil(WORDS[0], call__budget_s=0.0),
        spoil(WORDS[0], call__budget_s=3600.1),
        spoil(WORDS[0], call__base_round="../x"),
        spoil(WORDS[0], call__standing__version=2**62),
        spoil(WORDS[0], call__standing__committed_tokens=2**62),
        spoil(ANSWER, answer__weight=2**62),
        spoil(ANSWER, answer__tokens=2**62),
        round_pb2.RoundMessage(round="r.1", call=round_pb2.RoundCall(standing=MANY_HASHES, budget_s=1.0)),
        answered(stages=[round_pb2.RoundStage(hash="0a")] * 65),
        answered(doubts=[round_pb2.RoundDoubt(peer_id=PEERS[0])] * 257),
        opened(weight=2**62),
        opened(tokens=2**62),
        opened(session="x"),
        opened(peer_id="nobody"),
        opened(shard=round_pb2.RoundShard(first_stage=2, stop_stage=1)),
        opened(spans=[round_pb2.RoundSpan(stage=64)]),
        opened(spans=[round_pb2.RoundSpan(start=2**62)]),
        opened(spans=[round_pb2.RoundSpan(stop=2**62)]),
        spoil(Fail("r.1", PEERS[0], "why"), fail__suspect="nobody"),
        spoil(WORDS[2], refusal__standing__base_hash=""),
        round_pb2.RoundMessage(round="r.1", open=round_pb2.RoundOpen(shares=[A_SHARE] * 257)),
    ],
)
def test_values_just_past_their_bounds_are_malformed(wire):
    with pytest.raises(Malformed):
        from_wire(wire)


def test_a_ping_is_no_word():
    assert from_wire(round_pb2.RoundMessage(ping=round_pb2.RoundPing())) is None


def test_a_message_may_be_as_long_as_its_bound_and_no_longer():
    wire = to_wire(Ask("r.1"), fingerprint="")
    wire.fingerprint = "f" * (MAX_MESSAGE_BYTES - wire.ByteSize() - 4)  # 1 byte of its tag and 3 of its length
    assert wire.ByteSize() == MAX_MESSAGE_BYTES
    assert from_wire(wire) == Ask("r.1")

    wire.fingerprint += "f"

    with pytest.raises(Malformed, match="too large"):
        from_wire(wire)


@pytest.mark.parametrize("word", [Fail("r.1", None, ""), Verdict("r.1", committed=False, reason="")])
def test_a_reason_is_cut_and_told_without_what_would_move_a_terminals_cursor(word):
    sent = to_wire(dataclasses.replace(word, reason="x" * 501), fingerprint="f")
    assert len(getattr(sent, sent.WhichOneof("kind")).reason) == 500

    getattr(sent, sent.WhichOneof("kind")).reason = "a\x1b[31m\nb" + "x" * 600

    assert from_wire(sent).reason == ("a[31mb" + "x" * 600)[: 500 - 2]


@pytest.mark.parametrize("norm_sq", [0.0, 1e-300, 0.1 + 0.2, 1e300])
def test_a_result_keeps_its_norm_to_the_last_bit(norm_sq):
    assert parse_result(result_text("ab" * 32, norm_sq)) == ("ab" * 32, norm_sq)


@pytest.mark.parametrize("codec", ["none", "bf16"])
def test_what_was_decoded_encodes_to_the_same_bytes(codec):
    values = torch.randn(1001)

    data = bytes(encode(values, codec))
    again = decode(data, 1001, codec)

    assert len(data) == num_bytes(1001, codec)
    assert bytes(encode(again, codec)) == data
    torch.testing.assert_close(again, values, rtol=0 if codec == "none" else 2**-8, atol=0)


def test_a_wrong_length_is_not_decoded():
    with pytest.raises(ValueError, match="bytes for"):
        decode(b"1234567", 2, "none")


class Reducer:
    """Answers every part with its own bytes backwards."""

    def __init__(self):
        self.words, self.parts, self.moves, self.lies = [], [], [], ""

    def received(self, sender, message):
        self.words.append((sender, message))

    async def expect_parts(self, round, sender):
        if round != "r.1":
            raise PeerLost("I am not in that round")
        return (600_000, 1_000)

    def moved(self, round, peer):
        self.moves.append((round, peer))

    async def take_parts(self, round, sender, parts):
        self.parts.append((sender, parts.weights, [bytes(part) for part in parts.parts]))
        results = []
        for number, part in enumerate(parts.parts):
            data = bytes(part)[::-1]
            digest = bytes(32) if self.lies == "digest" and number else digest_of(data)
            results.append(Bulk(data[:-1] if self.lies == "length" and number else data, digest, 2.5 + number))
        return tuple(results[:-1] if self.lies == "number" else results)


@pytest.mark.swarm
async def test_bulk_goes_there_and_back_and_every_irregularity_is_a_lost_peer(tmp_path):
    async with AsyncExitStack() as stack:
        ends = []
        for name in "ab":
            identity = Identity.load_or_create(tmp_path / name / "identity.key")
            running = await start_p2p(tmp_path / name, identity_path=identity.path, listen=["/ip4/127.0.0.1/tcp/0"])
            stack.push_async_callback(running.close)
            transport, reducer = RoundTransport(running.p2p, fingerprint="ab" * 32), Reducer()
            await transport.open(reducer.received, reducer)
            ends.append((running, transport, reducer))
        (here, mine, _), (there, _, reducer) = ends
        await here.connect((await there.addresses())[0])
        part, other = bytes(range(256)) * 2343 + bytes(192), bytes(range(250)) * 4

        async def exchange(round="r.1", data=(part, other), weights=(7, 8), result_bytes=(600_000, 1_000)):
            parts = Parts(weights, tuple(memoryview(item) for item in data))
            return await mine.exchange(there.peer_id, round, parts, result_bytes=result_bytes, timeout_s=3.0)

        results = await exchange()
        assert [bytes(result.data) for result in results] == [part[::-1], other[::-1]]
        assert [result.digest for result in results] == [digest_of(part[::-1]), digest_of(other[::-1])]
        assert [result.norm_sq for result in results] == [2.5, 3.5]
        assert reducer.parts == [(here.peer_id, (7, 8), [part, other])]
        assert reducer.moves == [("r.1", here.peer_id)] * 2 * 11, "each chunk of 64 KiB, there and back"

        await mine.send(there.peer_id, WORDS[0])
        assert reducer.words == [(here.peer_id, WORDS[0])]
        await mine.ping(there.peer_id)

        for attempt in (
            exchange(round="r.2"),  # not open there
            exchange(data=(part, other[:-1])),
            exchange(data=(part + b"x", other[:-1])),  # the sum of the lengths is right
            exchange(data=(part,)),
            exchange(weights=(7,)),
            exchange(weights=(7, 2**62)),
            exchange(result_bytes=(600_000, 999)),
            exchange(result_bytes=(599_999, 1_001)),  # likewise
            exchange(result_bytes=(600_000,)),
        ):
            with pytest.raises(PeerLost):
                await asyncio.wait_for(attempt, 15)
        for lie in ("digest", "length", "number"):
            reducer.lies = lie
            with pytest.raises(PeerLost):
                await exchange()
        assert len(reducer.parts) == 7, "the spoilt parts were handed on"

        # a sender that stops in the middle: nothing is handed on, and nothing hangs
        name = mine._bulk_name
        _, _, writer = await here.p2p.call_binary_stream_handler(PeerID.from_base58(there.peer_id), name)
        writer.write(b"\x00\x00\xff\xff")  # a header of 64 KiB is announced
        await writer.drain()
        writer.close()
        await asyncio.sleep(0.1)
        assert len(reducer.parts) == 7

        await there.close()
        with pytest.raises(PeerLost) as lost:
            await mine.ping(there.peer_id)
        assert lost.value.is_refused
        with pytest.raises(PeerLost) as lost:
            await mine.ping(there.peer_id)
        assert lost.value.is_refused, "the second time too"
