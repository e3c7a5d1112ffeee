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
    Share,
    Standing,
    Tell,
    Verdict,
    Vote,
)
from node.core.types import PeerId
from node.network.addresses import is_peer_id
from node.v1 import round_pb2

T = TypeVar("T")

MAX_MEMBERS = 256
MAX_MESSAGE_BYTES = 64 * 1024
_MAX_COUNT = 1 << 62
_MAX_BUDGET_S = 3600.0
_ROUND_ID = re.compile(r"[0-9A-Za-z.:-]{1,128}")
_HEX = re.compile(r"[0-9a-f]{0,128}")


class Malformed(ValueError):
    """A peer sent what no honest peer sends."""


def to_wire(message: Message, *, fingerprint: str, stage: int) -> round_pb2.RoundMessage:
    """Return a word of the machine as protobuf."""
    wire = round_pb2.RoundMessage(fingerprint=fingerprint, stage=stage, round=message.round)
    match message:
        case Call(_, standing, base_round, budget_s, settings):
            wire.call.CopyFrom(
                round_pb2.RoundCall(
                    standing=_standing(standing), base_round=base_round, budget_s=budget_s, settings=settings
                )
            )
        case Answer(_, weight, tokens, alive):
            wire.answer.CopyFrom(round_pb2.RoundAnswer(weight=weight, tokens=tokens, alive=sorted(alive)))
        case Refusal(_, reason, standing):
            wire.refusal.CopyFrom(round_pb2.RoundRefusal(reason=reason.value, standing=_standing(standing)))
        case Open(_, shares):
            wire.open.SetInParent()
            for s in shares:
                wire.open.shares.add(peer_id=s.peer_id, weight=s.weight, tokens=s.tokens, start=s.start, stop=s.stop)
        case Fail(_, suspect, reason):
            wire.fail.CopyFrom(round_pb2.RoundFail(suspect=suspect or "", reason=reason[:500]))
        case Vote(_, digest):
            wire.vote.CopyFrom(round_pb2.RoundVote(digest=digest))
        case Verdict(_, committed, digest, reason):
            wire.verdict.CopyFrom(round_pb2.RoundVerdict(committed=committed, digest=digest, reason=reason[:500]))
        case Ask():
            wire.ask.SetInParent()
        case Tell(_, knowledge, digest):
            wire.tell.CopyFrom(round_pb2.RoundTell(knowledge=knowledge.value, digest=digest))
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
            budget_s = wire.call.budget_s
            if not (math.isfinite(budget_s) and 0 < budget_s <= _MAX_BUDGET_S):
                raise Malformed(f"a budget of {budget_s} s")
            if len(wire.call.settings) > 200:
                raise Malformed("the settings are too long")
            base_round = check_round_id(wire.call.base_round) if wire.call.base_round else ""
            return Call(round, _read_standing(wire.call.standing), base_round, budget_s, wire.call.settings)
        case "answer":
            alive = frozenset(_peer(peer) for peer in _few(wire.answer.alive))
            return Answer(round, _count(wire.answer.weight), _count(wire.answer.tokens), alive)
        case "refusal":
            return Refusal(round, Reason(_member(Reason, wire.refusal.reason)), _read_standing(wire.refusal.standing))
        case "open":
            return Open(round, tuple(_share(share) for share in _few(wire.open.shares)))
        case "fail":
            suspect = _peer(wire.fail.suspect) if wire.fail.suspect else None
            return Fail(round, suspect, _text(wire.fail.reason))
        case "vote":
            return Vote(round, _hex(wire.vote.digest))
        case "verdict":
            return Verdict(round, wire.verdict.committed, _hex(wire.verdict.digest), _text(wire.verdict.reason))
        case "ask":
            return Ask(round)
        case "tell":
            return Tell(round, Knowledge(_member(Knowledge, wire.tell.knowledge)), _hex(wire.tell.digest))
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
        version=standing.version, base_hash=standing.base_hash, committed_tokens=standing.committed_tokens
    )


def _read_standing(wire: round_pb2.Standing) -> Standing:
    return Standing(_count(wire.version), _hex(wire.base_hash), _count(wire.committed_tokens))


def _share(wire: round_pb2.RoundShare) -> Share:
    start, stop = _count(wire.start), _count(wire.stop)
    return Share(_peer(wire.peer_id), _count(wire.weight), _count(wire.tokens), start, stop)


def _few(items: Sequence[T]) -> Sequence[T]:
    if len(items) > MAX_MEMBERS:
        raise Malformed(f"{len(items)} members")
    return items


def _count(value: int) -> int:
    if value >= _MAX_COUNT:
        raise Malformed(f"a count of {value}")
    return value


def _peer(text: str) -> PeerId:
    if not is_peer_id(text):
        raise Malformed("that is not a peer id")
    return PeerId(text)


def _hex(text: str) -> str:
    if not _HEX.fullmatch(text):
        raise Malformed("that is not a digest")
    return text


def _text(text: str) -> str:
    return "".join(character for character in text[:500] if character.isprintable())


def _member(enum: type[Reason | Knowledge], value: int) -> int:
    if value not in {member.value for member in enum}:
        raise Malformed(f"{value} is not one of {enum.__name__}")
    return value
