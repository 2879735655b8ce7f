"""Puts the daemon together and takes it apart: reporter, simulated controller, port, policy process, gate."""

from __future__ import annotations

import os
import secrets
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from mvla_daemon import __version__, assembly
from mvla_daemon.camera_source import source_shown
from mvla_daemon.config import Config
from mvla_daemon.core.messages import SECOND
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.gate import Gate
from mvla_daemon.motors.motor_port import MotorPort
from mvla_daemon.ops import realtime
from mvla_daemon.ops.child import PolicyChild, start_module
from mvla_daemon.ops.clock import MachineClock
from mvla_daemon.ops.control import ControlServer, socket_path
from mvla_daemon.ops.drops import DropBoard, create_drop_board
from mvla_daemon.ops.notify import Notifier
from mvla_daemon.ops.telemetry import Telemetry
from mvla_daemon.policy_keeper import PolicyKeeper
from mvla_daemon.stand_ins import StandIns, stand_ins

REPORTER_END_S = 3.0
"""How long the last words may take; a reporter whose reader is gone is left alone after that."""
_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclass(frozen=True, slots=True)
class RunOptions:
    """What the command line says of one run."""

    live: bool = False
    trace: Path | None = None
    for_s: float | None = None
    fault: str | None = None
    lockstep: bool = False
    wire: Path | None = None
    ground: Sequence[str] | None = None


def run(config: Config, options: RunOptions) -> ExitCode:
    """Run until told to end; raises DaemonError with the sentence for the user when it could not do its work."""
    notifier = Notifier.from_environment(os.environ)  # before any other process starts and sees it too
    with ExitStack() as stack:
        stack.callback(notifier.close)
        reporter = stack.enter_context(_reporter(config, options))
        telemetry = reporter.telemetry
        telemetry.event("start", _first_line(config), "warning" if config.bench_test_active else "info")
        _warn_of_slow_line(config, telemetry)
        if options.lockstep:
            return _run_in_lockstep(config, telemetry, options.wire)
        cores = os.sched_getaffinity(0)
        signals_fd = stack.enter_context(_signals())
        others = stack.enter_context(stand_ins(config, options.fault, options.ground))
        port = MotorPort(others.port, config.motor.baud)
        stack.callback(port.close)
        has_fifo = config.realtime.scheduler == "fifo" and realtime.would_grant_fifo(config.realtime.gate_priority)
        keeper = PolicyKeeper(lambda: _policy_child(config, cores, reporter, others, gate_has_fifo=has_fifo))
        stack.callback(keeper.stop)
        keeper.begin()
        end_ns = None if options.for_s is None else time.monotonic_ns() + round(options.for_s * SECOND)
        crew = assembly.crew(
            config, port, keeper, telemetry, MachineClock(), others.errand, random_u32=lambda: secrets.randbits(32)
        )
        gate = Gate(assembly.gate_settings(config, end_ns), crew, telemetry, signals_fd, notifier)
        control = ControlServer(socket_path(config.path), gate.operate)
        stack.callback(control.close)
        _become_real_time(config, cores, telemetry)
        gate.serve(control)
    helm = gate.helm
    if helm.farewell:
        raise DaemonError(helm.farewell, helm.exit_code or ExitCode.OK)
    if options.for_s is not None and not helm.ever_armed:
        raise DaemonError(f"The robot was never armed in {options.for_s:g} s; the log says why.", ExitCode.TRY_AGAIN)
    return helm.exit_code or ExitCode.OK


def _run_in_lockstep(config: Config, telemetry: Telemetry, wire: Path | None) -> ExitCode:
    from mvla_daemon.sim.lockstep_run import run_lockstep  # noqa: PLC0415 - numpy and ONNX Runtime are not for a gate

    exit_code, farewell = run_lockstep(config, telemetry, wire)
    if farewell:
        raise DaemonError(farewell, exit_code)
    return exit_code


