"""Motor link v1 a second time, written from its page alone: it judges the package's bytes and shares no code with it.

COBS here is a machine that eats one byte at a time, the CRC its own table, and a good packet is one whose CRC, run over
the packet and the CRC behind it, leaves the constant residue.
"""

from __future__ import annotations

from dataclasses import dataclass, field

LONGEST = 64
RESIDUE = 0x2144DF1C  # of CRC-32/ISO-HDLC
HEADER = (("version", 1), ("type", 1), ("session", 2), ("seq", 4))
# Field and its width; a minus is a signed one, and a width over 4 is plain bytes.
LAYOUT: dict[str, tuple[int, tuple[tuple[str, int], ...]]] = {
    "HELLO": (0x01, (("nonce", 4),)),
    "ARM": (0x02, (("watchdog_ms", 2),)),
    "VELOCITY": (0x03, (("cycle", 4), ("ttl_ms", 2), ("vx", -4), ("vy", -4), ("wz", -4))),
    "STOP": (0x04, (("category", 1), ("reason", 1))),
    "KEEPALIVE": (0x05, ()),
    "IDENTITY": (
        0x81,
        (
            *(("nonce", 4), ("name", 16), ("fw_major", 1), ("fw_minor", 1)),
            *(("watchdog_min_ms", 2), ("watchdog_max_ms", 2), ("decel_mm_s2", 2), ("decel_mrad_s2", 2)),
        ),
    ),
    "STATUS": (
        0x82,
        (
            *(("state", 1), ("faults", 1), ("host_seq", 4), ("uptime_ms", 4), ("watchdog_ms", 2)),
            *(("vx", -4), ("vy", -4), ("wz", -4), ("battery_mv", 2)),
        ),
    ),
}
KIND_OF = {number: kind for kind, (number, _) in LAYOUT.items()}


def _crc_table() -> list[int]:
    table = []
    for entry in range(256):
        for _ in range(8):
            entry = (entry >> 1) ^ (0xEDB88320 if entry & 1 else 0)  # noqa: PLW2901 - the textbook's loop
        table.append(entry)
    return table


TABLE = _crc_table()


def crc32(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc = (crc >> 8) ^ TABLE[(crc ^ byte) & 0xFF]
    return crc ^ 0xFFFFFFFF


@dataclass(frozen=True)
class WireFrame:
    """A frame, and where it lay in the stream: from its first byte to behind its closing zero."""

    kind: str
    session: int
    seq: int
    fields: dict[str, int | bytes]
    offset_start: int
    offset_end: int

    def number(self, name: str) -> int:
        value = self.fields[name]
        assert isinstance(value, int)
        return value


@dataclass
class WireReader:
    """Frames out of a stream; `undecodable` holds every other run between two zeros, in order."""

    undecodable: list[bytes] = field(default_factory=list)
    _offset: int = 0
    _run: list[int] = field(default_factory=list)
    _out: list[int] = field(default_factory=list)
    _left: int = 0
    _zero_owed: bool = False

    def feed(self, data: bytes) -> list[WireFrame]:
        frames = []
        for byte in data:
            self._offset += 1
            if byte:
                self._eat(byte)
            elif self._run:
                frame = self._finish()
                if frame is None:
                    self.undecodable.append(bytes(self._run))
                else:
                    frames.append(frame)
                self._run, self._out, self._left, self._zero_owed = [], [], 0, False
        return frames

    def _eat(self, byte: int) -> None:
        self._run.append(byte)
        if self._left:
            self._out.append(byte)
            self._left -= 1
            return
        if self._zero_owed:
            self._out.append(0)
        self._left = byte - 1
        self._zero_owed = byte != 0xFF

    def _finish(self) -> WireFrame | None:
        packet = bytes(self._out)
        if len(self._run) > LONGEST or self._left or len(packet) < 12 or crc32(packet) != RESIDUE:
            return None
        head, at = _take(packet, 0, HEADER)
        kind = KIND_OF.get(int(head["type"]))
        if head["version"] != 1 or kind is None:
            return None
        layout = LAYOUT[kind][1]
        if len(packet) != 8 + sum(abs(width) for _, width in layout) + 4:
            return None
        fields, _ = _take(packet, at, layout)
        start = self._offset - 1 - len(self._run)
        return WireFrame(kind, int(head["session"]), int(head["seq"]), fields, start, self._offset)


def _take(packet: bytes, at: int, layout: tuple[tuple[str, int], ...]) -> tuple[dict[str, int | bytes], int]:
    taken: dict[str, int | bytes] = {}
    for name, width in layout:
        piece = packet[at : at + abs(width)]
        taken[name] = piece if width > 4 else int.from_bytes(piece, "little", signed=width < 0)
        at += abs(width)
    return taken, at


def decode_stream(data: bytes) -> list[WireFrame]:
    """The frames of a finished stream; what of it was undecodable only a `WireReader` tells."""
    return WireReader().feed(data)


def encode(kind: str, session: int, seq: int, **fields: int | bytes) -> bytes:
    """A frame with its closing zero; every field of its kind must be given."""
    number, layout = LAYOUT[kind]
    assert {name for name, _ in layout} == set(fields), f"{kind} has the fields {[name for name, _ in layout]}"
    packet = bytes((1, number)) + session.to_bytes(2, "little") + seq.to_bytes(4, "little")
    for name, width in layout:
        value = fields[name]
        if isinstance(value, bytes):
            packet += value.ljust(width, b"\0")
        else:
            packet += value.to_bytes(abs(width), "little", signed=width < 0)
    return seal(packet)


def seal(payload: bytes) -> bytes:
    """Any payload as a frame with a right CRC, so that a test can send what `encode` would never make."""
    packet = payload + crc32(payload).to_bytes(4, "little")
    out = bytearray([0])
    code_at = 0
    for byte in packet:
        if byte:
            out.append(byte)
        if not byte:
            out[code_at] = len(out) - code_at
            code_at = len(out)
            out.append(0)
    out[code_at] = len(out) - code_at
    return bytes(out) + b"\0"
