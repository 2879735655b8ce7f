"""The systemd journal's native protocol: one datagram a record, never waited for.

Format: systemd.io, "Native Journal Protocol". A value with a newline is given by its length instead of by its line.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Mapping

SOCKET = "/run/systemd/journal/socket"
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}
MESSAGE_IDS = {
    "stop": "5a0c2c3a1d6b4f0f9b3e5f0f4c1d7e21",
    "armed": "c7a3c9a0f3e94c0d8a5a54d6ab3f0b52",
    "latched": "0b8f4d1e6a7c45c3b2d19e8f7a6c5d43",
}
"""One constant id for each kind of record that people search for."""
_FIELDS = {
    "event": "MVLA_EVENT",
    "reason": "MVLA_REASON",
    "stage": "MVLA_STAGE",
    "cycle": "MVLA_CYCLE",
    "session": "MVLA_SESSION",
    "duration_us": "MVLA_DURATION_US",
}


def encode(fields: Mapping[str, str]) -> bytes:
    """The datagram for these fields."""
    out = b""
    for name, value in fields.items():
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            out += name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
        else:
            out += name.encode() + b"=" + data + b"\n"
    return out


class Journal:
    """Sends records; `dropped` counts those that the journal did not take at once."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self.dropped = 0

    def write(self, record: Mapping[str, object]) -> None:
        """One record with `event`, `level`, `message` and whatever else it has."""
        fields = {
            "MESSAGE": str(record.get("message", "")),
            "PRIORITY": str(PRIORITIES.get(str(record.get("level")), 6)),
            "SYSLOG_IDENTIFIER": "mvla-daemon",
        }
        fields |= {name: str(record[key]) for key, name in _FIELDS.items() if record.get(key) not in (None, "")}
        kind = str(record.get("state") if record.get("event") == "state" else record.get("event"))
        if kind in MESSAGE_IDS:
            fields["MESSAGE_ID"] = MESSAGE_IDS[kind]
        try:
            self._socket.sendto(encode(fields), self._path)
        except OSError:
            self.dropped += 1
