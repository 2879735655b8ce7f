"""The ways to name a camera in `camera.source`, told apart and checked without touching one."""

from __future__ import annotations

import posixpath
import re
from enum import Enum
from urllib.parse import urlsplit

SIMULATED = "sim://"
"""The simulated robot, as a camera's source and as the motors' port."""
NULL = "null://"
"""Pictures of nothing from memory."""
RECORDING = "file://"
"""How a recorded clip is named."""
_V4L2 = "v4l2://"
_CSI = "csi://"
_RTSP = "rtsp://"
_PIPELINE = "gst:"
_SYNTHETIC = re.compile(r"\b(videotestsrc|filesrc|multifilesrc|splitmuxsrc|imagefreeze|file:)", re.IGNORECASE)
"""What makes a pipeline's pictures those of a file or of nothing at all."""
_SECRETS = re.compile(r"(?P<kept>rtsps?:|user-pw *=|user-id *=).+", re.IGNORECASE | re.DOTALL)


class SourceKind(Enum):
    """What stands behind a source."""

    V4L2 = "a V4L2 device"
    CSI = "a CSI camera"
    RTSP = "a network camera"
    PIPELINE = "a GStreamer pipeline"
    RECORDING = "a recording"
    SIMULATED = "the simulated camera"
    NULL = "no camera"


def kind_of(source: str) -> SourceKind:
    """The kind of a source; raises ValueError, with what it must be, for one that names nothing."""
    if source == SIMULATED:
        return SourceKind.SIMULATED
    if source == NULL:
        return SourceKind.NULL
    if source.startswith(RECORDING) and source != RECORDING:
        return SourceKind.RECORDING
    if source.startswith(_CSI) and _is_number(source.removeprefix(_CSI)):
        return SourceKind.CSI
    if source.startswith(_RTSP):
        _check_address(source)
        return SourceKind.RTSP
    if source.startswith(_PIPELINE):
        _check_pipeline(pipeline_text(source))
        return SourceKind.PIPELINE
    if is_device(device_path(source)):
        return SourceKind.V4L2
    raise ValueError(
        "must be a camera's device (/dev/video0, v4l2:///dev/video0, v4l2://0), csi://0, rtsp://HOST/PATH, "
        'gst:PIPELINE, a recording (file://clip.avi) or "sim://", the simulated robot\'s camera'  # null:// is bench's
    )


def device_path(source: str) -> str:
    """The path that a V4L2 source names; a number is that of /dev/videoN."""
    path = source.removeprefix(_V4L2)
    return f"/dev/video{path}" if path != source and _is_number(path) else path


def sensor_id(source: str) -> int:
    """The number of a CSI camera."""
    return int(source.removeprefix(_CSI))


def pipeline_text(source: str) -> str:
    """The elements of a GStreamer pipeline, without the end that the daemon adds."""
    return source.removeprefix(_PIPELINE).strip()


def is_synthetic(source: str) -> bool:
    """Whether a pipeline's pictures come from a file or a generator and show nothing of now."""
    return source.startswith(_PIPELINE) and _SYNTHETIC.search(source) is not None


def is_device(path: str) -> bool:
    """Whether a path names something below /dev, with no way out of it."""
    return path.startswith("/dev/") and posixpath.normpath(path).startswith("/dev/")


def without_secrets(text: str) -> str:
    """The text up to where a user's name or password may begin: an RTSP address, or those of a pipeline."""
    return _SECRETS.sub(lambda found: f"{found['kept']}...", text)


def source_shown(source: str) -> str:
    """A source for messages."""
    return address_shown(source) if source.startswith(_RTSP) else without_secrets(source)


def address_shown(source: str) -> str:
    """An RTSP address for messages: cameras take passwords before the host, in the path and in the query."""
    parts = urlsplit(source)
    host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname
    return f"rtsp://{host}" + (f":{parts.port}" if parts.port else "")


def _is_number(text: str) -> bool:
    return re.fullmatch("[0-9]{1,3}", text) is not None


def _check_address(source: str) -> None:
    if "@" in source.removeprefix(_RTSP).partition("/")[2]:
        raise ValueError("must have / and @ in a user's name or password written as %2F and %40")
    try:
        parts = urlsplit(source)
        host, _ = parts.hostname, parts.port
    except ValueError:
        host = None
    if not host or re.search(r"\s", source):
        raise ValueError("must name a host, for example rtsp://192.168.0.10:554/stream")


def _check_pipeline(text: str) -> None:
    if not text:
        raise ValueError("must have a pipeline behind gst:, for example gst:v4l2src device=/dev/video0")
    if re.search(r"\b(appsink|opencvsink)\b", text) or text.endswith("!"):
        raise ValueError("must end before its appsink and without a last '!': the daemon adds one that keeps no queue")
