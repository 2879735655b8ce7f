"""`mvla-daemon find-cameras` and `find-port`: what is there, who may use it, what to write into the configuration."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from itertools import groupby

from mvla_daemon.devices.cameras import CameraFound, CamerasFound, find_cameras
from mvla_daemon.devices.machine import Machine
from mvla_daemon.devices.ports import PortFound, find_ports
from mvla_daemon.errors import ExitCode

WIDTH = 80
NO_CAMERA = (
    "No camera here gives pictures. Check its cable and power (`lsusb`, `v4l2-ctl --list-devices`), on a Jetson that "
    "the sensor was configured (`sudo /opt/nvidia/jetson-io/jetson-io.py`), in a container that /dev/video* are let in."
)
NO_PORT = (
    "No serial port is here. Check the controller's cable (one with data lines) and power, and what the kernel said "
    "when it was plugged in (`sudo dmesg | grep tty`); in a container the port has to be let in."
)


def list_cameras(machine: Machine, *, as_json: bool) -> ExitCode:
    """Print all cameras, formats with the same sizes and rates together; that there is none is an answer too."""
    found = find_cameras(machine)
    if as_json:
        _say(json.dumps({"cameras": [_camera_facts(camera) for camera in found.cameras], "sensors": found.sensors}))
        return ExitCode.OK
    for camera in found.cameras:
        _say("\n".join([f"{camera.path}  {_introduced(camera.name, camera.driver)}", *camera_lines(camera), ""]))
    for line in _about_sensors(found):
        _say(line)
    if not found.cameras:
        _say(_wrapped(NO_CAMERA))
    return ExitCode.OK


def list_ports(machine: Machine, *, as_json: bool) -> ExitCode:
    """Print all serial ports; none is opened."""
    ports = find_ports(machine)
    if as_json:
        _say(json.dumps({"ports": [_port_facts(port) for port in ports]}))
        return ExitCode.OK
    for port in ports:
        _say("\n".join([f"{port.path}  {_introduced(port.name, port.driver)}", *_about_port(port), ""]))
    _say("Who is at the other end: mvla-daemon find-port --ask PORT" if ports else _wrapped(NO_PORT))
    return ExitCode.OK


# --- what is said of one ---


def _introduced(name: str, driver: str) -> str:
    return f"{name} ({driver})" if driver and driver not in name else name


def camera_lines(camera: CameraFound) -> Iterator[str]:
    """All that is known of one camera, and what to write into the configuration."""
    if camera.problem:
        yield f"    {camera.problem}"
        yield f"    fix: {camera.fix}"
        return
    alike: dict[tuple[str, ...], list[str]] = {}
    for fourcc, modes in groupby(camera.modes, key=lambda mode: mode.fourcc):
        alike.setdefault(tuple(mode.text for mode in modes), []).append(fourcc)
    for sizes, formats in alike.items():
        yield _wrapped(" ".join(formats), " " * 4)
        yield from (_wrapped(size, " " * 6) for size in sizes)
    if camera.users:
        yield f"    in use by {', '.join(map(str, camera.users))}"
    if not camera.source:
        yield "    none of these formats can be read; a sensor's raw pictures need a driver that converts them"
        return
    yield from ("", *(f"    {line}" for line in camera.lines()))


def _about_sensors(found: CamerasFound) -> Iterator[str]:
    """CSI sensors of the device tree; those that do not answer have no node."""
    nodes = sum(camera.source.startswith("csi://") for camera in found.cameras)
    for sensor in found.sensors:
        yield f"CSI sensor configured: {sensor}"
    if len(found.sensors) > nodes:
        yield f"{len(found.sensors) - nodes} of them give no video device: check the ribbon cable, then `sudo dmesg`."


def _about_port(port: PortFound) -> Iterator[str]:
    if port.vendor_id:
        serial_number = f", serial number {port.serial_number}" if port.serial_number else ""
        yield f"    USB {port.vendor_id}:{port.product_id}{serial_number}"
    if port.access is None:
        yield "    has no node in /dev: it was unplugged just now, or this container does not have it"
        return
    who = f"user {port.access.owner} and group {port.access.group}, mode {port.access.mode}"
    yield f"    may be opened by {who}: {'you may' if port.access.allowed else 'you may not'}"
    if port.fix:
        yield f"    fix: {port.fix}"
    if port.is_console:
        yield "    is the kernel's console, whose messages would go to the motors: take another"
    yield f"    {port.use}"
    if port.latency_fix:
        yield f"    holds input back for {port.latency_timer_ms} ms; the daemon asks for 1 ms when it opens it"
    if not port.is_console:
        yield from ("", *(f"    {line}" for line in port.lines()))


# --- the same for programs ---


def _camera_facts(camera: CameraFound) -> dict[str, object]:
    return {**asdict(camera), "config": [] if camera.problem or not camera.source else camera.lines()}


def _port_facts(port: PortFound) -> dict[str, object]:
    return {**asdict(port), "name": port.name, "fix": port.fix, "config": [] if port.is_console else port.lines()}


def _wrapped(text: str, indent: str = "") -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=indent, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )


def _say(text: str) -> None:
    print(text)  # noqa: T201 - the answer
