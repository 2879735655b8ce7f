"""One drive of the simulated robot, as far as it is drawn."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mvla_daemon.core.messages import SECOND
from mvla_daemon.sim.robot import StopTaken
from mvla_daemon.sim.room import Pose, Room, Side
from mvla_daemon.sim.world import TRACK_PERIOD_NS, Outcome, TrackPoint


@dataclass(frozen=True, slots=True)
class Drive:
    """What there is to draw of one drive; it began one track period before the first point of the track.

    `side` is the one asked for, None where either is right; `title` is what the robot was told. `insets` are what the
    camera saw: seconds since the drive began, and BGR uint8 (480, 640, 3).
    """

    room: Room
    side: Side | None
    title: str
    outcome: Outcome
    passed: Side | None
    track: Sequence[TrackPoint]
    stops: Sequence[StopTaken]
    insets: Sequence[tuple[float, NDArray[np.uint8]]]

    @property
    def poses(self) -> list[Pose]:
        """The start, then the track; never empty."""
        return [self.room.start, *(point.pose for point in self.track)]

    @property
    def duration_s(self) -> float:
        """From the beginning to the last point of the track."""
        return self.seconds(self.track[-1].at_ns) if self.track else 0.0

    def seconds(self, at_ns: int) -> float:
        """Since the drive began."""
        return (at_ns - self.track[0].at_ns + TRACK_PERIOD_NS) / SECOND if self.track else 0.0

    def pose_at(self, seconds: float) -> Pose:
        """Where the robot was so long after the drive began; its start or end for a time outside the drive."""
        times = [self.seconds(point.at_ns) for point in self.track]
        return self.poses[min(bisect_left(times, seconds) + 1, len(times)) if seconds > 0 else 0]
