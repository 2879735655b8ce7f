"""A V4L2 camera (USB, or CSI behind a V4L2 driver) through OpenCV."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Any

import numpy as np

from mvla_daemon.cameras.base import CameraError, Capture, PictureError
from mvla_daemon.cameras.v4l2_nodes import check_node, port_of
from mvla_daemon.cameras.v4l2_queries import buffer_count, has_monotonic_times, stretches_exposure
from mvla_daemon.core.messages import MS, SECOND
from mvla_daemon.errors import ExitCode
from mvla_daemon.opencv import load_opencv

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from numpy.typing import NDArray

_BUFFERS = 2
"""One for the driver to fill, one to read from: after a stall at most two pictures are old."""
_MOST_BUFFERS = 32
"""As many as a V4L2 device may have (VIDEO_MAX_FRAME)."""
_LEAST_RATE = 0.9
"""A driver's rate, as a part of the configured one; rounded intervals differ by a little."""
_SAME_RATE = 0.01
"""29.97 fps may be called 30 without a word."""
_FIRST_PICTURES = 5
"""How many may be unusable before a camera's format is."""
_CLOCK_PICTURES = 2
"""A driver that stamps pictures with the end of a frame that is still to come may be right by chance once."""
_WAITED_NS = MS
"""A grab that takes a picture from the queue takes some 0.1 ms; one that waits for the sensor, longer."""
_KERNEL_CLOCK_PAST_NS = SECOND
_KERNEL_CLOCK_FUTURE_NS = 5 * MS
_JPEG_FORMATS = {"MJPG", "JPEG"}
_JPEG_SCAN = b"\xff\xda"
_JPEG_END = b"\xff\xd9"


