"""One drive of the simulated robot: the room, the body in it, what it touched, and how the drive ended."""

from __future__ import annotations

import math
from dataclasses import dataclass
from enum import Enum

from mvla_daemon.core.messages import MS, SECOND, Velocity
from mvla_daemon.sim.body import STEP_NS, Body
from mvla_daemon.sim.room import ROBOT_RADIUS_M, Box, Pose, Room, Side

REACHED_M = 0.50
SLOW_MPS = 0.08
SLOW_FOR_NS = 300 * MS
TIMEOUT_NS = 30 * SECOND
TRACK_PERIOD_NS = 20 * MS


class Outcome(Enum):
    """How a drive ended; the first that happened stays."""

    RUNNING = "running"
    REACHED = "reached"
    TOUCHED_BOX = "touched_box"
    TOUCHED_OTHER_BOX = "touched_other_box"
    TOUCHED_CUP = "touched_cup"
    TOUCHED_WALL = "touched_wall"
    WRONG_SIDE = "wrong_side"
    TIMEOUT = "timeout"


@dataclass(frozen=True, slots=True)
class TrackPoint:
    """One sample of a drive."""

    at_ns: int
    pose: Pose
    speed_mps: float


def gap_to_box_m(box: Box, x_m: float, y_m: float) -> float:
    """From a point on the floor to the nearest of a box; 0 inside it."""
    cos, sin = math.cos(box.yaw_rad), math.sin(box.yaw_rad)
    dx, dy = x_m - box.x_m, y_m - box.y_m
    along = abs(dx * cos + dy * sin) - box.length_m / 2
    across = abs(dy * cos - dx * sin) - box.width_m / 2
    return math.hypot(max(along, 0.0), max(across, 0.0))


def touched(room: Room, x_m: float, y_m: float) -> Outcome | None:
    """What a robot with its middle there touches, the box to pass first, or None."""
    for i, box in enumerate(room.boxes):
        if gap_to_box_m(box, x_m, y_m) <= ROBOT_RADIUS_M:
            return Outcome.TOUCHED_OTHER_BOX if i else Outcome.TOUCHED_BOX
    if math.hypot(x_m - room.cup.x_m, y_m - room.cup.y_m) <= ROBOT_RADIUS_M + room.cup.radius_m:
        return Outcome.TOUCHED_CUP
    if min(x_m - room.west_m, room.east_m - x_m, y_m - room.south_m, room.north_m - y_m) <= ROBOT_RADIUS_M:
        return Outcome.TOUCHED_WALL
    return None


class World:
    """A robot that has to go to the cup and pass `room.boxes[0]` on `side` (None: on either).

    It is at rest at `now_ns`, and the drive begins with the first motion of the wheels. It has passed the box
    on the side where its middle crossed the line through the box's middle that is perpendicular to the way from start
    to cup. A robot that touches something stays where it is for good; after any other end it goes on moving.
    """

    def __init__(self, room: Room, side: Side | None, seed: int, now_ns: int = 0) -> None:
        self.room = room
        self.side = side
        self.outcome = Outcome.RUNNING
        self.passed: Side | None = None
        self.track: list[TrackPoint] = []
        self._body = Body(room.start, seed, now_ns)
        self._began_ns: int | None = None
        self._ended_ns: int | None = None
        self._slow_since_ns: int | None = None
        way_m = math.hypot(room.cup.x_m - room.start.x_m, room.cup.y_m - room.start.y_m)
        self._ahead = ((room.cup.x_m - room.start.x_m) / way_m, (room.cup.y_m - room.start.y_m) / way_m)
        self._past_m = self._past_box_m(room.start)

    @property
    def pose(self) -> Pose:
        """Where the robot is."""
        return self._body.pose

    @property
    def velocity(self) -> Velocity:
        """How it moves, in its own axes."""
        return self._body.velocity

    @property
    def next_step_ns(self) -> int:
        """When the next step is complete: where the wheels change, call `advance` at each."""
        return self._body.next_step_ns

    @property
    def began_ns(self) -> int | None:
        """When the wheels first moved; None before that."""
        return self._began_ns

    @property
    def duration_ns(self) -> int | None:
        """From the first motion to the end of the drive; None while it has not ended."""
        return None if self._ended_ns is None or self._began_ns is None else self._ended_ns - self._began_ns

    def advance(self, now_ns: int, wheels: Velocity) -> None:
        """Move with these wheels up to `now_ns`, and judge every step on the way."""
        while self._body.next_step_ns <= now_ns:
            at_ns = self._body.next_step_ns
            if self._began_ns is None and any(wheels.as_tuple()):
                self._began_ns = at_ns - STEP_NS
            self._body.advance(at_ns, wheels)
            if self._began_ns is not None:
                self._judge(at_ns, self._began_ns)

    def _judge(self, at_ns: int, began_ns: int) -> None:
        pose, velocity = self._body.pose, self._body.velocity
        speed_mps = math.hypot(velocity.linear_x_mps, velocity.linear_y_mps)
        contact = touched(self.room, pose.x_m, pose.y_m)
        if contact is not None:
            self._body.hold()
        self._note_crossing(pose)
        if self.outcome is not Outcome.RUNNING:
            return
        if (at_ns - began_ns) % TRACK_PERIOD_NS == 0:
            self.track.append(TrackPoint(at_ns, pose, speed_mps))
        if contact is not None:
            self._end(contact, at_ns)
        elif self.side is not None and self.passed not in {None, self.side}:
            self._end(Outcome.WRONG_SIDE, at_ns)
        elif self._rests_at_cup(pose, speed_mps, at_ns):
            self._end(Outcome.REACHED, at_ns)
        elif at_ns - began_ns >= TIMEOUT_NS:
            self._end(Outcome.TIMEOUT, at_ns)

    def _end(self, outcome: Outcome, at_ns: int) -> None:
        self.outcome = outcome
        self._ended_ns = at_ns

    def _note_crossing(self, pose: Pose) -> None:
        before_m, self._past_m = self._past_m, self._past_box_m(pose)
        if before_m < 0.0 <= self._past_m:
            dx, dy = pose.x_m - self.room.boxes[0].x_m, pose.y_m - self.room.boxes[0].y_m
            self.passed = Side.LEFT if self._ahead[0] * dy > self._ahead[1] * dx else Side.RIGHT
        elif self._past_m < 0.0:
            self.passed = None

    def _past_box_m(self, pose: Pose) -> float:
        """How far beyond the box's middle, along the way from start to cup; negative before it."""
        box = self.room.boxes[0]
        return (pose.x_m - box.x_m) * self._ahead[0] + (pose.y_m - box.y_m) * self._ahead[1]

    def _rests_at_cup(self, pose: Pose, speed_mps: float, at_ns: int) -> bool:
        """Whether it has been near the cup, slow, and past the box for long enough."""
        cup_m = math.hypot(pose.x_m - self.room.cup.x_m, pose.y_m - self.room.cup.y_m)
        if cup_m > REACHED_M or speed_mps >= SLOW_MPS or self.passed is None:
            self._slow_since_ns = None
            return False
        if self._slow_since_ns is None:
            self._slow_since_ns = at_ns
        return at_ns - self._slow_since_ns >= SLOW_FOR_NS
