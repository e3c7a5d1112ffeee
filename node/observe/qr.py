"""A text as a QR code in half blocks, to be taken from one screen to another by a camera."""

from __future__ import annotations

import io

import segno

_QUIET_MODULES = 2
"""Half of what the standard asks for: enough for cameras, and the line stays on the screen."""


def qr_code(text: str, *, columns: int) -> str:
    """Return the code as lines of half blocks, light on dark, or '' if the terminal is too narrow for it.

    Args:
        text: What to encode.
        columns: The terminal's width.
    """
    code = segno.make(text, micro=False, error="l", boost_error=False)
    if code.symbol_size(border=_QUIET_MODULES)[0] > columns:
        return ""
    out = io.StringIO()
    code.terminal(out, border=_QUIET_MODULES, compact=True)
    return out.getvalue()
