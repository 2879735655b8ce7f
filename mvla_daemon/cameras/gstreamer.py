"""CSI cameras and any other GStreamer pipeline, through an OpenCV that was built with GStreamer."""

from __future__ import annotations

from fractions import Fraction
from typing import TYPE_CHECKING, Any

from mvla_daemon.cameras.base import CameraError
from mvla_daemon.cameras.stream import Stream, StreamCamera
from mvla_daemon.opencv import is_built_with

if TYPE_CHECKING:
    from types import ModuleType

_SINK = "videoconvert ! video/x-raw,format=BGR ! appsink drop=1 max-buffers=1 sync=false"
"""One picture waits at most, and each is there at once instead of when its time to be shown has come."""


def pipeline_camera(elements: str, width: int, height: int) -> StreamCamera:
    """The pictures that come out of a pipeline's `elements`, which are written as for gst-launch-1.0."""
    name = f"pipeline {elements.split(maxsplit=1)[0]}"  # its other words may hold a password
    lost = "its source has ended, is unplugged or hangs"
    mend = "see what gst-launch-1.0 says to it, with fakesink at its end"
    return StreamCamera(_stream(name, elements, lost, mend), width, height)


def csi_camera(sensor_id: int, width: int, height: int, fps: float, sensor_mode: int | None) -> StreamCamera:
    """A camera on a Jetson's CSI port, by NVIDIA's own source."""
    elements = csi_elements(sensor_id, width, height, fps, sensor_mode)
    lost = "see its ribbon cable, and restart its service (systemctl restart nvargus-daemon)"
    mend = (
        "see its ribbon cable, that no other program has it, that its sensor offers this size and rate, and that "
        "GStreamer has NVIDIA's source (gst-inspect-1.0 nvarguscamerasrc)"
    )
    return StreamCamera(_stream(f"camera csi://{sensor_id}", elements, lost, mend), width, height)


def csi_elements(sensor_id: int, width: int, height: int, fps: float, sensor_mode: int | None) -> str:
    """The pipeline of a CSI camera; its pictures are turned where all others are, in `core/image.py`."""
    rate = Fraction(fps).limit_denominator(1001)
    mode = "" if sensor_mode is None else f" sensor-mode={sensor_mode}"
    return (
        f"nvarguscamerasrc sensor-id={sensor_id}{mode} ! "
        f"video/x-raw(memory:NVMM),width={width},height={height},framerate={rate.numerator}/{rate.denominator} ! "
        "nvvidconv ! video/x-raw,format=BGRx"
    )


def _stream(name: str, elements: str, lost: str, mend: str) -> Stream:
    def open_it(cv2: ModuleType) -> Any:
        if not is_built_with(cv2, "GStreamer"):
            raise CameraError(
                f"{name} needs an OpenCV with GStreamer, which pip's has not: use the system's (JetPack's own, or apt "
                "install python3-opencv) in a virtual environment made with --system-site-packages and without pip's"
            )
        video = cv2.VideoCapture(f"{elements} ! {_SINK}", cv2.CAP_GSTREAMER)
        if not video.isOpened():
            raise CameraError(f"{name} cannot be started: {mend}")
        return video

    return Stream(name, open_it, lost, mend)
