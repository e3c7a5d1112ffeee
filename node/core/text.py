"""Text from others, made harmless for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` without what could control a terminal: escapes, line breaks, marks that turn the direction."""
    return "".join(character for character in text if character.isprintable())
