"""Reads what arrived at the far end of the wire, and when, from the log that the ground writes.

The log is one chunk after the other: `<qI`, the CLOCK_MONOTONIC nanoseconds when it was read and its length, then its
bytes. When a frame was written lies between two readings: after the one before, and not after its own.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from pathlib import Path

from mvla_daemon.core.messages import MS
from mvla_daemon.motors.link_v1 import ControllerState, Decoder, Packet, Status

CHUNK = struct.Struct("<qI")
_TTL_RAN_OUT = 1 << 5


@dataclass(frozen=True, slots=True)
class Timed:
    """A packet that was read at `at_ns` and was not there yet at `after_ns`, when the reading before was."""

    at_ns: int
    after_ns: int
    packet: Packet


@dataclass(slots=True)
class WireLog:
    """The packets of a log that is still being written."""

    path: Path
    _at: int = 0
    _read_ns: int = 0
    _decoder: Decoder = field(default_factory=Decoder)

    @property
    def damaged(self) -> int:
        """How many pieces between two zeros were no packet."""
        return sum(self._decoder.counts.values())

    def read(self) -> list[Timed]:
        """The packets of all whole chunks that were written since the last call."""
        found: list[Timed] = []
        for at_ns, chunk in self._chunks():
            found += [Timed(at_ns, self._read_ns, packet) for packet in self._decoder.feed(chunk)]
            self._read_ns = at_ns
        return found

    def _chunks(self) -> list[tuple[int, bytes]]:
        with self.path.open("rb") as log:
            log.seek(self._at)
            data = log.read()
        chunks = []
        at = 0
        while len(data) - at >= CHUNK.size:
            at_ns, length = CHUNK.unpack_from(data, at)
            end = at + CHUNK.size + length
            if end > len(data):
                break
            chunks.append((at_ns, data[at + CHUNK.size : end]))
            at = end
        self._at += at
        return chunks


def drove_on_ms(arm: Timed, driven_ns: int, said: bytes) -> float:
    """For how long after `driven_ns`, its last VELOCITY, the controller says that it drove on; infinite for ever.

    STATUS tells the controller's own time, and the first one of the session of `arm` is said at once after that.
    """
    booted_ns = None
    drove_ns = 0
    for packet in Decoder().feed(said):
        status = packet.body
        if packet.session != arm.packet.session or not isinstance(status, Status):
            continue
        if booted_ns is None:
            booted_ns = arm.at_ns - status.uptime_ms * MS
        if status.state != ControllerState.ARMED or status.faults & _TTL_RAN_OUT:
            return drove_ns / MS
        drove_ns = max(0, booted_ns + status.uptime_ms * MS - driven_ns)
    return math.inf
