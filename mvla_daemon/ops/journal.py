"""The systemd journal's native protocol: one datagram a record, never waited for.

Format: systemd.io, "Native Journal Protocol". A value with a newline is given by its length instead of by its line;
what is too large for a datagram goes into a sealed memfd, whose descriptor is sent instead.
"""

from __future__ import annotations

import errno
import fcntl
import json
import os
import re
import socket
import struct
from array import array
from collections.abc import Mapping
from contextlib import suppress

SOCKET = "/run/systemd/journal/socket"
PRIORITIES = {"debug": 7, "info": 6, "warning": 4, "error": 3}
MESSAGE_IDS = {
    "stop": "5a0c2c3a1d6b4f0f9b3e5f0f4c1d7e21",
    "armed": "c7a3c9a0f3e94c0d8a5a54d6ab3f0b52",
    "latched": "0b8f4d1e6a7c45c3b2d19e8f7a6c5d43",
    "engine_built": "7350a1fe58224913b78ebb4e6a4aac24",
}
"""One constant id for each kind of record that people search for; systemd/mvla-daemon.catalog explains each."""
MAX_FIELDS = 256
"""The journal throws a record with more than 1024 of them away without a word."""
_KEY = re.compile(r"[a-z][a-z0-9_]{0,58}")
"""What makes a name that the journal takes: with MVLA_ before it, at most 64 characters."""
_SHOWN = {code: f"\\x{code:02x}" for code in (*range(32), *range(127, 160)) if chr(code) not in "\n\t"}
"""One control character, and journalctl shows a number of bytes instead of the text around it."""
_TOO_LARGE = {errno.EMSGSIZE, errno.ENOBUFS}
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE | fcntl.F_SEAL_SEAL
"""The journal takes no file from an ordinary user that could still change while it reads."""


def fields_of(record: Mapping[str, object]) -> dict[str, str]:
    """A record with `event`, `level`, `message` and whatever else it has, in the journal's words.

    Each of its other fields is MVLA_ and its name; what is empty, or has a name that the journal does not take, is
    left out.
    """
    fields = {
        "MESSAGE": _text(record.get("message", "")),
        "PRIORITY": str(PRIORITIES.get(str(record.get("level")), PRIORITIES["info"])),
        "SYSLOG_IDENTIFIER": "mvla-daemon",
    }
    kind = str(record.get("state") if record.get("event") == "state" else record.get("event"))
    if kind in MESSAGE_IDS:
        fields["MESSAGE_ID"] = MESSAGE_IDS[kind]
    for key, value in record.items():
        if key not in {"message", "level"} and value not in (None, "") and _KEY.fullmatch(key):
            fields["MVLA_" + key.upper()] = _text(value)
        if len(fields) == MAX_FIELDS:
            break
    return fields


def _text(value: object) -> str:
    text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
    return text.translate(_SHOWN)


def encode(fields: Mapping[str, str]) -> bytes:
    """The datagram for these fields."""
    out = bytearray()
    for name, value in fields.items():
        data = value.encode("utf-8", "backslashreplace")
        if b"\n" in data:
            out += name.encode() + b"\n" + struct.pack("<Q", len(data)) + data + b"\n"
        else:
            out += name.encode() + b"=" + data + b"\n"
    return bytes(out)


class Journal:
    """Sends records. The socket is looked up for each: a journal that went away and came back needs nothing of us."""

    def __init__(self, path: str = SOCKET) -> None:
        self._path = path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)

    def write(self, record: Mapping[str, object]) -> bool:
        """Whether the journal took the record at once; there is no second try."""
        data = encode(fields_of(record))
        try:
            self._socket.sendto(data, self._path)
        except OSError as error:
            return error.errno in _TOO_LARGE and self._hand_over(data)
        return True

    def _hand_over(self, data: bytes) -> bool:
        with suppress(OSError):
            fd = os.memfd_create("mvla-journal", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            with os.fdopen(fd, "wb") as file:
                file.write(data)
                file.flush()
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, _SEALS)
                passed = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", [fd]))]
                self._socket.sendmsg([], passed, 0, self._path)
                return True
        return False

    def close(self) -> None:
        """Let go of the socket."""
        self._socket.close()
