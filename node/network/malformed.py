"""The error of every parser in this room."""

from __future__ import annotations


class Malformed(ValueError):
    """A peer sent what no honest peer sends."""
