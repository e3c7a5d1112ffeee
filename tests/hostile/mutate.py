"""Damage to bytes, protobuf messages, and trees of JSON, by any source of random choices (hypothesis' own included)."""

from __future__ import annotations

import copy
import math
from random import Random

from google.protobuf.descriptor import FieldDescriptor as Field
from google.protobuf.message import Message

NUMBERS = (
    0,
    1,
    -1,
    2,
    63,
    64,
    127,
    128,
    255,
    256,
    2**16,
    2**31 - 1,
    2**31,
    2**32 - 1,
    2**32,
    2**62,
    2**63 - 1,
    2**64 - 1,
)
FLOATS = (0.0, -0.0, -1.0, 1e-320, 1e30, 1e308, math.inf, -math.inf, math.nan, 1e11 + 1)
TEXTS = (
    "",
    " ",
    "\x00",
    "../../x",
    "/etc/passwd",
    "\x1b]0;owned\x07\x1b[2J",
    "\u202egnp.exe",
    "<script>alert(1)</script>",
    "%s%n{0}",
    "nan",
    "1e999",
    "a" * 300,
    "9" * 5000,
    "é😀\udc80".encode("utf-8", "ignore").decode(),
    "r.1",
    "ab" * 32,
)
TREE_TEXTS = (*TEXTS, "\udc80", "\ud83d", "Infinity", "\u2028", "'", '"')
_VARINT_4_GIB = b"\x80\x80\x80\x80\x10"


