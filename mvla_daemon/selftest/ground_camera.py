"""The camera of the robot on blocks: always the same view, under new noise, and on request the faults of a camera."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mvla_daemon.core.messages import MS, SECOND
from mvla_daemon.selftest.ground import UnknownOrderError
from mvla_daemon.sim.camera_link import SHAPE, CameraServer
from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.picture import Painter

PICTURES = 36
"""Painted beforehand and shown in turn: nothing takes pictures for frozen that are the same a second apart."""
MIN_FPS, MAX_FPS = 0.1, 1000.0
_ON_OFF = {"on": True, "off": False}


class GroundCamera:
    """Pictures of the room of `seed`, `fps` a second from `now_ns` on, at `path` (see `camera_link`).

    The next picture is laid ready after each one, so that showing it takes no time.
    """

    def __init__(self, seed: int, fps: float, now_ns: int) -> None:
        room = make_room(seed)
        painter = Painter(room)
        self._pictures = np.zeros((PICTURES, *SHAPE), np.uint8)
        for number, picture in enumerate(self._pictures):
            painter.paint(room.start, number, picture)
        self._fps = fps
        self._began_ns = now_ns
        self._due = 0
        self._number = 0
        self._shown = 0
        self._frozen = self._black = self._silent = False
        self._skew_ns = 0
        self._turned_ns: int | None = None
        self._repeated_ns: int | None = None
        self._server: CameraServer | None = CameraServer()
        self.path = self._server.path
        self._lay_ready()

    def filenos(self) -> list[int]:
        """What to watch for `accept`."""
        return [] if self._server is None else [self._server.socket.fileno()]

    def accept(self) -> None:
        """Take the viewer that is at the door."""
        if self._server is not None:
            self._server.accept()

    def next_ns(self) -> int:
        """When the next picture is due."""
        return self._began_ns + round(self._due * SECOND / self._fps)

    def advance(self, now_ns: int) -> None:
        """Show the picture that is due; of several only the newest."""
        due_ns = self.next_ns()
        if now_ns < due_ns:
            return
        while (next_ns := self.next_ns()) <= now_ns:
            due_ns = next_ns
            self._due += 1
        if self._server is not None and not self._silent:
            self._server.publish(self._number, self._captured_ns(due_ns))
            self._number += 1
            self._shown = self._shown if self._frozen else (self._shown + 1) % PICTURES
            self._lay_ready()

    def close(self) -> None:
        """Close the door and hang up."""
        if self._server is not None:
            self._server.close()
            self._server = None

    def obey(self, words: Sequence[str], now_ns: int) -> None:
        """Do as ordered from the next picture on; raises UnknownOrderError."""
        match words:
            case ["gone"]:
                self.close()
            case ["back"]:
                self._server = self._server or CameraServer(self.path)
            case ["freeze", ("on" | "off") as flag]:
                self._frozen = _ON_OFF[flag]
            case ["black", ("on" | "off") as flag]:
                self._black = _ON_OFF[flag]
            case ["silent", ("on" | "off") as flag]:
                self._silent = _ON_OFF[flag]
            case ["fps", fps]:  # as an exposure that stretches: the next picture comes a whole new period from now
                self._fps, self._began_ns, self._due = _rate(fps), now_ns, 1
            case ["skew", ms]:
                self._skew_ns = _nanoseconds(ms)
            case ["backwards", ("on" | "off") as flag]:
                self._turned_ns = now_ns if _ON_OFF[flag] else None
            case ["repeat", ("on" | "off") as flag]:
                self._repeated_ns = now_ns if _ON_OFF[flag] else None
            case _:
                raise UnknownOrderError
        self._lay_ready()

    def _captured_ns(self, due_ns: int) -> int:
        """What the camera says of a picture's time."""
        if self._repeated_ns is not None:
            return self._repeated_ns
        if self._turned_ns is not None:
            return 2 * self._turned_ns - due_ns
        return due_ns + self._skew_ns

    def _lay_ready(self) -> None:
        if self._server is None:
            return
        if self._black:
            self._server.writable().fill(0)
        else:
            np.copyto(self._server.writable(), self._pictures[self._shown])


def _nanoseconds(ms: str) -> int:
    try:
        return round(float(ms) * MS)
    except (ValueError, OverflowError) as error:
        raise UnknownOrderError(ms) from error


def _rate(text: str) -> float:
    try:
        fps = float(text)
    except ValueError as error:
        raise UnknownOrderError(text) from error
    if not MIN_FPS <= fps <= MAX_FPS:
        raise UnknownOrderError(text)
    return fps
