"""Asks who is at the far end of a serial port; nothing but HELLO of motor link v1 is written.

To open a port resets many boards, so this is done to the one port that a person named, and never to look for one.
"""

from __future__ import annotations

import json
import secrets
import select
import time
from collections.abc import Sequence
from dataclasses import dataclass

from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.motors.link_v1 import Decoder, Hello, Identity, Packet, encode
from mvla_daemon.motors.serial_port import PortLostError, SerialPort

USUAL_BAUDS = (921_600, 115_200, 460_800, 1_000_000, 230_400, 500_000, 57_600)
"""The motor link's own first, then what firmware is most often set to."""
PATIENCE_S = 5.0
"""How long a board may take to boot: the motor link's page, "What the host does"."""
NEXT_PATIENCE_S = 1.0
"""At the second rate and later ones: the board has booted by then."""
HELLO_EVERY_S = 0.2


@dataclass(frozen=True, slots=True)
class Answer:
    """Who answered, and at which rate."""

    identity: Identity
    baud: int


def ask_port(path: str, baud: int | None, *, as_json: bool) -> ExitCode:
    """Print who answers there, at this rate or at a usual one; raises DaemonError when nobody does."""
    answer = greet(path, USUAL_BAUDS if baud is None else (baud,))
    who = answer.identity
    facts = {
        "port": path,
        "baud": answer.baud,
        "name": who.text,
        "firmware": f"{who.fw_major}.{who.fw_minor}",
        "watchdog_min_ms": who.watchdog_min_ms,
        "watchdog_max_ms": who.watchdog_max_ms,
    }
    text = (
        f"{who.text!r} {who.fw_major}.{who.fw_minor} answered on {path} at {answer.baud} baud, watchdog "
        f'{who.watchdog_min_ms} to {who.watchdog_max_ms} ms.\n\n[motor]\nport = "{path}"\nbaud = {answer.baud}'
    )
    print(json.dumps(facts) if as_json else text)  # noqa: T201 - the answer
    return ExitCode.OK


def greet(path: str, bauds: Sequence[int] = USUAL_BAUDS) -> Answer:
    """The controller's answer at the first of these rates that gives one; DaemonError, UNAVAILABLE, when none does."""
    heard: dict[int, int] = {}
    for baud in bauds:
        answer, heard[baud] = _greet_at(path, baud, NEXT_PATIENCE_S if heard else PATIENCE_S)
        if answer is not None:
            return Answer(answer, baud)
    talks = [f"{count} bytes at {baud}" for baud, count in heard.items() if count]
    what = f"something is sent ({', '.join(talks)} baud), but no motor link v1" if talks else "nothing came back"
    raise DaemonError(
        f"No motor controller answered on {path} at {', '.join(map(str, bauds))} baud: {what}; check its power and "
        f"cable, that its firmware speaks motor link v1, and name its rate with --baud.",
        ExitCode.UNAVAILABLE,
    )


def _greet_at(path: str, baud: int, patience_s: float) -> tuple[Identity | None, int]:
    """The answer to one of our own questions, and how many bytes came at all."""
    port = SerialPort(path, baud)
    try:
        return _converse(port, patience_s)
    except PortLostError as error:
        raise DaemonError(f"{error}; see that its cable is in and stays in.", ExitCode.UNAVAILABLE) from None
    finally:
        port.close()


def _converse(port: SerialPort, patience_s: float) -> tuple[Identity | None, int]:
    decoder, nonces, heard = Decoder(), set[int](), 0
    began_s = asked_s = time.monotonic()
    while (now_s := time.monotonic()) - began_s < patience_s:
        if now_s >= asked_s:
            nonce = secrets.randbits(32)
            nonces.add(nonce)
            port.write(encode(Packet(0, len(nonces), Hello(nonce))))
            asked_s = now_s + HELLO_EVERY_S
        if not select.select([port.fd], [], [], max(0.0, asked_s - now_s))[0]:
            continue
        data = port.read()
        heard += len(data)
        for packet in decoder.feed(data):
            if isinstance(packet.body, Identity) and packet.body.nonce in nonces:
                return packet.body, heard
    return None, heard
