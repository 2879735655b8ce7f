"""A V4L2 camera (USB, or CSI behind a V4L2 driver) through OpenCV."""

from __future__ import annotations

import os
import stat
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mvla_daemon.cameras.base import CameraError, Capture, PictureError
from mvla_daemon.core.messages import MS, SECOND
from mvla_daemon.errors import ExitCode
from mvla_daemon.opencv import load_opencv

if TYPE_CHECKING:
    from types import ModuleType

    from numpy.typing import NDArray

_VIDEO_MAJOR = 81
"""Linux' device number of video devices (Documentation/admin-guide/devices.txt)."""
_BUFFERS = 2
"""One for the driver to fill, one to read from: after a stall at most two pictures are old."""
_LEAST_RATE = 0.9
"""A driver's rate, as a part of the configured one; rounded intervals differ by a little."""
_KERNEL_CLOCK_PAST_NS = SECOND
_KERNEL_CLOCK_FUTURE_NS = 5 * MS
_JPEG_FORMATS = tuple(int.from_bytes(code, "little") for code in (b"MJPG", b"JPEG"))
_JPEG_SCAN = b"\xff\xda"
_JPEG_END = b"\xff\xd9"


class V4l2Camera:
    """A camera such as /dev/video0, or a link to one.

    An uncompressed format is used where it reaches the rate, since it is decoded in a tenth of the time, else Motion
    JPEG. The capture time is the kernel's buffer timestamp when the first picture shows that it is CLOCK_MONOTONIC,
    else the instant at which the read returned. That is settled once an opening: to choose per picture would give an
    old picture, whose timestamp looks wrong, the time of now.
    """

    def __init__(self, device: str, width: int, height: int, fps: float) -> None:
        self.name = f"camera {device}"
        self.clock = "read returned"
        self._device = device
        self._found_at: str | None = None
        self._width = width
        self._height = height
        self._fps = fps
        self._cv2: Any = None
        self._video: Any = None
        self._jpeg = False
        self._number = 0

    def open(self) -> None:
        """Open the camera, set it up and wait for one picture; raises CameraError with what is wrong."""
        self._cv2 = load_opencv()
        path = self._found_at or self._device
        _check_node(path)
        video = self._cv2.VideoCapture(path, self._cv2.CAP_V4L2)
        if not video.isOpened():
            raise CameraError(
                f"camera {path} cannot be used: either another program has it open (see: fuser -v {path}), or it "
                "captures no pictures that OpenCV can read (see: v4l2-ctl --list-formats-ext)"
            )
        self._set_up(video)
        if not video.grab():
            raise CameraError(f"camera {path} opens but gives no picture: check its cable, its power and its hub")
        now_ns = time.monotonic_ns()
        is_monotonic = now_ns - _KERNEL_CLOCK_PAST_NS < self._kernel_ns(video) < now_ns + _KERNEL_CLOCK_FUTURE_NS
        self.clock = "kernel" if is_monotonic else "read returned"
        self._found_at = _port_of(path)
        self._video = video

    def read(self, into: NDArray[np.uint8]) -> Capture:
        """Wait for the next picture; raises CameraError when none came, PictureError when it is damaged."""
        video = self._video
        if video is None:
            raise CameraError(f"{self.name} is closed")
        if not video.grab():
            raise CameraError(f"{self.name} gives no picture any more: check its cable, its power and its hub")
        captured_ns = self._kernel_ns(video) if self.clock == "kernel" else time.monotonic_ns()
        self._number += 1
        try:
            if self._jpeg:
                decode_jpeg(self._cv2, video.retrieve()[1], into)
            elif video.retrieve(into)[1] is not into:
                raise PictureError(f"a picture of another shape than {into.shape}")
        except self._cv2.error as error:
            raise PictureError(f"a picture that OpenCV cannot convert: {error}") from error
        return Capture(captured_ns, self._number)

    def close(self) -> None:
        """Give up the camera.

        OpenCV's own `release` under a `read` in another thread would free what that read uses. So only the reference
        is dropped: the device is closed with the last one, which is the reader's as long as it is in there.
        """
        self._video = None

    def _set_up(self, video: Any) -> None:
        """Set format, size and rate, and compare them with what the driver then says."""
        cv2 = self._cv2
        self._request(video)
        if not self._is_met(video):
            video.set(cv2.CAP_PROP_FOURCC, _JPEG_FORMATS[0])
            self._request(video)
        if not self._is_met(video):
            raise CameraError(
                f"{self.name} gives {_shown(cv2, video)}, but the configuration says {self._width}x{self._height} at "
                f"{self._fps:g} fps: set camera.width, camera.height and camera.fps to what it offers (see: v4l2-ctl "
                f"-d {self._device} --list-formats-ext)",
                ExitCode.CONFIG,
            )
        self._jpeg = int(video.get(cv2.CAP_PROP_FOURCC)) in _JPEG_FORMATS
        if self._jpeg:
            # OpenCV's own conversion does not tell of a JPEG that was cut short: it gives the part that came, and the
            # rest of the picture before it.
            video.set(cv2.CAP_PROP_CONVERT_RGB, 0)

    def _request(self, video: Any) -> None:
        cv2 = self._cv2
        video.set(cv2.CAP_PROP_FRAME_WIDTH, self._width)
        video.set(cv2.CAP_PROP_FRAME_HEIGHT, self._height)
        video.set(cv2.CAP_PROP_BUFFERSIZE, _BUFFERS)
        # Last, because each of the others sets the rate again, to one that OpenCV remembers without its numerator.
        video.set(cv2.CAP_PROP_FPS, self._fps)

    def _is_met(self, video: Any) -> bool:
        cv2 = self._cv2
        size = (int(video.get(cv2.CAP_PROP_FRAME_WIDTH)), int(video.get(cv2.CAP_PROP_FRAME_HEIGHT)))
        fps = video.get(cv2.CAP_PROP_FPS)  # -1 or 0 where the driver does not know
        return size == (self._width, self._height) and (fps <= 0 or fps >= _LEAST_RATE * self._fps)

    def _kernel_ns(self, video: Any) -> int:
        """The grabbed buffer's timestamp; the V4L2 backend gives it in milliseconds, to the microsecond."""
        milliseconds = float(video.get(self._cv2.CAP_PROP_POS_MSEC))
        return round(milliseconds * 1000) * 1000


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


