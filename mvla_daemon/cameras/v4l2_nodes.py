"""The files under /dev by which V4L2 devices are opened."""

from __future__ import annotations

import os
import stat
from pathlib import Path

from mvla_daemon.cameras.base import CameraError
from mvla_daemon.errors import ExitCode

_VIDEO_MAJOR = 81
"""Linux' device number of video devices (Documentation/admin-guide/devices.txt)."""


def check_node(path: str) -> None:
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


def port_of(device: str) -> str:
    """The link that names the port a numbered device is plugged into, else the device itself.

    A camera that comes back gets any number, and another camera may get its old one. A link that the user chose says
    enough.
    """
    if not Path(device).is_symlink():
        for link in sorted(Path("/dev/v4l/by-path").glob("*")):
            if os.path.realpath(link) == os.path.realpath(device):
                return str(link)
    return device
