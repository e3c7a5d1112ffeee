"""Events as JSON lines: to the home's log file always, and to the terminal with `--log json`."""

from __future__ import annotations

import json
import logging
import sys
import time
from collections.abc import Callable
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from node.core.events import Event, MicrobatchDone, as_record
from node.core.text import escaped

_MAX_LOG_BYTES = 5_000_000
_KEPT_LOGS = 3


def json_line(event: Event) -> str:
    """Return an event as one line of JSON with a time stamp in Unix seconds."""
    line = json.dumps({"at_s": round(time.time(), 3), **as_record(event)}, ensure_ascii=False, allow_nan=True)
    return escaped(line)


class _Log(RotatingFileHandler):
    """A log that loses lines on a disk that refuses, instead of printing a traceback for each."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        """Go on if it is the disk, of which the node tells by itself."""
        if not isinstance(sys.exc_info()[1], OSError):
            super().handleError(record)


def file_sink(path: Path) -> Callable[[Event], None]:
    """Return a sink that appends to a log that rotates; single microbatches are left out."""
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = _Log(path, maxBytes=_MAX_LOG_BYTES, backupCount=_KEPT_LOGS, encoding="utf-8", delay=True)
    handler.setFormatter(logging.Formatter("%(message)s"))

    def sink(event: Event) -> None:
        if not isinstance(event, MicrobatchDone):
            handler.handle(logging.LogRecord("potluck", logging.INFO, "", 0, json_line(event), None, None))

    return sink


def json_sink(stream: TextIO) -> Callable[[Event], None]:
    """Return a sink that prints each event as a line of JSON."""

    def sink(event: Event) -> None:
        stream.write(json_line(event) + "\n")
        stream.flush()

    return sink