def _check_node(path: str) -> None:
    """See whether `path` is a video device that this user may open; raises CameraError with what is wrong."""
    try:
        status = Path(path).stat()
        # Looked at first: to open some other kind of device, a serial port, may reset what hangs on it.
        is_video = stat.S_ISCHR(status.st_mode) and os.major(status.st_rdev) == _VIDEO_MAJOR
        if is_video:
            os.close(os.open(path, os.O_RDWR | os.O_NONBLOCK))
    except FileNotFoundError as error:
        present = ", ".join(str(node) for node in sorted(Path("/dev").glob("video*"))) or "none"
        raise CameraError(
            f"camera {path} is not there (video devices present: {present}): plug it in, or set camera.source"
        ) from error
    except PermissionError as error:
        raise CameraError(
            f"camera {path} may not be opened by this user: add the user to group video (usermod -aG video USER), "
            "then start again",
            ExitCode.NO_PERMISSION,
        ) from error
    except OSError as error:
        raise CameraError(f"camera {path} cannot be opened ({error.strerror}): unplug it and plug it in") from error
    if not is_video:
        raise CameraError(f"{path} is not a camera: set camera.source to a video device such as /dev/video0")


def _port_of(device: str) -> str:
    """The link that names the port a numbered device is plugged into, else the device itself.

    A camera that comes back gets any number, and another camera may get its old one. A link that the user chose says
    enough.
    """
    if not Path(device).is_symlink():
        for link in sorted(Path("/dev/v4l/by-path").glob("*")):
            if os.path.realpath(link) == os.path.realpath(device):
                return str(link)
    return device


def _shown(cv2: ModuleType, video: Any) -> str:
    width, height = (int(video.get(key)) for key in (cv2.CAP_PROP_FRAME_WIDTH, cv2.CAP_PROP_FRAME_HEIGHT))
    return f"{width}x{height} at {video.get(cv2.CAP_PROP_FPS):g} fps"
