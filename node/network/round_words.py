"""The round's words as protobuf, and back; every bound on what comes in is checked here."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import TypeVar

from node.core.round_messages import (
    Answer,
    Ask,
    Call,
    Fail,
    Knowledge,
    Message,
    Open,
    Reason,
    Refusal,
    Results,
    Share,
    Span,
    SpanResult,
    Tell,
    Verdict,
    Vote,
)
from node.core.text import printable
from node.core.types import HASH_CHARS, PeerId, Shard, Standing
from node.network.addresses import is_peer_id
from node.network.malformed import Malformed as Malformed  # noqa: PLC0414  (other rooms know it from here)
from node.network.records import MAX_STAGES
from node.v1 import round_pb2

T = TypeVar("T")

MAX_MEMBERS = 256
MAX_SPANS = 1024
"""Of all stages and members together."""
MAX_MESSAGE_BYTES = 256 * 1024
_MAX_COUNT = 1 << 62
_MAX_BUDGET_S = 3600.0
_ROUND_ID = re.compile(r"[0-9A-Za-z.:-]{1,128}")
_BASE_HASH = re.compile(r"[0-9a-f]{1,64}")
_BITS = re.compile(rf"[0-9a-f]{{1,{HASH_CHARS}}}")
_SESSION = re.compile(r"[0-9a-f]{0,32}")
_RESULT = re.compile(r"([0-9a-f]{64}):([0-9.e+-]{1,32})")


def to_wire(message: Message, *, fingerprint: str) -> round_pb2.RoundMessage:
    """Return a word of the machine as protobuf."""
    wire = round_pb2.RoundMessage(fingerprint=fingerprint, round=message.round)
    match message:
        case Call(_, standing, base_round, budget_s, settings):
            wire.call.CopyFrom(
                round_pb2.RoundCall(
                    standing=_standing(standing), base_round=base_round, budget_s=budget_s, settings=settings
                )
            )
        case Answer():
            wire.answer.CopyFrom(_answer(message))
        case Refusal(_, reason, standing):
            wire.refusal.CopyFrom(round_pb2.RoundRefusal(reason=reason.value, standing=_standing(standing)))
        case Open(_, shares):
            wire.open.SetInParent()
            wire.open.shares.extend(_share(share) for share in shares)
        case Fail(_, suspect, reason):
            wire.fail.CopyFrom(round_pb2.RoundFail(suspect=suspect or "", reason=reason[:500]))
        case Vote(_, results):
            wire.vote.CopyFrom(round_pb2.RoundVote(results=_results(results)))
        case Verdict(_, committed, reason, results, must_discard):
            wire.verdict.CopyFrom(
                round_pb2.RoundVerdict(
                    committed=committed, reason=reason[:500], results=_results(results), must_discard=must_discard
                )
            )
        case Ask():
            wire.ask.SetInParent()
        case Tell(_, knowledge, results):
            wire.tell.CopyFrom(round_pb2.RoundTell(knowledge=knowledge.value, results=_results(results)))
    return wire


def from_wire(wire: round_pb2.RoundMessage) -> Message | None:
    """Return the word in `wire`; None for a ping.

    Raises:
        Malformed: something is out of bounds.
    """
    if wire.ByteSize() > MAX_MESSAGE_BYTES:
        raise Malformed("the message is too large")
    kind = wire.WhichOneof("kind")
    if kind == "ping":
        return None
    round = check_round_id(wire.round)
    match kind:
        case "call":
            return _read_call(round, wire.call)
        case "answer":
            return _read_answer(round, wire.answer)
        case "refusal":
            return Refusal(round, Reason(_member(Reason, wire.refusal.reason)), _read_standing(wire.refusal.standing))
        case "open":
            return Open(round, _read_shares(wire.open))
        case "fail":
            suspect = _peer(wire.fail.suspect) if wire.fail.suspect else None
            return Fail(round, suspect, _text(wire.fail.reason))
        case "vote":
            return Vote(round, _read_results(wire.vote.results))
        case "verdict":
            results = _read_results(wire.verdict.results)
            reason, must_discard = _text(wire.verdict.reason), wire.verdict.must_discard
            return Verdict(round, wire.verdict.committed, reason, results, must_discard)
        case "ask":
            return Ask(round)
        case "tell":
            knowledge = Knowledge(_member(Knowledge, wire.tell.knowledge))
            return Tell(round, knowledge, _read_results(wire.tell.results))
        case _:
            raise Malformed("the message is empty or of an unknown kind")


def check_round_id(text: str) -> str:
    """Return a round's id if it has the form of one.

    Raises:
        Malformed: it has not.
    """
    if not _ROUND_ID.fullmatch(text):
        raise Malformed("that is not a round's id")
    return text


def _standing(standing: Standing) -> round_pb2.Standing:
    return round_pb2.Standing(
        version=standing.version,
        base_hash=standing.base_hash,
        committed_tokens=standing.committed_tokens,
        hashes=[round_pb2.StageHash(stage=stage, hash=bits) for stage, bits in standing.hashes],
    )


def _read_standing(wire: round_pb2.Standing) -> Standing:
    hashes = tuple((_stage(item.stage), _matching(_BITS, item.hash)) for item in _few(wire.hashes, MAX_STAGES))
    base_hash = _matching(_BASE_HASH, wire.base_hash)
    return Standing(_count(wire.version), base_hash, _count(wire.committed_tokens), hashes)


def _read_call(round: str, wire: round_pb2.RoundCall) -> Call:
    if not (math.isfinite(wire.budget_s) and 0 < wire.budget_s <= _MAX_BUDGET_S):
        raise Malformed(f"a budget of {wire.budget_s} s")
    if len(wire.settings) > 200:
        raise Malformed("the settings are too long")
    base_round = check_round_id(wire.base_round) if wire.base_round else ""
    return Call(round, _read_standing(wire.standing), base_round, wire.budget_s, wire.settings)


def _answer(answer: Answer) -> round_pb2.RoundAnswer:
    hashes = dict(answer.hashes)
    return round_pb2.RoundAnswer(
        weight=answer.weight,
        tokens=answer.tokens,
        shard=_shard(answer.shard),
        session=answer.session,
        stages=[round_pb2.RoundStage(stage=stage, num_values=size, hash=hashes[stage]) for stage, size in answer.sizes],
        alive=[round_pb2.RoundSeen(peer_id=peer, shard=_shard(shard)) for peer, shard in sorted(answer.alive.items())],
        doubts=[round_pb2.RoundDoubt(peer_id=peer, session=session) for peer, session in sorted(answer.doubts)],
    )


def _read_answer(round: str, wire: round_pb2.RoundAnswer) -> Answer:
    stages = _few(wire.stages, MAX_STAGES)
    return Answer(
        round,
        _count(wire.weight),
        _count(wire.tokens),
        _read_shard(wire.shard),
        _matching(_SESSION, wire.session),
        tuple((_stage(item.stage), _matching(_BITS, item.hash)) for item in stages),
        tuple((item.stage, _count(item.num_values)) for item in stages),
        {_peer(seen.peer_id): _read_shard(seen.shard) for seen in _few(wire.alive)},
        frozenset((_peer(doubt.peer_id), _matching(_SESSION, doubt.session)) for doubt in _few(wire.doubts)),
    )


def _shard(shard: Shard) -> round_pb2.RoundShard:
    return round_pb2.RoundShard(first_stage=shard.first_stage, stop_stage=shard.stop_stage)


def _read_shard(wire: round_pb2.RoundShard) -> Shard:
    if not wire.first_stage <= wire.stop_stage <= MAX_STAGES:
        raise Malformed(f"stages {wire.first_stage} to {wire.stop_stage}")
    return Shard(wire.first_stage, wire.stop_stage)


def _share(share: Share) -> round_pb2.RoundShare:
    return round_pb2.RoundShare(
        peer_id=share.peer_id,
        weight=share.weight,
        tokens=share.tokens,
        shard=_shard(share.shard),
        session=share.session,
        spans=[round_pb2.RoundSpan(stage=span.stage, start=span.start, stop=span.stop) for span in share.spans],
    )


def _read_shares(wire: round_pb2.RoundOpen) -> tuple[Share, ...]:
    if sum(len(share.spans) for share in _few(wire.shares)) > MAX_SPANS:
        raise Malformed("too many spans")
    return tuple(
        Share(
            _peer(share.peer_id),
            _count(share.weight),
            _count(share.tokens),
            _read_shard(share.shard),
            _matching(_SESSION, share.session),
            tuple(Span(_stage(span.stage), _count(span.start), _count(span.stop)) for span in share.spans),
        )
        for share in wire.shares
    )


def _results(results: Results) -> list[round_pb2.RoundResult]:
    return [round_pb2.RoundResult(stage=r.stage, owner=r.owner, digest=r.digest) for r in results]


def _read_results(wire: Sequence[round_pb2.RoundResult]) -> Results:
    return tuple(
        SpanResult(_stage(result.stage), _peer(result.owner), result_text(*parse_result(result.digest)))
        for result in _few(wire, MAX_SPANS)
    )


def result_text(digest: str, norm_sq: float) -> str:
    """Return a span's result as the machine and its words carry it."""
    return f"{digest}:{norm_sq!r}"


