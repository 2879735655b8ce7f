"""The capture thread: reads the camera, judges each picture, and publishes what may be driven on."""

from __future__ import annotations

import threading
import time
import zlib
from typing import TYPE_CHECKING

import numpy as np

from mvla_daemon.cameras.base import CameraError, Capture, PictureError
from mvla_daemon.cameras.rate import RateWatch
from mvla_daemon.core.messages import MS, SECOND
from mvla_daemon.ops.realtime import CAMERA_STEPS, follow_event_loop, precede_others, wake_on_time

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

    from mvla_daemon.cameras.base import Camera
    from mvla_daemon.cameras.slot import NewestFrameSlot

_FUTURE_CLAMP_NS = 5 * MS
"""How far ahead two clocks' jitter may put a capture time; it is then taken as now."""
_BLACK_BELOW = 16
"""A picture without one sample as bright as this is black: 16 is video black, and a covered sensor's noise is less."""
ROW_STEP = 32
"""Blackness and the CRC are judged by every 32nd row. A picture that a driver repeats is the same in all rows, one of a
live sensor differs in all by its noise; a whole 640x480 picture would cost 0.3 ms of each frame's way."""
_COLUMN_STEP = 16
"""And blackness by every sixteenth column of those: 600 pixels of 640x480."""
_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 2.0
_REJECTED_PAUSE_S = 0.001
"""After a picture that was not used, so that a driver which returns at once can't take a core from the policy."""
_STOP_WAIT_S = 0.5
"""How long `stop` waits for the thread; one that is stuck in the driver ends with the process."""


