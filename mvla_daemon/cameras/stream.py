"""A camera behind OpenCV's GStreamer or FFmpeg, read on a thread of its own so that nobody waits for it for ever."""

from __future__ import annotations

import threading
import time
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

from mvla_daemon.cameras.base import CameraError, Capture, PictureError
from mvla_daemon.cameras.slot import NewestFrameSlot
from mvla_daemon.cameras.stream_clock import StreamClock
from mvla_daemon.core.messages import MS
from mvla_daemon.errors import ExitCode
from mvla_daemon.opencv import load_opencv
from mvla_daemon.ops.realtime import precede_others, wake_on_time

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from numpy.typing import NDArray

    from mvla_daemon.cameras.slot import Frame

READ_S = 2.0
"""How long a picture may take; as OpenCV's wait for a V4L2 camera."""
OPEN_S = 8.0
"""How long an opening may take: a network camera waits for its next key picture, sensors for their exposure."""
_LEAVE_S = 0.2
"""How long a reading that doesn't hang may take to end: a few pictures."""
_MAX_STUCK = 3
"""Earlier readings that may still hang inside a library; each holds threads and memory that only an exit frees."""


@dataclass(frozen=True, slots=True)
class Stream:
    """What tells one source behind OpenCV from another.

    `open` gives OpenCV's capture, or raises CameraError; it is called on the reading thread, where it may block.
    Pictures of the first `settle_ns` are thrown away; an opening may take `open_s`, a picture `read_s`. `lost` and
    `mend` are the ends of sentences.
    """

    name: str
    open: Callable[[ModuleType], Any]
    lost: str
    mend: str
    settle_ns: int = 0
    open_s: float = OPEN_S
    read_s: float = READ_S


class StreamCamera:
    """A stream as a camera: only its newest picture is kept, and no call outlasts its bound.

    Older OpenCVs wait inside GStreamer without an end. So each opening has a thread of its own; one that hangs is left
    alone, and the next opening gets a new one.
    """

    def __init__(self, stream: Stream, width: int, height: int) -> None:
        self.name = stream.name
        self.clock = "read returned"
        self._stream = stream
        self._shape = (height, width, 3)
        self._reading: _Reading | None = None
        self._left: list[_Reading] = []

    def open(self) -> None:
        """Open the stream and wait for its first good picture; raises CameraError."""
        cv2 = load_opencv()
        self.close()
        self._left = [reading for reading in self._left if reading.is_alive()]
        if len(self._left) >= _MAX_STUCK:
            raise CameraError(
                f"{self.name}: {len(self._left)} earlier attempts still hang inside OpenCV; start the daemon again"
            )
        reading = _Reading(cv2, self._stream, self._shape)
        self._left.append(reading)
        self._reading = reading
        reading.start()
        reading.wait_until_opened()
        self.clock = reading.clock

    def read(self, into: NDArray[np.uint8]) -> Capture:
        """Wait for the next picture; raises CameraError when none came for 2 s, PictureError for an unusable one."""
        reading = self._reading
        if reading is None:
            raise CameraError(f"{self.name} is closed")
        frame = reading.next_frame()
        np.copyto(into, frame.pixels)
        return Capture(frame.captured_ns, frame.number)

    def close(self) -> None:
        """Tell the reading thread to end; it lets go of the device as soon as OpenCV returns.

        It is given a moment to: a process that ends by itself must not leave a library in the middle of a call.
        """
        reading, self._reading = self._reading, None
        if reading is not None:
            reading.cancel()
            reading.join(_LEAVE_S)


