"""Where event records go: the journal, a terminal or a pipe, each in its own format."""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import Any

import structlog

from mvla_daemon.ops.journal import Journal


def chosen_format(asked: str) -> str:
    """What "auto" means here: the journal under systemd, readable on a terminal, JSON in a pipe."""
    if asked != "auto":
        return asked
    stream = os.environ.get("JOURNAL_STREAM", "")
    with suppress(OSError):
        about = os.fstat(sys.stderr.fileno())
        if stream == f"{about.st_dev}:{about.st_ino}":
            return "journal"
    return "console" if sys.stderr.isatty() else "json"


_RESERVED = {"level", "message", "event", "self", "method_name"}
"""Names that structlog's own functions take: the first three are told in another way, the others can only be odd."""


class Log:
    """Writes event records in the chosen format, from the chosen level on."""

    def __init__(self, style: str, level: str) -> None:
        self._journal = Journal() if style == "journal" else None
        self._console = style == "console"
        renderer: Any = structlog.processors.JSONRenderer()
        if self._console:
            renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
        stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if self._console else "iso", utc=not self._console)
        self._log = structlog.wrap_logger(
            structlog.WriteLogger(sys.stderr),
            processors=[structlog.processors.add_log_level, stamp, renderer],
            wrapper_class=structlog.make_filtering_bound_logger(level),
        )

    def write(self, record: dict[str, Any]) -> None:
        """One event record."""
        if self._journal is not None:
            self._journal.write(record)
            return
        fields = {key: value for key, value in record.items() if key not in _RESERVED}
        # On a terminal the sentence says it all; machines want the fields.
        extra = {} if self._console else {"kind": record["event"], **fields}
        with suppress(OSError, UnicodeError):  # its reader is gone, the disk is full, or it is no text
            getattr(self._log, record.get("level", "info"))(record["message"], **extra)
