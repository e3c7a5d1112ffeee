"""A target: a function of bytes, what is valid for it, and how that is damaged."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from random import Random

from google.protobuf.message import Message

from hostile.mutate import damage, damage_message, wrong_types

_MAX_FILE_BYTES = 8 << 10
"""Of a mutated file: what takes a time for each byte is not what is looked for."""
Piece = Message | bytes
"""Of a stream: a message, which goes as a frame, or bulk."""


@dataclass(frozen=True)
class Target:
    """`run` comes to a valid end, or raises an error of ours; it raises AssertionError if the error is not in order."""

    name: str
    run: Callable[[bytes], None]
    seeds: tuple[bytes, ...]
    make: Callable[[Random], bytes]
    """Returns a damaged input."""
    doors: tuple[str, ...] = ()
    """What of `doors_in_the_code` it enters."""


def of_messages(name: str, run: Callable[[bytes], None], messages: Sequence[Message], doors: tuple[str, ...]) -> Target:
    """Return the target for calls that are one message each."""

    def make(rng: Random) -> bytes:
        message = type(seed := rng.choice(messages))()
        message.CopyFrom(seed)
        return _damaged(message, rng)

    return Target(name, run, tuple(m.SerializeToString() for m in messages), make, doors)


def of_streams(
    name: str,
    run: Callable[[bytes], None],
    scripts: Sequence[Sequence[Piece]],
    framed: Callable[[bytes], bytes],
    doors: tuple[str, ...],
) -> Target:
    """Return the target for streams of frames and bulk."""

    def flat(piece: Piece) -> bytes:
        return piece if isinstance(piece, bytes) else framed(piece.SerializeToString())

    def make(rng: Random) -> bytes:
        pieces = list(rng.choice(scripts))
        at = rng.randrange(len(pieces))
        piece = pieces[at]
        match rng.randrange(8):
            case 0 | 1 | 2 | 3 if not isinstance(piece, bytes):
                message = type(piece)()
                message.CopyFrom(piece)
                pieces[at] = framed(_damaged(message, rng))
            case 4:
                pieces[at : at + 1] = [piece] * rng.choice((0, 2, 3))
            case 5:
                return damage(b"".join(map(flat, pieces)), rng)
            case _ if isinstance(piece, bytes):
                pieces[at] = damage(piece, rng)
        return b"".join(map(flat, pieces))

    return Target(name, run, tuple(b"".join(map(flat, script)) for script in scripts), make, doors)


def of_files(
    name: str, run: Callable[[bytes], None], seeds: Sequence[bytes], structured: Callable[[Random], bytes]
) -> Target:
    """Return the target for files: half of the damage is to their structure, half to their bytes."""

    def make(rng: Random) -> bytes:
        data = structured(rng) if rng.random() < 0.6 else rng.choice(seeds)
        data = data[:_MAX_FILE_BYTES]
        return damage(data, rng) if rng.random() < 0.5 else data

    return Target(name, run, tuple(seeds), make)


def _damaged(message: Message, rng: Random) -> bytes:
    match rng.randrange(8):
        case 0:
            return damage(message.SerializeToString(), rng)
        case 1:
            return wrong_types(message.SerializeToString(), rng)
        case 2:
            return message.SerializeToString() * 2
        case _:
            damage_message(message, rng)
            return message.SerializeToString()
