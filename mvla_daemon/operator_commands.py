"""The operator's commands: one request to the daemon that runs with the same --config, and its answer in words.

They need the configuration's path alone: a file that somebody is editing must not stand between a person and a stop.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.ops.control_client import ask

ARM_WAIT_S = 8.0
"""Longer than arming may take (5 s of rehearsals and standstill), so that the answer is the daemon's own."""
ASK_EVERY_S = 0.05


def operate(command: str, config_path: Path, options: argparse.Namespace) -> ExitCode:
    """Do one of `COMMANDS`; raises DaemonError with the reason when it was refused."""
    if options.json and command != "status":
        raise DaemonError("--json is for `status`; the others print the state that they led to.", ExitCode.USAGE)
    try:
        COMMANDS[command](config_path, options)
    except KeyboardInterrupt:
        raise DaemonError(f"Interrupted; nothing is known of what became of {command}.", ExitCode.TRY_AGAIN) from None
    return ExitCode.OK


def _stop(config_path: Path, _options: argparse.Namespace) -> None:
    print(_told(config_path, "stop"))  # noqa: T201 - the answer


def _disarm(config_path: Path, _options: argparse.Namespace) -> None:
    print(_told(config_path, "disarm"))  # noqa: T201 - the answer


def _arm(config_path: Path, _options: argparse.Namespace) -> None:
    _told(config_path, "arm")
    _wait_until_armed(config_path)
    print("armed")  # noqa: T201 - the answer


def _status(config_path: Path, options: argparse.Namespace) -> None:
    answer = ask(config_path, "status")
    del answer["ok"]
    if options.json:
        print(json.dumps(answer))  # noqa: T201 - the answer
        return
    for key, value in answer.items():
        print(f"{key:<18}{value}")  # noqa: T201 - the answer


def _told(config_path: Path, request: str) -> str:
    """The state that the request led to."""
    answer = ask(config_path, request)
    if not answer["ok"]:
        raise DaemonError(f"{request} was refused: {answer['text']}.", ExitCode.TRY_AGAIN)
    return str(answer["state"])


def _wait_until_armed(config_path: Path) -> None:
    end_s = time.monotonic() + ARM_WAIT_S
    while time.monotonic() < end_s:
        status = ask(config_path, "status")
        if status["state"] == "armed":
            return
        if status["state"] != "arming":
            why = status["refusal"] or status["reason"]
            raise DaemonError(f"not armed: {why} (the daemon is {status['state']}).", ExitCode.TRY_AGAIN)
        time.sleep(ASK_EVERY_S)
    raise DaemonError("The daemon is still arming; ask again with `status`.", ExitCode.TRY_AGAIN)


COMMANDS: dict[str, Callable[[Path, argparse.Namespace], None]] = {
    "stop": _stop,
    "arm": _arm,
    "disarm": _disarm,
    "status": _status,
}
