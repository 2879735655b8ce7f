"""The cameras and serial ports of this machine, a line each; no port is opened."""

from __future__ import annotations

from collections.abc import Sequence

from mvla_daemon.devices.cameras import CameraFound, find_cameras
from mvla_daemon.devices.machine import Machine
from mvla_daemon.devices.ports import PortFound, find_ports
from mvla_daemon.doctor.finding import Finding, Level, note, ok, problem

FORMATS, SIZES = 3, 6
"""How many are shown; find-cameras shows all."""


def look_at_cameras(machine: Machine) -> list[Finding]:
    """Who they are and what they can do; all of their modes are in find-cameras."""
    found = find_cameras(machine)
    findings = [camera_finding(camera) for camera in found.cameras]
    nodes = sum(camera.source.startswith("csi://") for camera in found.cameras)
    if len(found.sensors) > nodes:
        sensors = ", ".join(found.sensors)
        text = f"{len(found.sensors)} CSI sensors are configured ({sensors}), {nodes} answer; check the cable"
        findings.append(problem("csi", text, "sudo dmesg | grep -i -e imx -e tegra-cam"))
    return findings or [note("camera", "none here gives pictures", "mvla-daemon find-cameras")]


def camera_finding(camera: CameraFound) -> Finding:
    """A camera in a line: its first formats and sizes with their highest rates."""
    name = camera.path.removeprefix("/dev/")
    if camera.problem:
        return problem(name, camera.problem, camera.fix)
    text = f"{camera.name} ({camera.driver}): {_modes(camera) or 'tells no modes'}"
    if camera.users:
        return note(name, f"{text}; in use by {', '.join(map(str, camera.users))}", f"fuser -v {camera.path}")
    if not camera.source:
        return note(name, f"{text}; raw pictures, which nothing here can read", "mvla-daemon find-cameras")
    return ok(name, f'{text}; source = "{camera.source}"')


def _modes(camera: CameraFound) -> str:
    formats: dict[str, list[str]] = {}
    for mode in camera.modes:
        size = f"{mode.to_width or mode.width}x{mode.to_height or mode.height}"
        formats.setdefault(mode.fourcc, []).append(f"{size}@{mode.rates_hz[0]:g}" if mode.rates_hz else size)
    parts = [f"{fourcc} {_first(sizes, SIZES, ' ')}" for fourcc, sizes in formats.items()]
    return _first(parts, FORMATS, "; ")


def _first(parts: Sequence[str], count: int, between: str) -> str:
    more = f" and {len(parts) - count} more" if len(parts) > count else ""
    return between.join(parts[:count]) + more


def look_at_ports(machine: Machine) -> list[Finding]:
    """Who is plugged in, who may open it, who has it open, and whether its chip holds input back."""
    ports = find_ports(machine)
    return [_port(port) for port in ports] or [note("port", "no serial port here", "mvla-daemon find-port")]


def _port(port: PortFound) -> Finding:
    name = port.path.removeprefix("/dev/")
    about = port.name + (f", {port.lasting}" if port.lasting != port.path else "")
    if port.is_console:
        return ok(name, f"{about}: the kernel's console, not for motors")
    if port.access is None:
        return note(name, f"{about}: no node in /dev; a container has to be given it", f"ls -l {port.path}")
    if port.fix:
        who = f"user {port.access.owner} and group {port.access.group}, mode {port.access.mode}"
        level = Level.PROBLEM if port.vendor_id else Level.NOTE  # few who have built-in ports use them
        return Finding(level, name, f"{about}: this user may not open it, only {who}", port.fix)
    if port.users.found:
        return note(name, f"{about}: {port.use}", f"fuser -v {port.path}")
    if port.latency_fix:
        held = f"its chip holds input back {port.latency_timer_ms} ms, until the daemon opens it and asks for 1 ms"
        return note(name, f"{about}: may be opened; {held}", port.latency_fix)
    return ok(name, f"{about}: may be opened, {port.use}")
