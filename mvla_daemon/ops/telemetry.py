"""What the gate and the policy process tell the reporter: records over a socket that never makes them wait.

A record that does not fit is dropped and counted. Events are JSON, since they are rare and for people; cycles are fixed
structs, since there are fifty or more a second of them (and not frozen, which would take three times as long to make).
"""

from __future__ import annotations

import json
import socket
import struct
from dataclasses import dataclass
from operator import attrgetter
from typing import Any, ClassVar, TypeAlias

from mvla_daemon.ops.drops import DropBoard

MAX_RECORD_BYTES = 8192
LEVELS = ("debug", "info", "warning", "error")


@dataclass(slots=True)
class GateCycle:
    """A cycle as the gate saw it; `written_ns` is 0 where nothing was written."""

    TYPE: ClassVar[int] = 1
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<BIIqqqqq")
    epoch: int
    cycle: int
    start_ns: int
    deadline_ns: int
    received_ns: int
    written_ns: int
    captured_ns: int


@dataclass(slots=True)
class PolicyCycle:
    """A cycle as the policy process saw it: the moment at which each stage began, and the frame it was for."""

    TYPE: ClassVar[int] = 2
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<BIIBIqqqqqqqqq")
    epoch: int
    cycle: int
    hold: bool
    frame: int
    captured_ns: int
    arrived_ns: int
    started_ns: int
    preprocess_ns: int
    h2d_ns: int
    compute_ns: int
    d2h_ns: int
    postprocess_ns: int
    sent_ns: int


@dataclass(frozen=True, slots=True)
class Dropped:
    """So many of the sender's records before this one were dropped; it tells them together, once one gets through."""

    TYPE: ClassVar[int] = 3
    LAYOUT: ClassVar[struct.Struct] = struct.Struct("<BI")
    count: int


Cycle: TypeAlias = GateCycle | PolicyCycle
_CYCLES: dict[int, type[Cycle]] = {GateCycle.TYPE: GateCycle, PolicyCycle.TYPE: PolicyCycle}
_VALUES = {kind: attrgetter(*cycle.__slots__) for kind, cycle in _CYCLES.items()}
"""Each record's fields in order; dataclasses.astuple would copy them deeply, at ten times the cost."""


class Telemetry:
    """The sending end. `dropped` counts what the reporter was too slow, or not there, to take.

    `board` is where the reporter counts what was lost elsewhere; the gate has one, to answer for all of it.
    """

    def __init__(self, sock: socket.socket, board: DropBoard | None = None) -> None:
        self._socket = sock
        self._board = board
        self._socket.setblocking(False)
        self._told = 0
        self.dropped = 0

    def event(self, name: str, message: str, level: str = "info", /, **fields: Any) -> None:
        """Something that people want to read, once."""
        record = {"event": name, "message": message, "level": level, **fields}
        self._send(json.dumps(record, default=str).encode()[:MAX_RECORD_BYTES])

    def cycle(self, record: Cycle) -> None:
        """One cycle's times."""
        self._send(record.LAYOUT.pack(record.TYPE, *_VALUES[record.TYPE](record)))

    def losses(self) -> dict[str, Any]:
        """Records that people never saw, in all and by who lost them: a part of the gate's `status`."""
        counts = {**(self._board.totals() if self._board is not None else {}), "gate": self.dropped}
        return {"dropped_records": sum(counts.values()), "dropped_records_by_sink": counts}

    def _send(self, data: bytes) -> None:
        try:
            if self.dropped != self._told:
                self._socket.send(Dropped.LAYOUT.pack(Dropped.TYPE, self.dropped - self._told))
                self._told = self.dropped
            self._socket.send(data)
        except OSError:
            self.dropped += 1


def unpack_record(data: bytes) -> Cycle | Dropped | dict[str, Any]:
    """A record as the reporter reads it; raises ValueError for what is none."""
    cycle = _CYCLES.get(data[0]) if data else None
    if cycle is not None and len(data) == cycle.LAYOUT.size:
        return cycle(*cycle.LAYOUT.unpack(data)[1:])
    if data[:1] == bytes([Dropped.TYPE]) and len(data) == Dropped.LAYOUT.size:
        return Dropped(Dropped.LAYOUT.unpack(data)[1])
    try:
        record = json.loads(data)
    except RecursionError as error:
        raise ValueError("no event record is that deep") from error
    words = [record.get(key) for key in ("event", "message", "level")] if isinstance(record, dict) else [None]
    if not all(isinstance(word, str) for word in words) or words[2] not in LEVELS:
        raise ValueError("an event record is a JSON object with an event, a message and a level")
    return dict(record)