def parse_result(text: str) -> tuple[str, float]:
    """Return the hex SHA-256 of a span's bytes and the squared norm of its mean.

    Raises:
        Malformed: `text` is nothing that `result_text` makes, or the norm is none.
    """
    found = _RESULT.fullmatch(text)
    try:
        norm_sq = float(found[2]) if found else math.nan
    except ValueError:
        norm_sq = math.nan
    if found is None or not (math.isfinite(norm_sq) and norm_sq >= 0):
        raise Malformed("that is not a span's result")
    return found[1], norm_sq


def _few(items: Sequence[T], limit: int = MAX_MEMBERS) -> Sequence[T]:
    if len(items) > limit:
        raise Malformed(f"a list of {len(items)}")
    return items


def _stage(value: int) -> int:
    if value >= MAX_STAGES:
        raise Malformed(f"stage {value}")
    return value


def _count(value: int) -> int:
    if value >= _MAX_COUNT:
        raise Malformed(f"a count of {value}")
    return value


def _peer(text: str) -> PeerId:
    if not is_peer_id(text):
        raise Malformed("that is not a peer id")
    return PeerId(text)


def _matching(pattern: re.Pattern[str], text: str) -> str:
    if not pattern.fullmatch(text):
        raise Malformed("that is not a hash or a session")
    return text


def _text(text: str) -> str:
    return printable(text[:500])


def _member(enum: type[Reason | Knowledge], value: int) -> int:
    if value not in {member.value for member in enum}:
        raise Malformed(f"{value} is not one of {enum.__name__}")
    return value
