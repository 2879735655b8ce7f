"""The frames that a policy learns from: pictures of drives, and what the expert would do in that place."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import numpy as np
from policy_data import SIDES, Eye, Learner, drive
from policy_manifest import SCALES

from mvla_daemon.core.messages import MS, SECOND, Velocity
from mvla_daemon.sim.expert import expert
from mvla_daemon.sim.instructions import SENTENCES
from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.room import Pose, Room, Side
from mvla_daemon.sim.world import TIMEOUT_NS, Outcome

if TYPE_CHECKING:
    from numpy.typing import NDArray

SMALL_PX = 112
"""A side of the stored pictures: the network's own first step is to halve its input, so they are stored halved."""
COLLECTING_PERIOD_NS = 80 * MS
_LINGER_NS = SECOND
"""How long frames are still taken at the cup, so that the policy learns to stay there."""
_ABREAST_RAD = (math.radians(45), math.radians(110))
"""Box and cup so far apart: a robot beside the box is never there with the other instruction."""
_DISTURBED = (0.16, 0.16, 0.5)
"""Standard deviation of the most disturbed drives' wishes, in m/s, m/s and rad/s."""
_DISTURBANCE_KEPT = 0.9
"""From one wish of `COLLECTING_PERIOD_NS` to the next: it lasts about 0.8 s."""


@dataclass(slots=True)
class Frames:
    """Pictures with what the expert would do for each of `SIDES`; arrays of one length."""

    pictures: NDArray[np.uint8]
    """(n, 112, 112, 3) RGB."""
    labels: NDArray[np.float32]
    """(n, 2, 3), in units of the network's output."""
    weights: NDArray[np.float32]
    """(n, 2): 1 for the drive's own side; 0 for the other where a robot with that instruction never is."""
    own: NDArray[np.int64]
    """(n,) the drive's own side."""

    def __len__(self) -> int:
        """The number of pictures."""
        return len(self.own)


def halved(squashed: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """A picture, (224, 224, 3) BGR, as it is stored: the means of its 2 x 2 pixels, (112, 112, 3) RGB."""
    small = cv2.resize(squashed, (SMALL_PX, SMALL_PX), interpolation=cv2.INTER_AREA)
    return np.ascontiguousarray(small[..., ::-1])


def join(parts: list[Frames]) -> Frames:
    """All frames, in the parts' order."""
    return Frames(*(np.concatenate([getattr(part, name) for part in parts]) for name in Frames.__slots__))


@dataclass(frozen=True, slots=True)
class Task:
    """Both sides of one room; without a `model` (an ONNX file) the expert drives, disturbed.

    `kept` is the share of the frames that are stored; `disturbance` is the most, as a share of `_DISTURBED`.
    """

    room: int
    kept: float
    model: Path | None = None
    disturbance: float = 1.0
    longest_ns: int = TIMEOUT_NS


def collect(task: Task) -> tuple[Frames, list[Outcome]]:
    """The frames of the two drives, and how each ended."""
    room = make_room(task.room)
    eye = Eye(room)
    learner = Learner(task.model) if task.model else None
    drives = [_Collecting(task, room, side, eye, learner) for side in SIDES]
    for one in drives:
        one.run()
    return join([one.frames() for one in drives]), [one.outcome for one in drives]


@dataclass
class _Collecting:
    """One drive, watched."""

    task: Task
    room: Room
    side: Side
    eye: Eye
    learner: Learner | None
    outcome: Outcome = Outcome.RUNNING
    pictures: list[NDArray[np.uint8]] = field(default_factory=list)
    poses: list[Pose] = field(default_factory=list)

    def run(self) -> None:
        """Drive, and keep some of the pictures."""
        self._random = random.Random(f"collect {self.task.room} {self.side.value}")
        known = [sentence for sentence, side in SENTENCES.items() if side is self.side]
        self._sentence = known[int(len(known) * self._random.random())]
        self._first = int(2**16 * self._random.random())
        self._level = self.task.disturbance * self._random.random()
        self._disturbance = [0.0, 0.0, 0.0]
        world = drive(
            self.room,
            self.side,
            self._act,
            seed=self.task.room,
            period_ns=COLLECTING_PERIOD_NS,
            longest_ns=self.task.longest_ns,
            linger_ns=_LINGER_NS,
        )
        self.outcome = world.outcome

    def _act(self, pose: Pose, number: int) -> Velocity:
        keep = self._random.random() < self.task.kept or number == 0
        if keep or self.learner:
            self.eye.look(pose, self._first + number)
        if keep:
            self.pictures.append(halved(self.eye.squashed()))
            self.poses.append(pose)
        wish = self.learner.act(self.eye, self._sentence) if self.learner else expert(self.room, pose, self.side)
        self._disturb()
        return Velocity(*(a + b for a, b in zip(wish.as_tuple(), self._disturbance, strict=True)))

    def _disturb(self) -> None:
        """An AR(1) process of the drive's own level, of even draws (variance 1/3), whose first value is 0."""
        rise = math.sqrt(3 * (1 - _DISTURBANCE_KEPT**2)) * self._level
        for i, most in enumerate(_DISTURBED):
            even = 2 * self._random.random() - 1
            self._disturbance[i] = _DISTURBANCE_KEPT * self._disturbance[i] + rise * most * even

    def frames(self) -> Frames:
        """What was kept, labelled."""
        own = SIDES.index(self.side)
        labels = [[expert(self.room, pose, side).as_tuple() for side in SIDES] for pose in self.poses]
        weights = np.ones((len(self.poses), len(SIDES)), np.float32)
        weights[:, 1 - own] = [not _is_abreast(self.room, pose) for pose in self.poses]
        scaled = (np.array(labels) / SCALES).astype(np.float32)
        return Frames(np.stack(self.pictures), scaled, weights, np.full(len(self.poses), own))


def _is_abreast(room: Room, pose: Pose) -> bool:
    box = room.boxes[0]
    cup_rad = math.atan2(room.cup.y_m - pose.y_m, room.cup.x_m - pose.x_m)
    box_rad = math.atan2(box.y_m - pose.y_m, box.x_m - pose.x_m)
    return _ABREAST_RAD[0] < abs(math.remainder(cup_rad - box_rad, math.tau)) < _ABREAST_RAD[1]
