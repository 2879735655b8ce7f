"""What is kept of a simulated drive for its picture: some of what the camera saw."""

from __future__ import annotations

from collections import deque
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from mvla_daemon.core.messages import SECOND
from mvla_daemon.sim.drive import Drive
from mvla_daemon.sim.drive_picture import draw_drive
from mvla_daemon.sim.robot import Exposure, SimulatedRobot
from mvla_daemon.sim.room import Room, Side

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

_EVERY_NS = 1 * SECOND
_MOST = 60
"""A minute, twice as long as a drive may take: 55 MB."""


class Scrapbook:
    """Collects the newest minute on the camera's thread, draws afterwards."""

    def __init__(self, room: Room, side: Side | None, title: str) -> None:
        self._room = room
        self._side = side
        self._title = title
        self._seen: deque[tuple[int, NDArray[np.uint8]]] = deque(maxlen=_MOST)

    def look(self, exposure: Exposure, pixels: NDArray[np.uint8]) -> None:
        """Keep a copy of this picture if it is time for one."""
        if not self._seen or exposure.captured_ns - self._seen[-1][0] >= _EVERY_NS:
            self._seen.append((exposure.captured_ns, pixels.copy()))

    def draw(self, robot: SimulatedRobot, path: Path) -> None:
        """Write the picture of the drive; raises DaemonError."""
        draw_drive(self.drive(robot), path)

    def drive(self, robot: SimulatedRobot) -> Drive:
        """The drive so far, with what the camera saw a moment after the start and half-way."""
        world = robot.world
        drive = Drive(self._room, self._side, self._title, world.outcome, world.passed, world.track, robot.stops, ())
        moments = [1.0, drive.duration_s / 2] if world.track else [0.0]
        seen = [(drive.seconds(captured_ns), pixels) for captured_ns, pixels in tuple(self._seen)]
        nearest = [min(seen, key=lambda one: abs(one[0] - moment_s)) for moment_s in moments if seen]
        return replace(drive, insets=[(max(0.0, seconds), pixels) for seconds, pixels in nearest])
