"""Pictures from memory at an exact rate, for measuring everything but a camera."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

import numpy as np

from mvla_daemon.cameras.base import CameraError, Capture
from mvla_daemon.core.messages import SECOND

if TYPE_CHECKING:
    from numpy.typing import NDArray

_PICTURES = 8
"""No two in a row are the same, and all of them stay in a processor's cache about as badly as a camera's would."""


class NullCamera:
    """Noise of the size and rate asked for; a picture's capture time is the instant at which it is due."""

    name = "null camera"
    clock = "paced memory"

    def __init__(self, width: int, height: int, fps: float) -> None:
        self._shape = (height, width, 3)
        self._period_ns = SECOND / fps
        self._pictures: list[NDArray[np.uint8]] = []
        self._start_ns = 0
        self._number = 0

    def open(self) -> None:
        """Draw the pictures, the same ones each time."""
        random = np.random.default_rng(0)
        self._pictures = [random.integers(0, 256, self._shape, np.uint8) for _ in range(_PICTURES)]
        self._start_ns = time.monotonic_ns()
        self._number = 0

    def read(self, into: NDArray[np.uint8]) -> Capture:
        """Wait until the next picture is due; those whose time has passed altogether are left out."""
        pictures = self._pictures
        if not pictures:
            raise CameraError(f"{self.name} is closed")
        passed = int((time.monotonic_ns() - self._start_ns) // self._period_ns)
        self._number = max(self._number + 1, passed)
        due_ns = self._start_ns + round(self._number * self._period_ns)
        while (left_ns := due_ns - time.monotonic_ns()) > 0:
            time.sleep(left_ns / SECOND)
        np.copyto(into, pictures[self._number % _PICTURES])
        return Capture(due_ns, self._number)

    def close(self) -> None:
        """Let go of the pictures."""
        self._pictures = []