class V4l2Camera:
    """A camera such as /dev/video0, or a link to one.

    Where no `pixel_format` (four characters) is given, an uncompressed one is used if it reaches the rate, since it is
    decoded in a tenth of the time, else Motion JPEG. `tell` is given, in a sentence, what the driver did otherwise than
    asked. The capture time is the kernel's buffer timestamp when the driver and the first pictures say that it is
    CLOCK_MONOTONIC, else the instant at which the read returned. That is settled once an opening: to choose per picture
    would give an old picture, whose timestamp looks wrong, the time of now.
    """

    def __init__(
        self,
        device: str,
        width: int,
        height: int,
        fps: float,
        *,
        pixel_format: str | None = None,
        buffers: int | None = None,
        tell: Callable[[str], None] | None = None,
    ) -> None:
        self.name = f"camera {device}"
        self.clock = "read returned"
        self._device = device
        self._found_at: str | None = None
        self._width = width
        self._height = height
        self._fps = fps
        self._format = pixel_format
        self._buffers = self._allocated = buffers or _BUFFERS
        self._tell = tell or (lambda _: None)
        self._told = ""
        self._cv2: Any = None
        self._video: Any = None
        self._jpeg = False
        self._number = 0

    def open(self) -> None:
        """Open the camera, set it up and wait for one picture; raises CameraError with what is wrong."""
        self._cv2 = load_opencv()
        path = self._found_at or self._device
        check_node(path)
        video = self._cv2.VideoCapture(path, self._cv2.CAP_V4L2)
        if not video.isOpened():
            raise CameraError(
                f"camera {path} cannot be used: either another program has it open (see: fuser -v {path}), or it "
                "captures no pictures that OpenCV can read (see: v4l2-ctl --list-formats-ext)"
            )
        self._set_up(video)
        self._look_at_first(video)
        self._tell_changes(video, path)
        self._choose_clock(video, path)
        self._found_at = port_of(path)
        self._video = video

    def read(self, into: NDArray[np.uint8]) -> Capture:
        """Wait for the next picture; raises CameraError when none came, PictureError when it is damaged."""
        video = self._video
        if video is None:
            raise CameraError(f"{self.name} is closed")
        captured_ns = self._grab(video)
        self._number += 1
        self._retrieve(video, into)
        return Capture(captured_ns, self._number)

    def close(self) -> None:
        """Give up the camera.

        OpenCV's own `release` under a `read` in another thread would free what that read uses. So only the reference
        is dropped: the device is closed with the last one, which is the reader's as long as it is in there.
        """
        self._video = None

    def _grab(self, video: Any) -> int:
        """Wait for the next picture; its capture time.

        One that need not be waited for has lain in a buffer. That is of no account where the kernel says when it came;
        where it doesn't, it would seem to be of now, so the buffers are emptied first.
        """
        for _ in range(self._allocated + 1):
            began_ns = time.monotonic_ns()
            self._wait_for_picture(video)
            if self.clock == "kernel":
                return self._kernel_ns(video)
            if time.monotonic_ns() - began_ns >= _WAITED_NS:
                break
        return time.monotonic_ns()

    def _retrieve(self, video: Any, into: NDArray[np.uint8]) -> None:
        try:
            if self._jpeg:
                decode_jpeg(self._cv2, video.retrieve()[1], into)
            elif video.retrieve(into)[1] is not into:
                raise PictureError(f"a picture of another shape than {into.shape}")
        except self._cv2.error as error:
            raise PictureError(f"a picture that OpenCV cannot convert: {error}") from error

    def _look_at_first(self, video: Any) -> None:
        """See that pictures come and can be used; the first ones of a camera may be torn."""
        picture = np.empty((self._height, self._width, 3), np.uint8)
        for _ in range(_FIRST_PICTURES):
            if not video.grab():
                raise CameraError(f"{self.name} opens but gives no picture: check its cable, its power and its hub")
            try:
                self._retrieve(video, picture)
            except PictureError as error:
                problem = error
            else:
                return
        raise CameraError(
            f"{self.name} gives pictures in {self._code(video) or 'a format'} that cannot be used ({problem}): set "
            f"camera.format to another of its formats (see: v4l2-ctl -d {self._device} --list-formats-ext)",
            ExitCode.CONFIG,
        )

    def _set_up(self, video: Any) -> None:
        """Set format, size and rate, and compare them with what the driver then says."""
        cv2 = self._cv2
        self._request(video, self._format)
        if self._format is None and not self._is_met(video):
            self._request(video, "MJPG")
        if not self._is_met(video):
            raise CameraError(
                f"{self.name} gives {self._given(video)}, but the configuration says {self._asked()}: set "
                "camera.width, camera.height, camera.fps and camera.format to what it offers (see: v4l2-ctl "
                f"-d {self._device} --list-formats-ext)",
                ExitCode.CONFIG,
            )
        self._jpeg = self._code(video) in _JPEG_FORMATS
        if self._jpeg:
            # OpenCV's own conversion does not tell of a JPEG that was cut short: it gives the part that came, and the
            # rest of the picture before it.
            video.set(cv2.CAP_PROP_CONVERT_RGB, 0)

    def _request(self, video: Any, pixel_format: str | None) -> None:
        cv2 = self._cv2
        if pixel_format is not None:
            video.set(cv2.CAP_PROP_FOURCC, int.from_bytes(pixel_format.encode(), "little"))
        video.set(cv2.CAP_PROP_FRAME_WIDTH, self._width)
        video.set(cv2.CAP_PROP_FRAME_HEIGHT, self._height)
        video.set(cv2.CAP_PROP_BUFFERSIZE, self._buffers)
        # Last, because each of the others sets the rate again, to one that OpenCV remembers without its numerator.
        video.set(cv2.CAP_PROP_FPS, self._fps)

    def _is_met(self, video: Any) -> bool:
        fps = video.get(self._cv2.CAP_PROP_FPS)  # -1 or 0 where the driver does not know
        return (
            self._size(video) == (self._width, self._height)
            and (fps <= 0 or fps >= _LEAST_RATE * self._fps)
            and self._format in {None, self._code(video)}
        )

    def _tell_changes(self, video: Any, path: str) -> None:
        """Say what the driver made of what was asked for, once as long as it stays the same."""
        fps = video.get(self._cv2.CAP_PROP_FPS)
        buffers = buffer_count(path, _MOST_BUFFERS) or int(video.get(self._cv2.CAP_PROP_BUFFERSIZE))
        self._allocated = max(buffers, self._buffers)
        changes = []
        if fps <= 0 or abs(fps - self._fps) > _SAME_RATE * self._fps or buffers != self._buffers:
            asked, given = f"{self._asked()}, buffers = {self._buffers}", f"{self._given(video)}, buffers = {buffers}"
            changes.append(f"asked for {asked}; the driver gives {given}")
        if stretches_exposure(path):
            changes.append(
                f"it may lower its rate in low light (forbid it: v4l2-ctl -d {self._device} -c "
                "exposure_dynamic_framerate=0, or exposure_auto_priority=0 on older kernels)"
            )
        told = f"{self.name}: {'; '.join(changes)}" if changes else ""
        if told and told != self._told:
            self._tell(told)
        self._told = told

    def _choose_clock(self, video: Any, path: str) -> None:
        """See whether the kernel's times can be used; a few pictures in a row have to be of a moment ago."""
        self.clock = "read returned"
        if has_monotonic_times(path) is False:
            return
        for _ in range(_CLOCK_PICTURES):
            self._wait_for_picture(video)
            now_ns = time.monotonic_ns()
            if not now_ns - _KERNEL_CLOCK_PAST_NS < self._kernel_ns(video) < now_ns + _KERNEL_CLOCK_FUTURE_NS:
                return
        self.clock = "kernel"

    def _wait_for_picture(self, video: Any) -> None:
        if not video.grab():
            raise CameraError(f"{self.name} gives no picture any more: check its cable, its power and its hub")

    def _kernel_ns(self, video: Any) -> int:
        """The grabbed buffer's timestamp; the V4L2 backend gives it in milliseconds, to the microsecond."""
        milliseconds = float(video.get(self._cv2.CAP_PROP_POS_MSEC))
        return round(milliseconds * 1000) * 1000

    def _size(self, video: Any) -> tuple[int, int]:
        return int(video.get(self._cv2.CAP_PROP_FRAME_WIDTH)), int(video.get(self._cv2.CAP_PROP_FRAME_HEIGHT))

    def _code(self, video: Any) -> str:
        """The format's four characters; empty where OpenCV does not know it."""
        code = int(video.get(self._cv2.CAP_PROP_FOURCC))
        return code.to_bytes(4, "little").decode("ascii", "replace") if 0 < code < 1 << 32 else ""

    def _asked(self) -> str:
        return _shown(self._width, self._height, self._fps, self._format or "")

    def _given(self, video: Any) -> str:
        return _shown(*self._size(video), video.get(self._cv2.CAP_PROP_FPS), self._code(video))


def decode_jpeg(cv2: ModuleType, data: NDArray[np.uint8], into: NDArray[np.uint8]) -> None:
    """Decode the bytes of one JPEG into `into`, (height, width, 3) BGR; raises PictureError when it is cut short.

    In the coded data of a JPEG's scan no 0xFF is followed by 0xD9 (ITU-T T.81, B.1.1.5), so a picture that lost its
    end has no end marker. Damage in the middle of a scan shows only in the picture; no decoder reports it.
    """
    code = data.tobytes()
    if code.rfind(_JPEG_END) <= code.find(_JPEG_SCAN):
        raise PictureError(f"a JPEG of {len(code)} bytes without an end")
    picture = cv2.imdecode(data.reshape(-1), cv2.IMREAD_COLOR)
    if picture is None or picture.shape != into.shape:
        raise PictureError("a JPEG that is damaged or of another size")
    np.copyto(into, picture)


def _shown(width: int, height: int, fps: float, code: str) -> str:
    rate = f"{fps:g} fps" if fps > 0 else "a rate that it does not tell"
    return f"{width}x{height} at {rate}" + (f" in {code}" if code else "")