class _Reading(threading.Thread):
    """One opening of a stream, from OpenCV's `VideoCapture` to its end."""

    def __init__(self, cv2: ModuleType, stream: Stream, shape: tuple[int, int, int]) -> None:
        super().__init__(name="camera stream", daemon=True)
        self.clock = "read returned"
        self._cv2 = cv2
        self._stream = stream
        self._shape = shape
        self._slot = NewestFrameSlot(*shape)
        self._times = StreamClock()
        self._number = 0
        self._malformed = self._told_malformed = 0
        self._end: CameraError | None = None
        self._cancelled = False
        self._is_open = False
        self._news = threading.Event()

    # --- for the camera's thread ---

    def wait_until_opened(self) -> None:
        """Return once pictures come; raises CameraError when they don't."""
        stream = self._stream
        end_s = time.monotonic() + stream.open_s
        while not self._is_open:
            self._wait(end_s, f"{stream.name} gave no picture within {stream.open_s:g} s: {stream.mend}")

    def next_frame(self) -> Frame:
        """The newest picture that was not yet given; the pixels are the caller's until the next call."""
        stream = self._stream
        end_s = time.monotonic() + stream.read_s
        while True:
            frame = self._slot.take()
            if frame is not None:
                return frame
            if self._malformed != self._told_malformed:
                self._told_malformed = self._malformed
                raise PictureError(f"a picture of another shape than {self._shape}")
            self._wait(end_s, f"{stream.name} gave no picture for {stream.read_s:g} s: {stream.lost}")

    def cancel(self) -> None:
        """End soon, and keep nobody waiting."""
        self._cancelled = True
        self._news.set()

    def _wait(self, end_s: float, too_late: str) -> None:
        if self._cancelled:
            raise CameraError(f"{self._stream.name} is closed")
        if self._end is not None:
            raise self._end
        if not self._news.wait(max(0.0, end_s - time.monotonic())):
            raise CameraError(too_late)
        self._news.clear()

    # --- the thread ---

    def run(self) -> None:
        """Read until cancelled, or until there is nothing more to read."""
        wake_on_time()
        precede_others()
        try:
            video = self._stream.open(self._cv2)
            self._begin(video)
            while not self._cancelled:
                self._take(video)
        except CameraError as error:
            self._end = error
        except Exception as error:  # noqa: BLE001 - whatever a library raises is the end of this reading, and is said
            self._end = CameraError(f"{self._stream.name} failed: {type(error).__name__}")
        finally:
            self._news.set()

    def _begin(self, video: Any) -> None:
        """See that the pictures can be used and whether they have times; leave out those of the first moment."""
        first_ns, _ = self._grab(video)
        picture = video.retrieve()[1]
        if picture is None or picture.shape != self._shape or picture.dtype != np.uint8:
            raise CameraError(self._wrong_picture(picture), ExitCode.CONFIG)
        settled_ns = time.monotonic_ns() + self._stream.settle_ns
        while not self._cancelled:
            stream_ns, returned_ns = self._grab(video)
            self._times.captured_ns(stream_ns, returned_ns)
            if returned_ns >= settled_ns:
                self.clock = "stream" if first_ns < stream_ns else "read returned"
                break
        self._is_open = True
        self._news.set()

    def _take(self, video: Any) -> None:
        stream_ns, returned_ns = self._grab(video)
        captured_ns = returned_ns
        if self.clock == "stream":
            captured_ns = self._times.captured_ns(stream_ns, returned_ns)
            if self._times.is_behind(returned_ns):
                raise CameraError(f"{self._stream.name} has been behind for seconds, or its times have jumped")
        pixels = self._slot.writable()
        if video.retrieve(pixels)[1] is pixels:
            self._number += 1
            self._slot.publish(captured_ns, self._number, 0, returned_ns)
        else:
            self._malformed += 1
        self._news.set()

    def _grab(self, video: Any) -> tuple[int, int]:
        """Wait for the next picture; its time in the stream, which stays 0 where there is none, and when it came.

        GStreamer gives the time of its newest picture, which may have come after this one. Asked for in this order, it
        is at least never of later than now.
        """
        if not video.grab():
            raise CameraError(f"{self._stream.name} gives no picture any more: {self._stream.lost}")
        stream_ns = round(float(video.get(self._cv2.CAP_PROP_POS_MSEC)) * MS)
        return stream_ns, time.monotonic_ns()

    def _wrong_picture(self, picture: NDArray[np.uint8] | None) -> str:
        height, width, _ = self._shape
        got = "nothing" if picture is None else f"{picture.dtype} {picture.shape}"
        if picture is not None and picture.ndim == 3 and picture.shape[2] == 3:
            got = f"{picture.shape[1]}x{picture.shape[0]}"
        return (
            f"{self._stream.name} gives {got}, but the configuration says {width}x{height} in BGR: set camera.width "
            "and camera.height to what it gives, or make the source give that"
        )
