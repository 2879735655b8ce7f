"""The simulated robot's process, or the simulated motor controller's alone, started where the configuration says so."""

from __future__ import annotations

import os
import select
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from mvla_daemon.config import Config
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.ops.child import Process, start_module
from mvla_daemon.ops.errand import Ending, Errand, NoErrand, ReportedErrand
from mvla_daemon.sim.verdict import verdict
from mvla_daemon.sim.world import Outcome

START_S = 20.0
"""OpenCV's import and the room's textures take one or two, on an idle machine."""
_BELOW = 10
"""Priorities between the policy process and a simulated controller; the policy process has more than one."""
PICTURE_S = 20.0
"""How long the picture of a drive may take to draw."""


@dataclass(frozen=True, slots=True)
class StandIns:
    """What the daemon needs to know of them: the motors' port, and the camera's address where it is a simulated one."""

    port: str
    camera: Path | None = None
    errand: Errand = field(default_factory=NoErrand)
    sabotage: Path | None = None
    """Where the policy process takes orders to fail; in the self-test only."""


@contextmanager
def stand_ins(config: Config, fault: str | None, ground: Sequence[str] | None = None) -> Iterator[StandIns]:
    """Start what the configuration asks for; afterwards the picture of the drive is drawn, where one was asked for.

    With `ground` (port, camera and sabotage of the self-test's proving ground) nothing is started.
    """
    if ground is not None:
        port, camera, sabotage = ground
        yield StandIns(port, Path(camera), sabotage=Path(sabotage))
    elif config.camera.is_simulated:
        with _robot(config, fault) as robot:
            yield robot
    elif config.motor.is_simulated:
        with _process("mvla_daemon.sim.controller_process", *_priority(config)) as process:
            assert process.stdout is not None
            yield StandIns(_first_line(process)[0], errand=ReportedErrand(process.stdout, _judge))
    else:
        yield StandIns(config.motor.port)


@contextmanager
def _robot(config: Config, fault: str | None) -> Iterator[StandIns]:
    words = ["--seed", str(config.sim.seed), "--fps", str(config.camera.fps)]
    words += [f"--instruction={config.policy.instruction}"] if config.policy.instruction else []
    words += [f"--picture={config.sim.picture}"] if config.sim.picture else []
    words += ["--fault", fault] if fault else []
    words += _priority(config)
    with _process("mvla_daemon.sim.robot_process", *words) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        port, camera = _first_line(process)
        if config.motor.is_simulated:
            yield StandIns(port, Path(camera), ReportedErrand(process.stdout, _judge))
        else:
            yield StandIns(config.motor.port, Path(camera))
        process.stdin.close()
        try:
            process.wait(PICTURE_S)
        except subprocess.TimeoutExpired:
            sys.stderr.write(f"mvla-daemon: the picture {config.sim.picture} took over {PICTURE_S:g} s to draw.\n")


def _priority(config: Config) -> list[str]:
    """A real controller is not of this machine: the simulated one is real-time too, below the gate and the policy.

    As an ordinary process, before all others by its nice value, it was kept from its processor for 390 ms by another
    one that painted (Linux 6.18, traced), and the daemon lost its controller. Beside a real one, on blocks, it stays
    ordinary: nothing that paints is to keep the kernel from the bytes of a real port.
    """
    wished = config.realtime
    priority = min(wished.gate_priority, wished.policy_priority) - _BELOW
    granted = config.motor.is_simulated and wished.scheduler == "fifo" and priority > 0
    return [f"--priority={priority}"] if granted else []


@contextmanager
def _process(module: str, *words: str) -> Iterator[Process]:
    with start_module(
        module, *words, "--parent-pid", str(os.getpid()), stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def _first_line(process: Process) -> list[str]:
    assert process.stdout is not None
    if not select.select([process.stdout], [], [], START_S)[0]:
        raise DaemonError(f"The simulated robot did not start within {START_S:g} s; try again.", ExitCode.TRY_AGAIN)
    words = process.stdout.readline().decode().split()
    if words:
        return words
    status = process.wait()
    code = ExitCode(status) if status and status in list(ExitCode) else ExitCode.INTERNAL
    raise DaemonError("The simulated robot did not start; the lines above say why.", code)


def _judge(line: str) -> Ending:
    """The simulator's words on how the drive ended."""
    outcome, _, duration_ns = line.partition(" ")
    try:
        return verdict(Outcome(outcome), int(duration_ns))
    except ValueError:
        return ExitCode.INTERNAL, "The simulated robot's process ended by itself; lines above may say why."
