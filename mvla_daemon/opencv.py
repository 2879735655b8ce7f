"""OpenCV, imported where it is first needed, since a Jetson brings its own and a gate has no use for it."""

from __future__ import annotations

import importlib
import os
import re
from types import ModuleType

from mvla_daemon.errors import DaemonError, ExitCode

_V4L2_WAIT_S = 2
"""How long OpenCV may wait for a picture before the camera counts as lost; its own 10 s would put off reopening."""


def load_opencv() -> ModuleType:
    """The module cv2, kept to one thread; raises DaemonError, UNAVAILABLE, where it cannot be imported."""
    # A lost camera is reported once, by us; OpenCV would write a warning at every attempt to get it back.
    os.environ.setdefault("OPENCV_LOG_LEVEL", "ERROR")
    os.environ.setdefault("OPENCV_VIDEOIO_V4L_SELECT_TIMEOUT", str(_V4L2_WAIT_S))
    try:
        cv2 = importlib.import_module("cv2")
    except ImportError as error:
        raise DaemonError(
            f"OpenCV cannot be imported ({error}): pip install 'mvla-daemon[opencv]', or on a Jetson use JetPack's own "
            "with a virtual environment made with --system-site-packages",
            ExitCode.UNAVAILABLE,
        ) from error
    # Its pool's threads spin between pictures, on the cores that the policy needs.
    cv2.setNumThreads(1)
    return cv2


def is_built_with(cv2: ModuleType, part: str) -> bool:
    """Whether OpenCV was built with a part of its video input: "GStreamer", "FFMPEG" or "v4l/v4l2"."""
    return re.search(rf"^\s*{part}:\s+YES", cv2.getBuildInformation(), re.MULTILINE) is not None
