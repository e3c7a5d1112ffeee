"""What an examination found: one line of text, and what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import asdict, dataclass
from enum import Enum


class Level(Enum):
    """How bad it is."""

    OK = "ok"
    WARN = "warn"
    """Training works, but slower, with fewer peers, or not for long."""
    FAIL = "FAIL"
    """Training cannot start."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One line."""

    level: Level
    name: str
    """What was examined, in a word or two."""
    text: str
    """What was found, with the values."""
    fix: str = ""
    """A command or a setting to change; '' if there is nothing to do."""


def ok(name: str, text: str, fix: str = "") -> Finding:
    """Return a finding that all is well."""
    return Finding(Level.OK, name, text, fix)


def warn(name: str, text: str, fix: str) -> Finding:
    """Return a finding that something could be better."""
    return Finding(Level.WARN, name, text, fix)


def fail(name: str, text: str, fix: str) -> Finding:
    """Return a finding that keeps training from starting."""
    return Finding(Level.FAIL, name, text, fix)


def can_train(findings: Iterable[Finding]) -> bool:
    """Return whether nothing keeps training from starting."""
    return all(finding.level is not Level.FAIL for finding in findings)


def as_record(finding: Finding) -> dict[str, str]:
    """Return a finding as plain JSON-ready values."""
    return {**asdict(finding), "level": finding.level.value.lower()}
