"""The command line: `mvla-daemon --config config.toml` runs; every other word is a command with the same --config."""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path

from mvla_daemon import __version__
from mvla_daemon.config import Config
from mvla_daemon.config_load import load_config
from mvla_daemon.errors import DaemonError, ExitCode

ARM_WAIT_S = 8.0
"""Longer than arming may take (5 s of rehearsals and standstill), so that the answer is the daemon's own."""
ASK_EVERY_S = 0.05


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is one of sysexits', and every failure is a sentence on standard error."""
    parser = _parser()
    options = parser.parse_args(arguments)
    # From 1.29 on ONNX Runtime would report on models and machine to its maker, on a thread and from files of its own.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        return _COMMANDS[options.command](load_config(options.config, _overrides(options)), options)
    except DaemonError as error:
        print(f"mvla-daemon: {error}", file=sys.stderr)  # noqa: T201 - a command line's way of speaking
        return error.exit_code
    except KeyboardInterrupt:
        return ExitCode.OK
    except Exception as error:
        if os.environ.get("MVLA_TRACEBACK"):
            raise
        print(  # noqa: T201 - as above
            f"mvla-daemon: internal error, {type(error).__name__}: {error}; run again with MVLA_TRACEBACK=1 and report "
            f"what it prints.",
            file=sys.stderr,
        )
        return ExitCode.INTERNAL


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:  # type: ignore[override]
        self.exit(ExitCode.USAGE, f"{self.prog}: {message}; see `{self.prog} --help`.\n")


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(
        prog="mvla-daemon",
        description="Runs a driving policy and stops the robot when a command is late, stale, wrong or missing.",
        epilog="Without a command it runs. `stop`, `arm`, `disarm` and `status` speak to the daemon that runs with the "
        "same --config. A serial STOP is a protective stop, not a safety-rated emergency stop.",
    )
    parser.add_argument("command", nargs="?", default="run", choices=sorted(_COMMANDS), metavar="COMMAND")
    parser.add_argument("--config", type=Path, required=True, metavar="FILE", help="the configuration (TOML)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one value of the configuration",
    )
    parser.add_argument("--version", action="version", version=f"%(prog)s {__version__}")
    running = parser.add_argument_group("running")
    running.add_argument("--for", type=_seconds, dest="for_s", metavar="SECONDS", help="end after this long")
    running.add_argument("--live", action="store_true", help="show a live line, and a table of stages at the end")
    running.add_argument("--seed", type=int, metavar="N", help="the simulated room: as --set sim.seed=N")
    running.add_argument("--instruction", metavar="TEXT", help="as --set policy.instruction=TEXT")
    running.add_argument("--fault", metavar="SIGSTOP@4s", help="freeze (or SIGKILL) the policy process in simulation")
    running.add_argument("--lockstep", action="store_true", help="simulated time, the same bit by bit each time")
    running.add_argument("--wire", type=Path, metavar="FILE", help="with --lockstep: write what went to the motors")
    running.add_argument("--trace", type=Path, metavar="FILE", help="write every cycle's times as CSV")
    return parser


def _overrides(options: argparse.Namespace) -> list[str]:
    """What the command line sets of the configuration; the instruction as a TOML string, whatever is in it."""
    overrides = list(options.set)
    if options.seed is not None:
        overrides.append(f"sim.seed={options.seed}")
    if options.instruction is not None:
        overrides.append(f"policy.instruction={json.dumps(options.instruction, ensure_ascii=False)}")
    return overrides


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be a positive number of seconds")
    return value


def _run(config: Config, options: argparse.Namespace) -> int:
    from mvla_daemon.daemon import RunOptions, run  # noqa: PLC0415 - the other commands answer faster without it

    _check_simulation_options(config, options)
    return run(
        config,
        RunOptions(
            live=options.live,
            trace=options.trace,
            for_s=options.for_s,
            fault=options.fault,
            lockstep=options.lockstep,
            wire=options.wire,
        ),
    )


def _check_simulation_options(config: Config, options: argparse.Namespace) -> None:
    """What is for the simulated robot only, and what goes together; before anything is started."""
    from mvla_daemon.sim.fault import Fault  # noqa: PLC0415 - as above

    if options.fault is not None:
        Fault.parse(options.fault)
    if (options.fault or options.lockstep) and not (config.simulated and config.camera.is_simulated):
        raise DaemonError(
            '--fault and --lockstep are for the simulated robot: set camera.source and motor.port to "sim://".',
            ExitCode.USAGE,
        )
    if options.lockstep and (options.fault or options.for_s is not None):
        raise DaemonError(
            "--fault and --for are for real time, and --lockstep ends with the drive: leave out one or the other.",
            ExitCode.USAGE,
        )
    if options.wire is not None and not options.lockstep:
        raise DaemonError("--wire writes what --lockstep sends to the motors: add --lockstep.", ExitCode.USAGE)


def _tell(request: str) -> Callable[[Config, argparse.Namespace], int]:
    def command(config: Config, _options: argparse.Namespace) -> int:
        from mvla_daemon.ops.control import ask  # noqa: PLC0415 - as above

        answer = ask(config.path, request)
        if not answer["ok"]:
            raise DaemonError(f"{request} was refused: {answer['text']}.", ExitCode.TRY_AGAIN)
        if request == "arm":
            _wait_until_armed(config.path)
            answer["state"] = "armed"
        print(answer["state"])  # noqa: T201 - the answer
        return ExitCode.OK

    return command


def _wait_until_armed(path: Path) -> None:
    from mvla_daemon.ops.control import ask  # noqa: PLC0415 - as above

    end = time.monotonic() + ARM_WAIT_S
    while time.monotonic() < end:
        status = ask(path, "status")
        if status["state"] == "armed":
            return
        if status["state"] != "arming":
            why = status["refusal"] or status["reason"]
            raise DaemonError(f"not armed: {why} (the daemon is {status['state']}).", ExitCode.TRY_AGAIN)
        time.sleep(ASK_EVERY_S)
    raise DaemonError("The daemon is still arming; ask again with `status`.", ExitCode.TRY_AGAIN)


def _status(config: Config, _options: argparse.Namespace) -> int:
    from mvla_daemon.ops.control import ask  # noqa: PLC0415 - as above

    for key, value in ask(config.path, "status").items():
        if key != "ok":
            print(f"{key:<18}{value}")  # noqa: T201 - the answer
    return ExitCode.OK


_COMMANDS: dict[str, Callable[[Config, argparse.Namespace], int]] = {
    "run": _run,
    "stop": _tell("stop"),
    "arm": _tell("arm"),
    "disarm": _tell("disarm"),
    "status": _status,
}
