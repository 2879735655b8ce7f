"""Motor link v1, both directions: COBS frames with a CRC32, as bytes and nothing else.

A packet on the wire is `COBS(payload + CRC32(payload))` and one zero byte. COBS (Cheshire and Baker, "Consistent
Overhead Byte Stuffing", 1999) takes the zeros out of the data, so that a zero byte always ends a packet and a receiver
finds its way back after any damage. Every integer is little-endian.

What is made fifty times a second and more is no frozen dataclass: one of those takes three times as long to make.
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import IntEnum
from operator import attrgetter
from typing import Any, ClassVar, TypeAlias

VERSION = 1
MAX_ENCODED_BYTES = 64
"""The most bytes that may stand between two zeros."""
_CRC = struct.Struct("<I")
_HEADER = struct.Struct("<BBHI")
_SEQ_HALF = 1 << 31


class ControllerState(IntEnum):
    """What a controller says it is doing."""

    DISARMED = 0
    ARMED = 1
    STOPPING = 2
    STOPPED = 3
    WATCHDOG_TRIPPED = 4
    FAULT = 5


@dataclass(frozen=True, slots=True)
class Hello:
    """Host: who are you?"""

    TYPE: ClassVar[int] = 0x01
    BODY: ClassVar[struct.Struct] = struct.Struct("<I")
    nonce: int


@dataclass(frozen=True, slots=True)
class Arm:
    """Host: start the header's session at zero velocity with this watchdog."""

    TYPE: ClassVar[int] = 0x02
    BODY: ClassVar[struct.Struct] = struct.Struct("<H")
    watchdog_ms: int


@dataclass(slots=True)
class Drive:
    """Host: VELOCITY, valid for `ttl_ms` from its arrival; micrometres and microradians a second."""

    TYPE: ClassVar[int] = 0x03
    BODY: ClassVar[struct.Struct] = struct.Struct("<IHiii")
    cycle: int
    ttl_ms: int
    vx_umps: int
    vy_umps: int
    wz_uradps: int


@dataclass(frozen=True, slots=True)
class Stop:
    """Host: leave motion now; ends the session."""

    TYPE: ClassVar[int] = 0x04
    BODY: ClassVar[struct.Struct] = struct.Struct("<BB")
    category: int
    reason: int


@dataclass(frozen=True, slots=True)
class KeepAlive:
    """Host: feeds the watchdog between ARM and the first VELOCITY."""

    TYPE: ClassVar[int] = 0x05
    BODY: ClassVar[struct.Struct] = struct.Struct("<")


@dataclass(frozen=True, slots=True)
class Identity:
    """Controller: who I am and what my watchdog and ramp can do."""

    TYPE: ClassVar[int] = 0x81
    BODY: ClassVar[struct.Struct] = struct.Struct("<I16sBBHHHH")
    nonce: int
    name: bytes
    fw_major: int
    fw_minor: int
    watchdog_min_ms: int
    watchdog_max_ms: int
    decel_mm_s2: int
    decel_mrad_s2: int

    @property
    def text(self) -> str:
        """The name as text; bytes that are no UTF-8 are shown as escapes."""
        return self.name.rstrip(b"\0").decode("utf-8", "backslashreplace")


@dataclass(slots=True)
class Status:
    """Controller: its state, what it accepted last, and what it measures."""

    TYPE: ClassVar[int] = 0x82
    BODY: ClassVar[struct.Struct] = struct.Struct("<BBIIHiiiH")
    state: int
    faults: int
    host_seq: int
    uptime_ms: int
    watchdog_ms: int
    vx_umps: int
    vy_umps: int
    wz_uradps: int
    battery_mv: int


Body: TypeAlias = Hello | Arm | Drive | Stop | KeepAlive | Identity | Status


def _values(body: type[Body]) -> Callable[[Body], tuple[Any, ...]]:
    """A function that gives the body's fields in order, without a loop where there are several."""
    names = body.__slots__
    if len(names) > 1:
        return attrgetter(*names)
    return lambda one: tuple(getattr(one, name) for name in names)


