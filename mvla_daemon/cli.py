"""The command line: `mvla-daemon --config config.toml` runs; every other word is a command with the same --config."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mvla_daemon import __version__, machine_commands, operator_commands
from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from mvla_daemon.config import Config


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; the exit code is one of sysexits', and every failure is a sentence on standard error."""
    parser = _parser()
    options = parser.parse_args(arguments)
    # From 1.29 on ONNX Runtime would report on models and machine to its maker, on a thread and from files of its own.
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    try:
        if options.command in machine_commands.COMMANDS:
            return machine_commands.COMMANDS[options.command](options, _overrides(options))
        if options.config is None:
            parser.error("the following arguments are required: --config")
        if options.command in operator_commands.COMMANDS:
            return operator_commands.operate(options.command, options.config, options)
        from mvla_daemon.config_load import load_config  # noqa: PLC0415 - a stop must not wait for pydantic

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
        "same --config; `doctor`, `find-cameras` and `find-port` need none. A serial STOP is a protective stop, not a "
        "safety-rated emergency stop.",
    )
    parser.add_argument(
        "command",
        nargs="?",
        default="run",
        choices=sorted([*_COMMANDS, *machine_commands.COMMANDS, *operator_commands.COMMANDS]),
        metavar="COMMAND",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the configuration (TOML)")
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="SECTION.KEY=VALUE",
        help="override one value of the configuration",
    )
    parser.add_argument("--json", action="store_true", help="status, doctor, find-...: one JSON object")
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
    running.add_argument("--ground", nargs=3, help=argparse.SUPPRESS)  # the self-test's: port, camera, sabotage
    machine_commands.add_options(parser)
    building = parser.add_argument_group("build-engine")
    building.add_argument("--explain", action="store_true", help="build nothing, say which engine fits and why")
    measuring = parser.add_argument_group("bench")
    measuring.add_argument("--null", action="store_true", help="without a network, deadline T: the daemon's own cost")
    measuring.add_argument("--rate", type=_hertz, metavar="HZ", help="this rate, instead of the highest that holds")
    measuring.add_argument("--seconds", type=_seconds, default=60.0, metavar="S", help="how long it must hold (60)")
    measuring.add_argument(
        "--policies",
        nargs="+",
        metavar="PATH",
        help="instead of the daemon: these policies, FP32 against FP16 (manifests, folders of them, or `configured`)",
    )
    measuring.add_argument("--engines", metavar="NAMES", help="of onnxruntime,tensorrt,torch; all that are here")
    testing = parser.add_argument_group("selftest (its --fault is a list of rows: F05,F23)")
    testing.add_argument("--tries", type=_count, metavar="N", help="of each fault; with --policies: inferences (200)")
    testing.add_argument("--grow", type=_count, metavar="MIB", help="memory that the policy process holds meanwhile")
    testing.add_argument("--load", action="store_true", help="keep all processors busy meanwhile; allows 10 ms more")
    testing.add_argument("--out", type=Path, metavar="FOLDER", help="for the reports (build/selftest, build/bench)")
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


def _count(text: str) -> int:
    value = int(text)
    if value < 1:
        raise argparse.ArgumentTypeError("must be a whole number from 1 on")
    return value


def _hertz(text: str) -> float:
    value = float(text)
    if not 0.1 <= value <= 1000:
        raise argparse.ArgumentTypeError("must be from 0.1 to 1000 Hz")
    return value


def _selftest(config: Config, options: argparse.Namespace) -> int:
    from mvla_daemon.selftest import command  # noqa: PLC0415 - as above

    return command.run(config, options)


def _bench(config: Config, options: argparse.Namespace) -> int:
    if options.policies:
        if options.null or options.rate is not None:
            raise DaemonError(
                "--null and --rate measure the whole daemon, --policies its policies: leave out one or the other.",
                ExitCode.USAGE,
            )
        from mvla_daemon.bench import command  # noqa: PLC0415 - the other commands answer faster without it

        return command.run(config, _overrides(options), options)
    if options.engines is not None:
        raise DaemonError("--engines is for policies: name them with --policies.", ExitCode.USAGE)
    from mvla_daemon.ops.bench import bench  # noqa: PLC0415 - the other commands answer faster without it

    return bench(config, _overrides(options), null=options.null, rate_hz=options.rate, seconds=options.seconds)


def _build_engine(config: Config, options: argparse.Namespace) -> int:
    from mvla_daemon.ops.engine_command import build_engine  # noqa: PLC0415 - as above

    return build_engine(config, explain=options.explain)


def _check(config: Config, _options: argparse.Namespace) -> int:
    from mvla_daemon.ops.check import check  # noqa: PLC0415 - as above

    return check(config)


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
            ground=options.ground,
        ),
    )


def _check_simulation_options(config: Config, options: argparse.Namespace) -> None:
    """What is for the simulated robot only, and what goes together; before anything is started."""
    from mvla_daemon.sim.fault import Fault  # noqa: PLC0415 - as above

    if options.fault is not None:
        Fault.parse(options.fault)
    if (options.fault or options.lockstep or options.ground) and not (config.simulated and config.camera.is_simulated):
        raise DaemonError(
            "--fault, --lockstep and --ground are for the simulated robot: set camera.source and motor.port to "
            '"sim://".',
            ExitCode.USAGE,
        )
    if options.ground and (options.fault or options.lockstep):
        raise DaemonError(
            "--ground has faults of its own and is for real time: leave out --fault and --lockstep.", ExitCode.USAGE
        )
    if options.lockstep and (options.fault or options.for_s is not None):
        raise DaemonError(
            "--fault and --for are for real time, and --lockstep ends with the drive: leave out one or the other.",
            ExitCode.USAGE,
        )
    if options.wire is not None and not options.lockstep:
        raise DaemonError("--wire writes what --lockstep sends to the motors: add --lockstep.", ExitCode.USAGE)


_COMMANDS: dict[str, Callable[[Config, argparse.Namespace], int]] = {
    "run": _run,
    "bench": _bench,
    "build-engine": _build_engine,
    "check": _check,
    "selftest": _selftest,
}
