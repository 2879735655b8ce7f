"""Network cameras by RTSP, through OpenCV's FFmpeg."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from mvla_daemon.camera_source import address_shown
from mvla_daemon.cameras.base import CameraError
from mvla_daemon.cameras.stream import READ_S, Stream, StreamCamera
from mvla_daemon.core.messages import SECOND
from mvla_daemon.opencv import is_built_with

if TYPE_CHECKING:
    from types import ModuleType

_LIMITS = {
    "CAP_PROP_OPEN_TIMEOUT_MSEC": 5000,
    "CAP_PROP_READ_TIMEOUT_MSEC": round(1000 * READ_S),
    "CAP_PROP_N_THREADS": 1,  # more threads decode pictures later, not sooner
}
"""OpenCV itself would wait for 30 s; one too old to know a limit is bounded by the reading thread alone."""
_OPTIONS = "rtsp_transport;tcp|fflags;nobuffer|flags;low_delay"
"""Over TCP no picture is torn by a lost packet, and nothing is kept back to be put in order."""
_SETTLE_NS = SECOND
"""Many servers begin with the pictures since their last key picture, which are old and come all at once."""


def rtsp_camera(address: str, width: int, height: int) -> StreamCamera:
    """The camera at an address that may hold a password: no sentence has more of it than host and port."""
    name = f"camera {address_shown(address)}"
    lost = "see its power and the network"

    def open_it(cv2: ModuleType) -> Any:
        if not is_built_with(cv2, "FFMPEG"):
            raise CameraError(
                f"{name} needs an OpenCV with FFmpeg, which this one has not: use GStreamer's source instead, for "
                'example camera.source = "gst:rtspsrc location=rtsp://HOST/PATH protocols=tcp latency=0 ! decodebin"'
            )
        os.environ.setdefault("OPENCV_FFMPEG_CAPTURE_OPTIONS", _OPTIONS)
        os.environ.setdefault("OPENCV_FFMPEG_LOGLEVEL", "-8")  # FFmpeg's own lines could name the address
        known = [(getattr(cv2, name), limit) for name, limit in _LIMITS.items() if hasattr(cv2, name)]
        video = cv2.VideoCapture(address, cv2.CAP_FFMPEG, [number for pair in known for number in pair])
        if not video.isOpened():
            raise CameraError(
                f"{name} cannot be opened: see its power, the network, and user, password and path in camera.source "
                "(try the address in another player)"
            )
        return video

    return StreamCamera(Stream(name, open_it, lost, lost, _SETTLE_NS), width, height)