class CaptureThread:
    """Moves pictures from a camera into a slot on a thread of its own.

    `on_frame()` follows each published frame, `on_event(name, sentence)` says "camera_lost" and "camera_back",
    "camera_slow" and "camera_on_time"; both are called on the capture thread. `latency_ns` is the delay that the source
    hides. Of any `2 * min_interval_ns` no more than two frames are published; 0 turns that off. A camera whose pictures
    are further apart than `frame_period_ns` is told of; 0 turns that off. `counts` says what became of each picture.

    A frozen picture is published all the same: its CRC goes with the command, and the gate judges by it.
    """

    def __init__(
        self,
        camera: Camera,
        slot: NewestFrameSlot,
        on_frame: Callable[[], None],
        *,
        on_event: Callable[[str, str], None],
        latency_ns: int = 0,
        min_interval_ns: int = 0,
        frame_period_ns: int = 0,
    ) -> None:
        self.counts = dict.fromkeys(
            ("published", "malformed", "time_future", "time_repeated", "old", "too_fast", "black", "lost"), 0
        )
        self._camera = camera
        self._slot = slot
        self._sample = np.ascontiguousarray(slot.writable()[::ROW_STEP])
        self._on_frame = on_frame
        self._on_event = on_event
        self._latency_ns = latency_ns
        self._rate = RateWatch(frame_period_ns) if frame_period_ns else None
        self._pair_interval_ns = 2 * min_interval_ns
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="capture", daemon=True)
        self._opened_ns = 0
        self._last_source_ns = 0
        self._published_ns = (0, 0)
        self._lost_ns: int | None = None
        self._backoff_s = _FIRST_BACKOFF_S

    def open_first(self) -> None:
        """Open the camera in the caller's thread, before `start`, so that the caller gets its DaemonError."""
        self._opened_ns = time.monotonic_ns()
        self._camera.open()

    def start(self) -> None:
        """Begin to capture."""
        self._thread.start()

    def stop(self) -> None:
        """End the thread and close the camera; returns within half a second even when the driver never does."""
        self._stopping.set()
        self._camera.close()
        if self._thread.is_alive():
            self._thread.join(_STOP_WAIT_S)

    def _run(self) -> None:
        wake_on_time()
        precede_others()
        follow_event_loop(CAMERA_STEPS)
        while not self._stopping.is_set():
            if self._opened_ns == 0:
                self._reopen()
            else:
                self._capture_one()
        self._camera.close()

    def _capture_one(self) -> None:
        pixels = self._slot.writable()
        try:
            capture = self._camera.read(pixels)
        except PictureError:
            self._reject("malformed")
            return
        except Exception as error:  # noqa: BLE001 - whatever a driver raises, it gave no picture and is opened again
            self._lose(error)
            return
        if self._stopping.is_set():
            return
        now_ns = time.monotonic_ns()
        fault = self._fault(capture, pixels, now_ns)
        if fault is not None:
            self._reject(fault)
            return
        captured_ns = self._captured_ns(capture, now_ns)
        self._slot.publish(captured_ns, capture.number, zlib.crc32(self._sample.data), now_ns)
        self._published_ns = (self._published_ns[1], now_ns)
        self.counts["published"] += 1
        self._on_frame()
        if self._lost_ns is not None:
            self._on_event(
                "camera_back", f"{self._camera.name} is back after {(now_ns - self._lost_ns) / SECOND:.1f} s"
            )
            self._lost_ns = None
        self._backoff_s = _FIRST_BACKOFF_S

    def _captured_ns(self, capture: Capture, now_ns: int) -> int:
        return min(capture.captured_ns, now_ns) - self._latency_ns

    def _fault(self, capture: Capture, pixels: NDArray[np.uint8], now_ns: int) -> str | None:
        """Why this picture must not be driven on, as a key of `counts`, or None."""
        source_ns = capture.captured_ns
        if source_ns > now_ns + _FUTURE_CLAMP_NS:
            return "time_future"  # and is not remembered: one leap ahead must not bar all that follow
        if source_ns <= self._last_source_ns:
            return "time_repeated"
        self._last_source_ns = source_ns
        self._watch_rate(source_ns)
        if self._captured_ns(capture, now_ns) < self._opened_ns:
            return "old"
        if now_ns - self._published_ns[0] < self._pair_interval_ns:
            return "too_fast"
        np.copyto(self._sample, pixels[::ROW_STEP])
        if self._sample[:, ::_COLUMN_STEP].max() < _BLACK_BELOW:
            return "black"
        return None

    def _watch_rate(self, source_ns: int) -> None:
        if self._rate is None or not self._rate.see(source_ns):
            return
        if self._rate.is_slow:
            self._on_event(
                "camera_slow",
                f"{self._camera.name} gives {self._rate.fps:.1f} pictures a second instead of "
                f"{self._rate.expected_fps:g}: in low light a camera stretches its exposure, which light or a fixed "
                "exposure prevents",
            )
        else:
            self._on_event("camera_on_time", f"{self._camera.name} gives {self._rate.fps:.1f} pictures a second again")

    def _reject(self, fault: str) -> None:
        self.counts[fault] += 1
        self._stopping.wait(_REJECTED_PAUSE_S)

    def _lose(self, error: Exception) -> None:
        """Close the camera, and say so once until it has given a picture again."""
        if self._stopping.is_set():
            return
        self._camera.close()
        self._opened_ns = 0
        if self._rate is not None:
            self._rate.begin()
        self.counts["lost"] += 1
        if self._lost_ns is None:
            self._lost_ns = time.monotonic_ns()
            sentence = str(error) if isinstance(error, CameraError) else f"{self._camera.name} failed: {error!r}"
            self._on_event("camera_lost", sentence)

    def _reopen(self) -> None:
        """Try once to open the camera again, after a pause that doubles until a picture was published."""
        if self._stopping.wait(self._backoff_s):
            return
        self._backoff_s = min(2 * self._backoff_s, _LONGEST_BACKOFF_S)
        opened_ns = time.monotonic_ns()
        try:
            self._camera.open()
        except Exception:  # noqa: BLE001 - as for a read; that it is lost has been said
            self._camera.close()
        else:
            self._opened_ns = opened_ns
