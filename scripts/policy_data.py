"""Drives of the simulated robot without the daemon, by whatever looks and wishes.

A drive here is what the daemon makes of it, without its processes: a wish for each picture, shaped by the limits,
obeyed by the wheels a latency later. Everything is a function of seeds, so the same call gives the same drive.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

import cv2
import numpy as np
import onnxruntime as ort
from policy_manifest import IMAGE, INSTRUCTION, OUTPUT, SCALES

from mvla_daemon.core.image import Preprocessor
from mvla_daemon.core.limits import AxisLimit, VelocityShaper
from mvla_daemon.core.messages import MS, SECOND, Velocity
from mvla_daemon.sim.body import STEP_NS
from mvla_daemon.sim.instructions import SENTENCES, embedding
from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.picture import Painter
from mvla_daemon.sim.ramp import standing
from mvla_daemon.sim.room import CAMERA_HEIGHT_PX, CAMERA_WIDTH_PX, Pose, Room, Side
from mvla_daemon.sim.world import TIMEOUT_NS, Outcome, World

if TYPE_CHECKING:
    from numpy.typing import NDArray

Act: TypeAlias = Callable[[Pose, int], Velocity]
"""The wish at a pose; the pictures, one each period, are counted from 0."""

SIDES = (Side.LEFT, Side.RIGHT)
PERIOD_NS, LATENCY_NS = 20 * MS, 35 * MS
_LIMITS = (AxisLimit(0.5, 1.0), AxisLimit(0.5, 1.0), AxisLimit(1.5, 4.0))
_WHEELS_RATES = (5_000_000, 5_000_000, 20_000_000)
"""How fast the simulated controller's axes follow, in µm/s² and µrad/s²."""


def drive(
    room: Room,
    side: Side | None,
    act: Act,
    *,
    seed: int,
    period_ns: int = PERIOD_NS,
    latency_ns: int = LATENCY_NS,
    longest_ns: int = TIMEOUT_NS + SECOND,
    linger_ns: int = 0,
) -> World:
    """One drive to its end, and for `linger_ns` on where it has reached the cup; `seed` is the body's.

    It ends after `longest_ns` in any case, and then may still be running. `side` may be None: either will do.
    The period and the latency are multiples of 5 ms, and each wish is obeyed from its picture's time plus the latency.
    """
    world = World(room, side, seed)
    shaper = VelocityShaper(_LIMITS)
    shaper.reset(0)
    ramp = standing(0)
    due: deque[tuple[int, tuple[int, int, int]]] = deque()
    number, ends_ns = 0, longest_ns
    for now_ns in range(0, longest_ns, STEP_NS):
        if now_ns == number * period_ns:
            wish = act(world.pose, number).as_tuple()
            x, y, yaw = shaper.shape(wish, now_ns + latency_ns)
            due.append((now_ns + latency_ns, (round(1e6 * x), round(1e6 * y), round(1e6 * yaw))))
            number += 1
        while due and due[0][0] <= now_ns:
            ramp = ramp.turned(due.popleft()[1], _WHEELS_RATES, now_ns)
        x_um, y_um, yaw_urad = ramp.at(now_ns + STEP_NS)
        world.advance(now_ns + STEP_NS, Velocity(x_um / 1e6, y_um / 1e6, yaw_urad / 1e6))
        if world.outcome is not Outcome.RUNNING:
            ends_ns = min(ends_ns, now_ns + (linger_ns if world.outcome is Outcome.REACHED else 0))
        if now_ns >= ends_ns:
            break
    return world


class Eye:
    """The robot's camera and what the daemon makes of its pictures."""

    def __init__(self, room: Room) -> None:
        self._painter = Painter(room)
        self._picture = np.empty((CAMERA_HEIGHT_PX, CAMERA_WIDTH_PX, 3), np.uint8)
        self._preprocess = Preprocessor(IMAGE, CAMERA_HEIGHT_PX, CAMERA_WIDTH_PX)
        self.image: NDArray[np.float32] = np.empty(IMAGE.shape, np.float32)
        """The model's input, as `look` leaves it."""

    def look(self, pose: Pose, number: int) -> None:
        """Take the picture from a pose; `number` draws its noise."""
        self._painter.paint(pose, number, self._picture)
        self._preprocess(self._picture, self.image)

    def squashed(self) -> NDArray[np.uint8]:
        """The picture in the model's size, uint8 (224, 224, 3) BGR."""
        return cv2.resize(self._picture, IMAGE.size[::-1], interpolation=cv2.INTER_LINEAR)


class Learner:
    """A policy in ONNX Runtime, on one thread as in the daemon."""

    def __init__(self, model: Path | bytes) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = options.inter_op_num_threads = 1
        source = model if isinstance(model, bytes) else str(model)
        self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])

    def act(self, eye: Eye, sentence: str) -> Velocity:
        """The wish for the picture that the eye has taken."""
        inputs = {IMAGE.tensor: eye.image, INSTRUCTION: embedding(sentence)[None]}
        values = self._session.run([OUTPUT], inputs)[0][0].tolist()
        return Velocity(*(value * scale for value, scale in zip(values, SCALES, strict=True)))


def check(model: Path, longest_ns: int, room_seed: int) -> list[Outcome]:
    """How a policy's drives of a room end, on both sides, with a command for every picture of a 50 Hz camera."""
    room = make_room(room_seed)
    eye, learner = Eye(room), Learner(model)
    outcomes = []
    for side in SIDES:
        sentence = next(known for known, asked in SENTENCES.items() if asked is side)

        def act(pose: Pose, number: int, sentence: str = sentence) -> Velocity:
            eye.look(pose, number)
            return learner.act(eye, sentence)

        outcomes.append(drive(room, side, act, seed=room_seed, longest_ns=longest_ns).outcome)
    return outcomes
