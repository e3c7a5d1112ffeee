"""Damage in whatever a step is given or gives: the first bytes, text or tensor in it, found in depth."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any


def damaged(value: Any, action: str) -> tuple[Any, bool]:
    """Return a copy of `value` with one thing in it truncated, corrupted or made NaN, and whether there was one.

    Looked for in tuples, lists, mappings and dataclasses, in order. The first part of a word of a round is its id,
    which is left alone: a word of another round is no damage but a stranger.
    """
    if isinstance(value, (bytes, bytearray, memoryview)) and action != "nan" and len(value):
        return _bytes(bytes(value), action), True
    if isinstance(value, str) and action != "nan" and value:
        return _text(value, action), True
    if hasattr(value, "is_floating_point") and value.numel():
        return _tensor(value, action), True
    if isinstance(value, (tuple, list)):
        return _items(value, action)
    if isinstance(value, Mapping):
        items, found = _items(list(value.values()), action)
        return dict(zip(value, items, strict=True)), found
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        names = [field.name for field in dataclasses.fields(value) if field.name not in ("round", "owner", "peer_id")]
        items, found = _items([getattr(value, name) for name in names], action)
        return (dataclasses.replace(value, **dict(zip(names, items, strict=True))) if found else value), found
    return value, False


def _items(items: tuple[Any, ...] | list[Any], action: str) -> tuple[Any, bool]:
    new = list(items)
    for number, item in enumerate(items):
        new[number], found = damaged(item, action)
        if found:
            return type(items)(new), True
    return items, False


def _bytes(data: bytes, action: str) -> bytes:
    if action == "truncate":
        return data[: len(data) // 2]
    at = len(data) // 2
    return data[:at] + bytes([data[at] ^ 0x10]) + data[at + 1 :]


def _text(text: str, action: str) -> str:
    if action == "truncate":
        return text[: len(text) // 2]
    return ("1" if text[0] != "1" else "2") + text[1:]


def _tensor(tensor: Any, action: str) -> Any:
    if action == "truncate":
        return tensor[: len(tensor) // 2].clone()
    copy = tensor.clone()
    flat = copy.view(-1)
    flat[len(flat) // 2] = float("nan") if action == "nan" else flat[len(flat) // 2] * 2 + 1
    return copy
