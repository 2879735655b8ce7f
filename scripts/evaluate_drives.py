"""One drive for an evaluation, in simulated time and through the daemon's own gate: the policy's, or a control's.

A control is a drive that should fail if the policy drives by what it sees and is told: with the camera covered, or
straight ahead whatever there is. The control with the other instruction should succeed, on the other side.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, replace
from enum import Enum
from typing import TYPE_CHECKING

import numpy as np

from mvla_daemon.config import Config
from mvla_daemon.core.messages import SECOND, Reason, Velocity
from mvla_daemon.sim.drive import Drive
from mvla_daemon.sim.instructions import SENTENCES, side_of
from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.lockstep import Lockstep
from mvla_daemon.sim.lockstep_run import load_thinker
from mvla_daemon.sim.room import ROBOT_RADIUS_M, Room, Side
from mvla_daemon.sim.world import Outcome, TrackPoint, gap_to_box_m

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from mvla_daemon.cameras.slot import Frame

STRAIGHT_MPS = 0.3


class Kind(Enum):
    """What is done to the policy, as the rows of the table are named."""

    POLICY = "policy"
    BLACK = "camera black"
    STRAIGHT = "straight ahead"
    SWAPPED = "instruction swapped"
    REAL_TIME = "real time"


CONTROLS = (Kind.BLACK, Kind.STRAIGHT, Kind.SWAPPED)


@dataclass(frozen=True, slots=True)
class Ended:
    """How one drive ended.

    `gap_m` is the least distance to a box or a wall, `stops` are seconds after the beginning and reasons, without the
    one at the end. `passed`, `duration_s`, `gap_m` and `wire_sha256` are None where there is none or nobody knows it.
    `said` is the daemon's last sentence.
    """

    kind: Kind
    seed: int
    instruction: str
    outcome: Outcome
    passed: Side | None
    duration_s: float | None
    stops: tuple[tuple[float, str], ...]
    gap_m: float | None = None
    wire_sha256: str | None = None
    said: str = ""

    @property
    def reached(self) -> bool:
        """Whether it came to rest at the cup, past the box on the side that it was told."""
        return self.outcome is Outcome.REACHED


def instruction_for(kind: Kind, seed: int) -> str:
    """The sentence of a seed's drive: the sides take turns, and so do the sentences of each side."""
    sides = (Side.LEFT, Side.RIGHT)
    side = sides[(seed + (kind is Kind.SWAPPED)) % 2]
    sentences = [sentence for sentence, asked in SENTENCES.items() if asked is side]
    return sentences[seed // 2 % len(sentences)]


def told(config: Config, instruction: str) -> Config:
    """The same configuration with another instruction."""
    return config.model_copy(update={"policy": config.policy.model_copy(update={"instruction": instruction})})


def drive_in_lockstep(config: Config, kind: Kind, seed: int) -> tuple[Ended, Drive]:
    """Drive in the room of this seed, and what there is to draw of it; raises DaemonError."""
    instruction = instruction_for(kind, seed)
    room, side = make_room(seed), side_of(instruction)
    think, reset = _driver(told(config, instruction), kind)
    lockstep = Lockstep(config, room, side, think, reset=reset)
    outcome = lockstep.run()
    world = lockstep.robot.world
    stops = [stop for stop in lockstep.robot.stops if stop.reason != Reason.SHUTDOWN.label]
    began_ns = world.began_ns or 0
    ended = Ended(
        kind,
        seed,
        instruction,
        outcome,
        world.passed,
        None if world.duration_ns is None else world.duration_ns / SECOND,
        tuple(((stop.at_ns - began_ns) / SECOND, stop.reason) for stop in stops),
        least_gap_m(room, world.track),
        hashlib.sha256(lockstep.port.written).hexdigest(),
        lockstep.ending[1],
    )
    return ended, Drive(room, side, instruction, outcome, world.passed, world.track, stops, ())


def _driver(config: Config, kind: Kind) -> tuple[Callable[[Frame], Velocity], Callable[[], None]]:
    """What makes a velocity of a frame, and what makes it forget what it remembers."""
    if kind is Kind.STRAIGHT:
        return lambda _frame: Velocity(STRAIGHT_MPS), lambda: None
    _, thinker = load_thinker(config)
    if kind is Kind.BLACK:
        # The capture's own checks refuse black pictures, so they have seen the true one before this.
        black = np.zeros((config.camera.height, config.camera.width, 3), np.uint8)
        return lambda frame: thinker.think(replace(frame, pixels=black), 0), thinker.reset
    return lambda frame: thinker.think(frame, 0), thinker.reset


def least_gap_m(room: Room, track: Sequence[TrackPoint]) -> float | None:
    """The least distance between the robot and a box or a wall along a track; None where it did not move."""
    gaps_m = []
    for point in track:
        x_m, y_m = point.pose.x_m, point.pose.y_m
        gaps_m += [x_m - room.west_m, room.east_m - x_m, y_m - room.south_m, room.north_m - y_m]
        gaps_m += [gap_to_box_m(box, x_m, y_m) for box in room.boxes]
    return min(gaps_m, default=math.inf) - ROBOT_RADIUS_M if track else None