def damage(data: bytes, rng: Random) -> bytes:
    """Return `data` with a few bytes flipped, cut, repeated, or overwritten by lengths that are too large."""
    mutated = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 4))):
        at = rng.randrange(len(mutated) + 1)
        match rng.randrange(8):
            case 0 | 1 if mutated:
                mutated[at % len(mutated)] ^= 1 << rng.randrange(8)
            case 2:
                del mutated[at:]
            case 3:
                stop = min(len(mutated), at + rng.randrange(1, 40))
                mutated[at:at] = mutated[at:stop] * rng.choice((1, 1, 2, 20))
            case 4:
                mutated[at : at + 4] = rng.choice(
                    (b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff", b"\x01\x00\x00\x00")
                )
            case 5:
                mutated[at : at + 8] = rng.choice(
                    (b"\xff" * 8, b"\x00\x00\x00\x01" + bytes(4), bytes(4) + b"\x01\x00\x00\x00")
                )
            case 6:
                mutated[at:at] = rng.choice(
                    (_VARINT_4_GIB, b"\x0a" + _VARINT_4_GIB, bytes(rng.randrange(256) for _ in range(4)))
                )
            case 7:
                stop = min(len(mutated), at + rng.randrange(1, 40))
                del mutated[at:stop]
    return bytes(mutated[: 1 << 17])


def damage_message(message: Message, rng: Random) -> None:
    """Change, drop or repeat some fields, at any depth; the values are of the field's type and at its bounds."""
    for _ in range(rng.choice((1, 1, 2, 3))):
        target = _deeper(message, rng)
        field = rng.choice(target.DESCRIPTOR.fields) if target.DESCRIPTOR.fields else None
        if field is None:
            continue
        if field.is_repeated:
            _damage_list(target, field, rng)
        elif field.type == Field.TYPE_MESSAGE:
            if rng.random() < 0.5:
                target.ClearField(field.name)
            else:
                getattr(target, field.name).SetInParent()
        elif rng.random() < 0.2:
            target.ClearField(field.name)
        else:
            setattr(target, field.name, _value(field, rng))


def wrong_types(data: bytes, rng: Random) -> bytes:
    """Return a message's bytes with the type of one field's tag changed, or wrapped in itself many times."""
    if rng.random() < 0.5 or not data:
        for _ in range(rng.choice((3, 90, 110, 300))):
            tag = (rng.randrange(1, 16) << 3 | 2).to_bytes(1, "little")
            data = tag + varint(len(data)) + data
        return data[: 1 << 16]
    mutated = bytearray(data)
    mutated[0] = mutated[0] & 0xF8 | rng.randrange(8)
    return bytes(mutated)


def damage_tree(tree: object, rng: Random) -> object:
    """Return a tree of JSON values with some of them replaced, dropped, repeated or nested deeply."""
    tree = copy.deepcopy(tree)
    for _ in range(rng.choice((1, 1, 2, 3))):
        holder, keys = tree, []
        while isinstance(holder, (dict, list)) and holder:
            key = rng.choice(sorted(holder) if isinstance(holder, dict) else range(len(holder)))
            keys.append((holder, key))
            holder = holder[key]
            if rng.random() < 0.3:
                break
        if not keys:
            return _junk(rng)
        parent, key = rng.choice(keys)
        match rng.randrange(5):
            case 0 if isinstance(parent, dict):
                del parent[key]
            case 1 if isinstance(parent, dict):
                parent[rng.choice(TREE_TEXTS) or "x"] = parent[key]
            case 2 if isinstance(parent, list):
                parent.extend([parent[key]] * rng.choice((1, 3, 1200)))
            case _:
                parent[key] = _junk(rng)
    return tree


def _junk(rng: Random) -> object:
    match rng.randrange(8):
        case 0:
            return rng.choice(NUMBERS) * rng.choice((1, -1))
        case 1:
            return rng.choice(FLOATS)
        case 2 | 3:
            return rng.choice(TREE_TEXTS)
        case 4:
            return rng.choice((None, True, False, [], {}))
        case 5:
            nested: object = rng.choice((1, "x", None))
            for _ in range(rng.choice((3, 13, 250))):
                nested = [nested] if rng.random() < 0.5 else {"a": nested}
            return nested
        case 6:
            return [rng.choice(TREE_TEXTS)] * rng.choice((1, 50, 1100))
        case _:
            return {rng.choice(TREE_TEXTS) or "k": rng.choice(NUMBERS) for _ in range(rng.choice((1, 4)))}


def _deeper(message: Message, rng: Random) -> Message:
    while rng.random() < 0.75:
        below = []
        for field, value in message.ListFields():
            if field.type == Field.TYPE_MESSAGE:
                below.extend(value if field.is_repeated else [value])
        if not below:
            break
        message = rng.choice(below)
    return message


def _damage_list(target: Message, field: Field, rng: Random) -> None:
    values = getattr(target, field.name)
    match rng.randrange(4):
        case 0:
            target.ClearField(field.name)
        case 1 if len(values):
            values.extend([values[0]] * rng.choice((1, 2, 70, 300, 1100)))
        case 2 if len(values):
            del values[rng.randrange(len(values))]
        case _:
            if field.type == Field.TYPE_MESSAGE:
                values.add()
            elif len(values):
                values[rng.randrange(len(values))] = _value(field, rng)
            else:
                values.append(_value(field, rng))


def _value(field: Field, rng: Random) -> object:
    match field.cpp_type:
        case Field.CPPTYPE_STRING:
            text = rng.choice(TEXTS)
            return text.encode() if field.type == Field.TYPE_BYTES else text
        case Field.CPPTYPE_BOOL:
            return rng.random() < 0.5
        case Field.CPPTYPE_DOUBLE | Field.CPPTYPE_FLOAT:
            return rng.choice(FLOATS)
        case Field.CPPTYPE_UINT32 | Field.CPPTYPE_UINT64:
            bits = 32 if field.cpp_type == Field.CPPTYPE_UINT32 else 64
            return rng.choice([number for number in NUMBERS if 0 <= number < 1 << bits])
        case _:
            bits = 31 if field.cpp_type in (Field.CPPTYPE_INT32, Field.CPPTYPE_ENUM) else 63
            return rng.choice([number for number in NUMBERS if abs(number) < 1 << bits])


def varint(value: int) -> bytes:
    """Return a number as protobuf writes it."""
    out = bytearray()
    while value >= 0x80:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])
