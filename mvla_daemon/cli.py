"""The command line: `mvla-daemon --config config.toml` runs; every other word is a command with the same --config."""

from __future__ import annotations

import argparse
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
    try:
        return _COMMANDS[options.command](load_config(options.config, options.set), options)
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
    running.add_argument("--trace", type=Path, metavar="FILE", help="write every cycle's times as CSV")
    return parser


def _seconds(text: str) -> float:
    value = float(text)
    if not 0 < value < float("inf"):
        raise argparse.ArgumentTypeError("must be a positive number of seconds")
    return value


def _run(config: Config, options: argparse.Namespace) -> int:
    from mvla_daemon.daemon import RunOptions, run  # noqa: PLC0415 - the other commands answer faster without it

    return run(config, RunOptions(live=options.live, trace=options.trace, for_s=options.for_s))


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
