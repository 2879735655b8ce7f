"""The cameras of this machine: V4L2 nodes that give pictures, and CSI sensors that a Jetson was told of."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from mvla_daemon.devices.access import Holder, access, holders
from mvla_daemon.devices.machine import Machine
from mvla_daemon.devices.v4l2 import Mode, capability, modes

READABLE = ("YUYV", "UYVY", "NV12", "NV21", "YU12", "YV12", "BGR3", "RGB3", "GREY", "MJPG", "JPEG")
"""Formats that OpenCV makes pictures of. A sensor's raw ones need the image processor, behind csi://."""
USUAL_SIZE = (640, 480)
_CSI = "csi://"
"""A Jetson's sensor through its image processor; sensors are numbered in the order of their nodes."""
_TEGRA_DRIVER = "tegra-video"


@dataclass(frozen=True, slots=True)
class CameraFound:
    """A camera's node. `problem` and `fix` are why it could not be asked, and what to do; the rest is then empty."""

    path: str
    name: str
    driver: str
    lasting: str
    """A name that stays the same when other cameras come and go, where there is one, else the path."""
    source: str
    """What to write as camera.source; empty where no picture can be read from it."""
    modes: Sequence[Mode] = ()
    users: Sequence[Holder] = ()
    problem: str = ""
    fix: str = ""

    @property
    def suggestion(self) -> tuple[int, int, float] | None:
        """Width, height and rate to begin with: 640x480 where it has that, else the size nearest to it."""
        is_processed = self.source.startswith(_CSI)  # which makes pictures of any format
        usable = [mode for mode in self.modes if mode.rates_hz and (is_processed or mode.fourcc in READABLE)]
        if not usable:
            return None
        has_usual = any(mode.holds(*USUAL_SIZE) for mode in usable)
        sizes = [(mode.to_width or mode.width, mode.to_height or mode.height) for mode in usable]
        usual = USUAL_SIZE[0] * USUAL_SIZE[1]
        width, height = USUAL_SIZE if has_usual else min(sizes, key=lambda size: abs(size[0] * size[1] - usual))
        return width, height, max(mode.rates_hz[0] for mode in usable if mode.holds(width, height))

    def lines(self) -> list[str]:
        """What to write into the configuration."""
        lines = ["[camera]", f'source = "{self.source}"']
        if self.suggestion is not None:
            width, height, rate = self.suggestion
            lines += [f"width = {width}", f"height = {height}", f"fps = {rate:g}"]
        return lines


@dataclass(frozen=True, slots=True)
class CamerasFound:
    """All cameras; `sensors` are the CSI ones in a Jetson's device tree, whether they answer or not."""

    cameras: Sequence[CameraFound]
    sensors: Sequence[str]


def find_cameras(machine: Machine) -> CamerasFound:
    """Ask each video node who it is; nodes that give no pictures (metadata, encoders) are left out."""
    cameras: list[CameraFound] = []
    sensors = 0
    for node in machine.glob("/dev/video[0-9]*"):
        camera = _camera(machine, node)
        if camera is None:
            continue
        if camera.driver == _TEGRA_DRIVER and not camera.source:
            camera = replace(camera, source=f"{_CSI}{sensors}")
            sensors += 1
        cameras.append(camera)
    badges = machine.glob("/proc/device-tree/tegra-camera-platform/modules/module*/badge")
    return CamerasFound(cameras, [badge for path in badges if (badge := machine.text(path))])


def _camera(machine: Machine, node: Path) -> CameraFound | None:
    path, lasting = machine.name(node), _lasting(machine, node)
    shown = machine.text(f"/sys/class/video4linux/{node.name}/name") or "a camera"
    try:
        fd = os.open(node, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError as error:
        problem, fix = _refusal(machine, node, error)
        return CameraFound(path, shown, "", lasting, lasting, problem=problem, fix=fix)
    try:
        about = capability(lambda request, data: fcntl.ioctl(fd, request, data))
        if not about.captures:
            return None
        listed = modes(lambda request, data: fcntl.ioctl(fd, request, data), planes=about.planes)
    except OSError as error:
        problem = f"{path} does not answer as a camera does ({error.strerror})"
        return CameraFound(path, shown, "", lasting, lasting, problem=problem, fix="unplug it and plug it in again")
    finally:
        os.close(fd)
    source = lasting if not listed or any(mode.fourcc in READABLE for mode in listed) else ""
    users = holders(machine, node).found
    return CameraFound(path, about.card or shown, about.driver, lasting, source, listed, users)


def _refusal(machine: Machine, node: Path, error: OSError) -> tuple[str, str]:
    """Why a node cannot be opened, and what to do about it."""
    path, allowed = machine.name(node), access(node)
    if isinstance(error, PermissionError) and allowed is not None:
        who = f"user {allowed.owner} and group {allowed.group} may, mode {allowed.mode}"
        return f"{path} may not be opened by this user ({who})", allowed.fix(path, "video")
    users = holders(machine, node).found
    if users:
        return f"{path} is in use by {', '.join(map(str, users))}", f"kill {users[0].pid}   # ends {users[0].name}"
    return f"{path} cannot be opened ({error.strerror})", "unplug it and plug it in again"


def _lasting(machine: Machine, node: Path) -> str:
    """The link by the camera's name and serial number, else by the place where it is plugged in, else the node."""
    for kind in ("by-id", "by-path"):
        for link in machine.glob(f"/dev/v4l/{kind}/*"):
            if os.path.realpath(link) == os.path.realpath(node):
                return machine.name(link)
    return machine.name(node)
