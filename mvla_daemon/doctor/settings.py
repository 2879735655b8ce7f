"""A configuration beside the machine: what `check` says, but for the motors, whose port a doctor never opens."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mvla_daemon.devices.access import access, holders
from mvla_daemon.devices.machine import Machine
from mvla_daemon.doctor.finding import Finding, note, ok, problem
from mvla_daemon.doctor.probe import ProbeError, probe
from mvla_daemon.errors import DaemonError
from mvla_daemon.ops.control_client import ask

if TYPE_CHECKING:
    from mvla_daemon.config import Config

CHECK_S = 30.0
"""For a large policy to be read and run once."""


def look_with(path: Path, overrides: Sequence[str]) -> Callable[[Machine], list[Finding]]:
    """A look at this configuration."""
    return lambda machine: _look(machine, path, overrides)


def _look(machine: Machine, path: Path, overrides: Sequence[str]) -> list[Finding]:
    from mvla_daemon.config_load import load_config  # noqa: PLC0415 - a broken pydantic must not keep the rest back

    try:
        config = load_config(path, overrides)
    except DaemonError as error:
        wrong = str(error).splitlines()
        return [problem("file", line, f"${{EDITOR:-nano}} {path}") for line in wrong]
    running = _daemon(path)
    return [
        ok("file", f"{config.path}: every key is right"),
        running,
        _policy(config, overrides),
        _camera(config, overrides),
        *look_at_motors(machine, config),
    ]


def _daemon(path: Path) -> Finding:
    try:
        status = ask(path, "status")
    except DaemonError as error:
        return ok("daemon", str(error).split(" (looked at")[0])
    reason = f", its last stop was {status['reason']}" if status.get("reason") else ""
    missing = f"; to be armed it lacks: {status['missing']}" if status.get("missing") else ""
    return ok("daemon", f"runs (process {status.get('pid')}), {status.get('state')}{reason}{missing}")


def _policy(config: Config, overrides: Sequence[str]) -> Finding:
    if config.policy.backend == "tensorrt":  # to load one may be to build it, for minutes
        return note(
            "policy", "a TensorRT engine is looked at by its own command", _command(config, "build-engine --explain")
        )
    return _checked("policy", config, overrides, f"${{EDITOR:-nano}} {config.path}")


def _camera(config: Config, overrides: Sequence[str]) -> Finding:
    """Not asked for a picture while another program, the daemon most likely, has it."""
    device = config.camera.device
    if device is not None and (users := holders(Machine(), Path(device)).found):
        return ok("camera", f"{device} is in use by {', '.join(map(str, users))}, so it was not asked for a picture")
    return _checked("camera", config, overrides, "mvla-daemon find-cameras")


def _checked(look: str, config: Config, overrides: Sequence[str], fix: str) -> Finding:
    """What `check` finds, in a process of its own; a refusal says itself what is wrong, `fix` where to begin."""
    try:
        found = probe("check", look, str(config.path), *overrides, timeout_s=CHECK_S)
    except ProbeError as error:
        return problem(look, f"could not be looked at: {error}", fix)
    if "refused" in found:
        return problem(look, found["refused"], fix)
    return ok(look, found["found"])


def look_at_motors(machine: Machine, config: Config) -> list[Finding]:
    """The port as /dev shows it, and how long a command is on the line."""
    from mvla_daemon.assembly import line_ms, slow_line  # noqa: PLC0415 - as above

    if config.motor.is_simulated:
        return [ok("motors", "simulated; no port is opened")]
    port = config.motor.port
    path = machine.path(port)
    allowed = access(path)
    if allowed is None:
        return [problem("motors", f"{port} is not there; plug it in, or correct motor.port", "mvla-daemon find-port")]
    if not allowed.allowed:
        return [problem("motors", f"{port} may not be opened by this user", allowed.fix(port, "dialout"))]
    users = holders(machine, Path(os.path.realpath(path)))
    state = f"in use by {', '.join(map(str, users.found))}" if users.found else "may be opened"
    found = [ok("motors", f"{port} is there and {state}; who is at its end tells find-port --ask")]
    share = f"a command takes {line_ms(config):.2f} ms on the line at {config.motor.baud} baud"
    if warning := slow_line(config):
        found.append(note("line speed", warning, "set motor.baud = 921600 here and in the controller's firmware"))
    else:
        found.append(ok("line speed", f"{share}, beside a deadline of {config.control.deadline_ms:g} ms"))
    return found


def _command(config: Config, command: str) -> str:
    return f"mvla-daemon --config {config.path} {command}"
