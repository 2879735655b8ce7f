"""Where event records go: the journal, a terminal or a pipe, each in its own format."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import structlog

from mvla_daemon.ops.journal import SOCKET, Journal
from mvla_daemon.ops.telemetry import LEVELS


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
    """Writes event records in the chosen format, from the chosen level on.

    Nobody is waited for and nothing is kept for later: `dropped` counts the records that were not taken. Where some
    were, the next that is taken has a record before it that says so.
    """

    def __init__(self, style: str, level: str, journal_path: str = SOCKET) -> None:
        self._least = LEVELS.index(level)
        self._put: Callable[[Mapping[str, Any]], bool]
        self._put = Journal(journal_path).write if style == "journal" else _Lines(readable=style == "console").write
        self._untold = 0
        self.dropped = 0

    def write(self, record: dict[str, Any]) -> None:
        """One event record."""
        if LEVELS.index(record["level"]) < self._least:
            return
        if self._untold and self._put(_gap(self._untold)):
            self._untold = 0
        if self._untold or not self._put(record):
            self._untold += 1
            self.dropped += 1


def _gap(untold: int) -> dict[str, Any]:
    """It stands for records of any level, so none keeps it out."""
    text = f"{untold} records are missing before this one: whoever keeps the log did not take them"
    return {"event": "records_dropped", "level": "warning", "message": text, "dropped_records": untold}


class _Lines:
    """One line a record on standard error: its sentence for eyes, every field of it as JSON for machines."""

    def __init__(self, *, readable: bool) -> None:
        self._readable = readable
        renderer: Any = structlog.processors.JSONRenderer()
        if readable:
            renderer = structlog.dev.ConsoleRenderer(colors=sys.stderr.isatty(), pad_event_to=0)
        stamp = structlog.processors.TimeStamper(fmt="%H:%M:%S.%f" if readable else "iso", utc=not readable)
        self._log = structlog.wrap_logger(
            structlog.WriteLogger(sys.stderr),
            processors=[structlog.processors.add_log_level, stamp, renderer],
            wrapper_class=structlog.make_filtering_bound_logger("debug"),
        )

    def write(self, record: Mapping[str, Any]) -> bool:
        fields = {key: value for key, value in record.items() if key not in _RESERVED and value not in (None, "")}
        extra = {} if self._readable else {**fields, "kind": record["event"]}
        try:
            getattr(self._log, record["level"])(record["message"], **extra)
        except (OSError, UnicodeError):  # its reader is gone, the disk is full, or it is no text
            return False
        return True
