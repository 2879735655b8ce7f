"""The commands that look at the machine and need neither a daemon nor a configuration."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence

from mvla_daemon.errors import DaemonError, ExitCode


def add_options(parser: argparse.ArgumentParser) -> None:
    """What belongs to these commands alone."""
    finding = parser.add_argument_group("find-port")
    finding.add_argument("--ask", metavar="PORT", help="open this port, which resets some boards, and ask who is there")
    finding.add_argument("--baud", type=_baud, metavar="N", help="with --ask: at this rate only, not the usual ones")


def _baud(text: str) -> int:
    value = int(text)
    if not 9600 <= value <= 4_000_000:
        raise argparse.ArgumentTypeError("must be from 9600 to 4000000")
    return value


def _doctor(options: argparse.Namespace, overrides: Sequence[str]) -> ExitCode:
    from mvla_daemon.doctor.command import run  # noqa: PLC0415 - the other commands answer faster without it

    return run(options.config, overrides, as_json=options.json)


def _find_cameras(options: argparse.Namespace, _overrides: Sequence[str]) -> ExitCode:
    from mvla_daemon.devices.command import list_cameras  # noqa: PLC0415 - as above
    from mvla_daemon.devices.machine import Machine  # noqa: PLC0415 - as above

    return list_cameras(Machine(), as_json=options.json)


def _find_port(options: argparse.Namespace, _overrides: Sequence[str]) -> ExitCode:
    from mvla_daemon.devices.command import list_ports  # noqa: PLC0415 - as above
    from mvla_daemon.devices.machine import Machine  # noqa: PLC0415 - as above

    if options.ask is not None:
        from mvla_daemon.devices.greeting import ask_port  # noqa: PLC0415 - as above

        return ask_port(options.ask, options.baud, as_json=options.json)
    if options.baud is not None:
        raise DaemonError("--baud is for asking: name the port with --ask PORT.", ExitCode.USAGE)
    return list_ports(Machine(), as_json=options.json)


COMMANDS: dict[str, Callable[[argparse.Namespace, Sequence[str]], ExitCode]] = {
    "doctor": _doctor,
    "find-cameras": _find_cameras,
    "find-port": _find_port,
}
