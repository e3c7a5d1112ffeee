"""Text from others, made harmless for a terminal."""

from __future__ import annotations


def printable(text: str) -> str:
    """Return `text` without what could control a terminal: escapes, line breaks, marks that turn the direction."""
    return "".join(character for character in text if character.isprintable())


def printable_lines(text: str) -> str:
    """Return `text` as `printable` does, with its line breaks."""
    return "\n".join(map(printable, text.split("\n")))


def escaped(document: str) -> str:
    """Return JSON that means the same, where what could control a terminal is written as JSON's own escapes."""
    if document.isprintable():
        return document
    return "".join(c if c.isprintable() or c == "\n" else _escape(c) for c in document)


def _escape(character: str) -> str:
    units = character.encode("utf-16-be", "surrogatepass")
    return "".join(f"\\u{units[at]:02x}{units[at + 1]:02x}" for at in range(0, len(units), 2))


def brief(error: object, most: int = 300) -> str:
    """Return what a foreign error says, in one line that can be shown.

    pydantic's first lines are how many problems there are, where the first one is, and what it is.
    """
    lines = [line.strip() for line in str(error).strip().splitlines()[:3]] or [type(error).__name__]
    if len(lines) == 3 and "validation error" in lines[0]:
        lines = [f"{lines[1]}: {lines[2].split(' [type=', 1)[0]}"]
    return printable(lines[0][: 2 * most])[:most] or type(error).__name__
