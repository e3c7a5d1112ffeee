"""Text from others, made harmless for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` without what could control a terminal: escapes, line breaks, marks that turn the direction."""
    return "".join(character for character in text if character.isprintable())


def escaped(document: str) -> str:
    """Return JSON that means the same, where what could control a terminal is written as JSON's own escapes."""
    if document.isprintable():
        return document
    return "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in document)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))
