"""The newest-frame slot: one writer, one reader, three buffers, and nobody waits for anybody."""

from __future__ import annotations

import threading
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray


@dataclass(slots=True, eq=False)  # one for each picture: a frozen one takes three times as long to make
class Frame:
    """A camera picture; `pixels`, (height, width, channels) uint8, belong to the reader until its next `take`.

    `number` is the source's own count, `sequence` counts what was published (1, 2, 3, …), `crc` is the publisher's
    CRC-32 of the picture; times are CLOCK_MONOTONIC.
    """

    pixels: NDArray[np.uint8]
    captured_ns: int
    number: int
    sequence: int
    crc: int
    arrived_ns: int


class NewestFrameSlot:
    """Hands the newest published frame from one writing thread to one reading thread.

    Of three buffers the writer owns one, the reader one, and the third holds the newest frame that is not yet taken;
    publishing and taking swap buffers, so no picture is ever copied and neither side waits for the other's work.
    """

    def __init__(self, height: int, width: int, channels: int = 3) -> None:
        self._writing, self._waiting, self._reading = (np.zeros((height, width, channels), np.uint8) for _ in range(3))
        self._lock = threading.Lock()
        self._newest: Frame | None = None
        self._sequence = 0
        self.overwritten = 0
        """Published frames that were never taken."""

    def writable(self) -> NDArray[np.uint8]:
        """The buffer for the writer's next picture, its own until `publish`."""
        return self._writing

    def publish(self, captured_ns: int, number: int, crc: int, arrived_ns: int) -> None:
        """Make the writable buffer the newest frame; `arrived_ns` is when the source handed the picture over."""
        self._sequence += 1
        frame = Frame(self._writing, captured_ns, number, self._sequence, crc, arrived_ns)
        with self._lock:
            self._writing, self._waiting = self._waiting, self._writing
            self.overwritten += self._newest is not None
            self._newest = frame

    def take(self) -> Frame | None:
        """The newest frame not yet taken, or None; the frame taken before keeps its pixels until one is given."""
        with self._lock:
            frame = self._newest
            if frame is not None:
                self._newest = None
                self._waiting, self._reading = self._reading, self._waiting
            return frame