def _first_line(config: Config) -> str:
    kind = "SIMULATED robot" if config.simulated else f"motors on {config.motor.port}"
    bench = "BENCH TEST, wheels off the ground: " if config.bench_test_active else ""
    source = source_shown(config.camera.source)
    pictures = f"a recording ({source})" if config.camera.is_recorded else source
    if config.camera.is_simulated:
        pictures = f"its simulated camera in room {config.sim.seed}"
    control = config.control
    return (
        f"{bench}mvla-daemon {__version__}: {kind}, pictures from {pictures}, {control.rate_hz:g} Hz, "
        f"deadline {control.deadline_ms:g} ms, watchdog {config.motor.watchdog_ms} ms"
    )


def _warn_of_slow_line(config: Config, telemetry: Telemetry) -> None:
    if warning := assembly.slow_line(config):
        telemetry.event("slow_line", warning, "warning")


def _become_real_time(config: Config, cores: set[int], telemetry: Telemetry) -> None:
    """Last of all, so that only the gate's own loop runs under it; what is refused is said once, and lived without."""
    wished = config.realtime
    priority = wished.gate_priority if wished.scheduler == "fifo" else None
    realtime.become_gate(cores, priority, lock=wished.lock_memory).tell(telemetry)


# --- the processes beside the gate ---


@dataclass(frozen=True, slots=True)
class _Reporter:
    telemetry: Telemetry
    policy_fd: int
    output_fd: int


@contextmanager
def _reporter(config: Config, options: RunOptions) -> Iterator[_Reporter]:
    """The process that talks to people, and the ends of what it listens to."""
    ours, gate_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    policys, policy_end = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    output_end, output_fd = os.pipe2(os.O_CLOEXEC)
    os.set_blocking(output_fd, False)  # what native libraries print must not hold the policy process up
    board_fd = create_drop_board()
    fds = (gate_end.fileno(), policy_end.fileno(), output_end, board_fd)
    words = ["--format", config.log.format, "--level", config.log.level]
    if options.trace is not None:
        _check_writable(options.trace)
        words += ["--trace", str(options.trace)]
    if options.live:
        words.append("--live")
    process = start_module("mvla_daemon.ops.reporter", *map(str, fds), *words, pass_fds=fds)
    gate_end.close()
    policy_end.close()
    os.close(output_end)
    telemetry = Telemetry(ours, DropBoard(board_fd))
    os.close(board_fd)
    try:
        yield _Reporter(telemetry, policys.fileno(), output_fd)
    finally:
        telemetry.event("end", "")
        ours.close()
        policys.close()
        os.close(output_fd)
        with suppress(subprocess.TimeoutExpired):
            process.wait(REPORTER_END_S)


def _check_writable(path: Path) -> None:
    try:
        path.open("w").close()
    except OSError as error:
        raise DaemonError(f"--trace {path} cannot be written: {error.strerror}.", ExitCode.NO_PERMISSION) from error


def _policy_child(
    config: Config, cores: set[int], reporter: _Reporter, others: StandIns, *, gate_has_fifo: bool
) -> PolicyChild:
    settings = {
        "config": config.model_dump(mode="json"),
        "cores": sorted(cores),
        "gate_has_fifo": gate_has_fifo,
        "simulated_camera": str(others.camera) if others.camera else None,
        "sabotage": str(others.sabotage) if others.sabotage else None,
    }
    return PolicyChild(settings, reporter.policy_fd, reporter.output_fd)


@contextmanager
def _signals() -> Iterator[int]:
    """A descriptor that becomes readable when the daemon is asked to end."""
    read_fd, write_fd = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    signal.set_wakeup_fd(write_fd, warn_on_full_buffer=False)
    before = [signal.signal(number, lambda *_: None) for number in _SIGNALS]
    try:
        yield read_fd
    finally:
        for number, handler in zip(_SIGNALS, before, strict=True):
            signal.signal(number, handler)
        signal.set_wakeup_fd(-1)
        os.close(read_fd)
        os.close(write_fd)
