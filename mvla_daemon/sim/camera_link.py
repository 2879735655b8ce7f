"""How the simulated camera's pictures get to the policy process: a sealed memfd for pixels, a socket for the news.

Whoever connects is handed the memory, which only the simulator can write, and is then told of each picture: where it
is, its number and when it was taken. Neither side waits for the other: who is not reading misses news, and a picture
that is overwritten while it is being copied is noticed by its number. Nothing of it is a file: however the two end,
nothing is left behind.
"""

from __future__ import annotations

import fcntl
import mmap
import os
import secrets
import socket
import struct
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from mvla_daemon.sim.room import CAMERA_HEIGHT_PX, CAMERA_WIDTH_PX

ANSWER_S = 5.0
"""How long a simulator may take to answer a new viewer."""
SHAPE = (CAMERA_HEIGHT_PX, CAMERA_WIDTH_PX, 3)
_PICTURE_BYTES = SHAPE[0] * SHAPE[1] * SHAPE[2]
_SLOTS = 4
_NUMBERS = struct.Struct(f"<{_SLOTS}q")
_NEWS = struct.Struct("<IIq")
_HEADER_BYTES = 4096
_UNFINISHED = -1
_CREDENTIALS = struct.Struct("iII")
_F_SEAL_FUTURE_WRITE = 0x10  # <linux/fcntl.h>; fcntl has it from Python 3.14 on
_SEALS = fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | _F_SEAL_FUTURE_WRITE | fcntl.F_SEAL_SEAL


@dataclass(frozen=True, slots=True)
class News:
    """A picture in one of the memory's slots, taken at `captured_ns` (CLOCK_MONOTONIC)."""

    slot: int
    number: int
    captured_ns: int


class CameraServer:
    """The simulator's end, for viewers of the same user.

    `path` is where to connect: an abstract socket address (unix(7)), written as usual with @ for its first byte. It is
    a new one, unless that of a server which has been closed is given.
    """

    def __init__(self, path: Path | None = None) -> None:
        self._memory = os.fdopen(os.memfd_create("mvla-sim-camera", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING), "r+b", 0)
        self._memory.truncate(_HEADER_BYTES + _SLOTS * _PICTURE_BYTES)
        self._map = mmap.mmap(self._memory.fileno(), 0)
        fcntl.fcntl(self._memory, fcntl.F_ADD_SEALS, _SEALS)  # from now on nobody else can map it to write
        self._numbers = [_UNFINISHED] * _SLOTS
        self._slot = 0
        self._viewers: list[socket.socket] = []
        self.path = path or Path(f"@mvla-sim-{os.getpid()}-{secrets.token_hex(8)}")
        self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
        self.socket.bind(_address(self.path))
        self.socket.listen(4)

    def writable(self) -> NDArray[np.uint8]:
        """The buffer for the next picture, (480, 640, 3) uint8 BGR, until `publish`."""
        self._numbers[self._slot] = _UNFINISHED
        _NUMBERS.pack_into(self._map, 0, *self._numbers)
        return _picture(self._map, self._slot)

    def publish(self, number: int, captured_ns: int) -> None:
        """Tell everyone of the picture in the writable buffer; another thread may `accept` meanwhile."""
        self._numbers[self._slot] = number
        _NUMBERS.pack_into(self._map, 0, *self._numbers)
        news = _NEWS.pack(self._slot, number, captured_ns)
        self._slot = (self._slot + 1) % _SLOTS
        for viewer in tuple(self._viewers):
            if not _tell(viewer, news):
                self._viewers.remove(viewer)

    def accept(self) -> int | None:
        """Take one who wants to see; its process id, or None when it may not see or has gone away again."""
        with suppress(OSError):
            viewer, _ = self.socket.accept()
            with suppress(OSError):
                viewer.setblocking(False)
                pid = _peer(viewer)
                socket.send_fds(viewer, [b"camera"], [self._memory.fileno()])
                self._viewers.append(viewer)
                return pid
            viewer.close()
        return None

    def close(self) -> None:
        """Let go of everybody; what is painted on stays usable until `publish`."""
        self.socket.close()
        for viewer in self._viewers:
            viewer.close()
        self._memory.close()


class CameraClient:
    """The policy process's end; OSError when nobody of this user answers at the path in time."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            self._socket.settimeout(ANSWER_S)
            self._socket.connect(_address(path))
            _peer(self._socket)
            self._map = _receive_memory(self._socket)
            self._socket.settimeout(None)
        except BaseException:
            self._socket.close()
            raise

    def wait(self) -> News | None:
        """The newest picture not yet told of, waiting for one if need be; None once the simulator has ended."""
        news = self._socket.recv(_NEWS.size)
        while news:
            try:
                later = self._socket.recv(_NEWS.size, socket.MSG_DONTWAIT)
            except BlockingIOError:
                return News(*_NEWS.unpack(news))
            news = later
        return None

    def copy(self, news: News, into: NDArray[np.uint8]) -> bool:
        """Copy that picture; False when it was overwritten meanwhile."""
        np.copyto(into, _picture(self._map, news.slot))
        return bool(_NUMBERS.unpack_from(self._map)[news.slot] == news.number)

    def close(self) -> None:
        """Hang up; a `wait` in another thread returns."""
        with suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()


def _address(path: Path) -> str:
    """As bind(2) wants it: an abstract one begins with a zero byte."""
    return str(path).replace("@", "\0", 1)


def _peer(sock: socket.socket) -> int:
    """The process at the other end; PermissionError when it is another user's."""
    pid, uid, _ = _CREDENTIALS.unpack(sock.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, _CREDENTIALS.size))
    if uid != os.geteuid():
        raise PermissionError(f"process {pid} is another user's")
    return int(pid)


def _receive_memory(sock: socket.socket) -> mmap.mmap:
    """The memory that the simulator hands over, to read."""
    _, fds, _, _ = socket.recv_fds(sock, 16, 1)
    if not fds:
        raise ConnectionResetError("it hung up")
    try:
        return mmap.mmap(fds[0], os.fstat(fds[0]).st_size, prot=mmap.PROT_READ)
    finally:
        os.close(fds[0])


def _tell(viewer: socket.socket, news: bytes) -> bool:
    """Whether the viewer is still there; one that does not read misses this picture."""
    try:
        viewer.send(news)
    except BlockingIOError:
        return True
    except OSError:
        viewer.close()
        return False
    return True


def _picture(memory: mmap.mmap, slot: int) -> NDArray[np.uint8]:
    return np.frombuffer(memory, np.uint8, _PICTURE_BYTES, _HEADER_BYTES + slot * _PICTURE_BYTES).reshape(SHAPE)
