"""A recorded clip as a camera: paced like the real one that filmed it, in a loop."""

from __future__ import annotations

import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvla_daemon.cameras.base import CameraError, Capture, PictureError
from mvla_daemon.core.messages import SECOND
from mvla_daemon.errors import ExitCode
from mvla_daemon.opencv import load_opencv

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

_RATE_TOLERANCE = 0.01
"""29.97 fps may be called 30."""


class FileCamera:
    """Plays a clip at its own rate, over and over.

    A picture's capture time is the instant at which it became due, which is when a real camera's picture would have
    come into being; `number` is its index within the clip.
    """

    clock = "paced file"

    def __init__(self, path: str | Path, width: int, height: int, fps: float) -> None:
        self.name = f"clip {path}"
        self._path = Path(path)
        self._width = width
        self._height = height
        self._fps = fps
        self._video: Any = None
        self._position_property = 0
        self._period_ns = 0.0
        self._start_ns = 0
        self._turn = 0
        """Which due time comes next, in periods from the start."""
        self._index = 0
        """Which picture of the clip comes next."""

    def open(self) -> None:
        """Open the clip and decode a picture of it; raises CameraError when it is not as configured."""
        try:
            with self._path.open("rb"):
                pass
        except OSError as error:
            raise CameraError(
                f"{self.name} cannot be opened ({error.strerror}): set camera.source to a clip that is there",
                ExitCode.NO_INPUT,
            ) from error
        cv2 = load_opencv()
        video = _open_video(cv2, self._path)
        decoded, picture = video.read()
        clip_fps = float(video.get(cv2.CAP_PROP_FPS))
        if not decoded or not 0 < clip_fps < SECOND:
            raise CameraError(
                f"{self.name} has no picture that OpenCV can decode: record it again, for instance as MJPG or H.264",
                ExitCode.NO_INPUT,
            )
        self._compare(picture, clip_fps)
        self._position_property = cv2.CAP_PROP_POS_FRAMES
        self._rewind(video)
        self._period_ns = SECOND / clip_fps
        self._start_ns = time.monotonic_ns()
        self._turn = 1
        self._video = video

    def read(self, into: NDArray[np.uint8]) -> Capture:
        """Wait until the next picture is due and give it; raises CameraError when the clip decodes no more.

        Decoding begins half a period before a picture is due, and not right after the one before it: that is when
        the policy computes, and on a small robot the two would fight for a core. After falling behind by a period or
        more, the due times that were missed are left out.
        """
        video = self._video
        if video is None:
            raise CameraError(f"{self.name} is closed")
        behind_ns = time.monotonic_ns() - self._due_ns()
        if behind_ns >= self._period_ns:
            self._turn += int(behind_ns // self._period_ns)
        due_ns = self._due_ns()
        _sleep_until(due_ns - int(self._period_ns / 2))
        number = self._decode(video, into)
        _sleep_until(due_ns)
        self._turn += 1
        return Capture(due_ns, number)

    def close(self) -> None:
        """Let go of the clip; a `read` that is under way holds its own reference and ends by itself."""
        self._video = None

    def _compare(self, picture: NDArray[np.uint8], clip_fps: float) -> None:
        height, width = picture.shape[:2]
        same_rate = abs(clip_fps - self._fps) <= _RATE_TOLERANCE * clip_fps
        if (width, height) != (self._width, self._height) or not same_rate:
            raise CameraError(
                f"{self.name} is {width}x{height} at {clip_fps:g} fps, but the configuration says "
                f"{self._width}x{self._height} at {self._fps:g} fps: set camera.width = {width}, "
                f"camera.height = {height} and camera.fps = {clip_fps:g}",
                ExitCode.CONFIG,
            )

    def _due_ns(self) -> int:
        return self._start_ns + round(self._turn * self._period_ns)

    def _rewind(self, video: Any) -> None:
        video.set(self._position_property, 0)
        self._index = 0

    def _decode(self, video: Any, into: NDArray[np.uint8]) -> int:
        """Decode the clip's next picture, its first one after its last, and give its index."""
        decoded, picture = video.read(into)
        if not decoded:
            self._rewind(video)
            decoded, picture = video.read(into)
        if not decoded:
            raise CameraError(f"{self.name} can no longer be decoded: see whether it is still whole")
        number = self._index
        self._index += 1
        if picture is not into:
            raise PictureError(f"picture {number} is of shape {picture.shape}, not {into.shape}")
        return number


def _open_video(cv2: ModuleType, path: Path) -> Any:
    """The clip in OpenCV, with FFmpeg on one thread where it is there.

    More threads decode ahead, at the wrong time, and cost a third more in all; an OpenCV for Jetson may have nothing
    but GStreamer.
    """
    video = cv2.VideoCapture(str(path), cv2.CAP_FFMPEG, [cv2.CAP_PROP_N_THREADS, 1])
    return video if video.isOpened() else cv2.VideoCapture(str(path))


def _sleep_until(instant_ns: int) -> None:
    while (left_ns := instant_ns - time.monotonic_ns()) > 0:
        time.sleep(left_ns / SECOND)