_BODIES: dict[int, type[Body]] = {body.TYPE: body for body in (Hello, Arm, Drive, Stop, KeepAlive, Identity, Status)}

_LAYOUTS = {
    kind: (struct.Struct(_HEADER.format + body.BODY.format.lstrip("<")), _values(body))
    for kind, body in _BODIES.items()
}
_WAYS = tuple(bytes((length + 1,)) for length in range(MAX_ENCODED_BYTES))


@dataclass(slots=True)
class Packet:
    """One packet of the wire: the header's session and sequence number, and the body."""

    session: int
    seq: int
    body: Body


def newer(seq: int, than: int) -> bool:
    """Whether `seq` comes after `than` on the 32-bit circle (RFC 1982, section 3.2)."""
    return 0 < ((seq - than) & 0xFFFFFFFF) < _SEQ_HALF


def encode(packet: Packet) -> bytes:
    """The bytes of a packet, its closing zero included; raises `struct.error` for a value its field cannot hold."""
    body = packet.body
    layout, values = _LAYOUTS[body.TYPE]
    payload = layout.pack(VERSION, body.TYPE, packet.session, packet.seq, *values(body))
    return _cobs_encode(payload + zlib.crc32(payload).to_bytes(4, "little"))


def _cobs_encode(data: bytes) -> bytes:
    """COBS for at most 254 bytes, which every packet of this link is, and the zero that closes it.

    Each zero becomes the way to the next one.
    """
    return b"".join([_WAYS[len(run)] + run for run in data.split(b"\0")]) + b"\0"


def _cobs_decode(data: bytes) -> bytes | None:
    """The bytes behind a COBS run without zeros, or None when a block reaches past the end."""
    runs = []
    at = 0
    end = len(data)
    while at < end:
        after = at + data[at]
        runs.append(data[at + 1 : after])
        at = after
    return b"\0".join(runs) if at == end else None


@dataclass(slots=True)
class Decoder:
    """Finds packets in a byte stream; damage of any kind is counted and dropped.

    `counts` holds, for each kind of damage, how often it was met.
    """

    counts: dict[str, int] = field(
        default_factory=lambda: dict.fromkeys(("too_long", "cobs", "crc", "version", "type", "length"), 0)
    )
    _run: bytearray = field(default_factory=bytearray)
    _overrun: bool = False

    def feed(self, data: bytes) -> list[Packet]:
        """The packets that `data` completes, in order."""
        packets: list[Packet] = []
        *ended, rest = data.split(b"\0")
        for piece in ended:
            self._collect(piece)
            if self._overrun:
                self.counts["too_long"] += 1
            elif self._run:
                packet = self._parse(bytes(self._run))
                if packet is not None:
                    packets.append(packet)
            self._run.clear()
            self._overrun = False
        self._collect(rest)
        return packets

    def _collect(self, piece: bytes) -> None:
        if len(self._run) + len(piece) > MAX_ENCODED_BYTES:
            self._overrun = True
        if not self._overrun:
            self._run += piece

    def _parse(self, run: bytes) -> Packet | None:
        data = _cobs_decode(run)
        if data is None or len(data) < _HEADER.size + _CRC.size:
            self.counts["cobs" if data is None else "length"] += 1
            return None
        payload = data[: -_CRC.size]
        if _CRC.unpack(data[-_CRC.size :])[0] != zlib.crc32(payload):
            self.counts["crc"] += 1
            return None
        version, kind, session, seq = _HEADER.unpack_from(payload)
        body = _BODIES.get(kind)
        if version != VERSION or body is None:
            self.counts["version" if version != VERSION else "type"] += 1
            return None
        if len(payload) != _HEADER.size + body.BODY.size:
            self.counts["length"] += 1
            return None
        return Packet(session, seq, body(*body.BODY.unpack_from(payload, _HEADER.size)))
