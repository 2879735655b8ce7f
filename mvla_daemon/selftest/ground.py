"""A robot on blocks: its motor controller, which fails on request, and the line to it, which can be made a bad one.

Bytes, orders and times in, bytes out, with no I/O and no clock of its own. Its wheels turn as they are told, and what
its camera sees stays the same, so a drive never ends.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import replace

from mvla_daemon.core.messages import MS
from mvla_daemon.motors.link_v1 import Decoder, Packet, Status, encode
from mvla_daemon.sim.controller import Controller
from mvla_daemon.sim.ramp import ZERO, Axes

RUNAWAY_UMPS = 500_000
_HARDWARE_FAULTS = 5
_ON_OFF = {"on": True, "off": False}


class UnknownOrderError(Exception):
    """Words that are no order."""


def _stuck(_told: Axes) -> Axes:
    return ZERO


def _reversed(told: Axes) -> Axes:
    return (-told[0], -told[1], -told[2])


def _runaway(told: Axes) -> Axes:
    return (told[0] + RUNAWAY_UMPS, told[1], told[2])


_MEASURES: dict[str, Callable[[Axes], Axes] | None] = {
    "true": None,
    "stuck": _stuck,
    "reversed": _reversed,
    "runaway": _runaway,
}


class Way:
    """One direction of the line: a chunk comes out later, with a bit turned over, or not at all.

    `share` (0 to 1) of the chunks is hit; which ones, and which bit, is a function of `seed` and `name`.
    """

    def __init__(self, name: str) -> None:
        self.delay_ns = 0
        self._name = name
        self._under_way: deque[tuple[int, bytes]] = deque()
        self.corrupt(0, 0)
        self.lose(0, 0)

    def corrupt(self, share: float, seed: int) -> None:
        """Turn one bit over in that share of the chunks."""
        self._corrupted = share
        self._chance_of_damage = random.Random(f"corrupt {self._name} {seed}")  # noqa: S311 - repeatable, no secret

    def lose(self, share: float, seed: int) -> None:
        """Lose that share of the chunks."""
        self._lost = share
        self._chance_of_loss = random.Random(f"lose {self._name} {seed}")  # noqa: S311 - as above

    def put(self, chunk: bytes, now_ns: int) -> None:
        """Send a chunk on its way."""
        if not chunk or self._chance_of_loss.random() < self._lost:
            return
        if self._chance_of_damage.random() < self._corrupted:
            chunk = _with_bit_turned(chunk, self._chance_of_damage.randrange(8 * len(chunk)))
        self._under_way.append((now_ns + self.delay_ns, chunk))

    def take(self, now_ns: int) -> bytes:
        """What has arrived by now, in the order in which it was sent."""
        arrived = b""
        while self._under_way and self._under_way[0][0] <= now_ns:
            arrived += self._under_way.popleft()[1]
        return arrived

    def next_ns(self) -> int | None:
        """When the next chunk arrives."""
        return self._under_way[0][0] if self._under_way else None


class Ground:
    """The controller and its line; `deaf` asks whoever does the I/O to read nothing."""

    def __init__(self, now_ns: int) -> None:
        self.deaf = False
        self._controller = Controller(name="mvla-ground", booted_ns=now_ns)
        self._to_controller = Way("to controller")
        self._to_daemon = Way("to daemon")
        self._mute = False
        self._heard_saying = Decoder()
        self._session: int | None = None
        self._told: dict[str, int] = {}
        self._faults = 0

    def next_ns(self, now_ns: int) -> int:
        """When `advance` next has something to do."""
        ways = [at for at in (self._to_controller.next_ns(), self._to_daemon.next_ns()) if at is not None]
        return min([self._controller.next_tick_ns(now_ns), *ways])

    def hear(self, data: bytes, now_ns: int) -> None:
        """Bytes that the daemon has written."""
        self._to_controller.put(data, now_ns)

    def advance(self, now_ns: int) -> tuple[bytes, bytes]:
        """Move on to `now_ns`: what the controller says (heard or not), and the bytes that reach the daemon."""
        said = self._controller.receive(self._to_controller.take(now_ns), now_ns) + self._controller.tick(now_ns)
        if said and (self._told or self._faults or self._session is not None):
            said = b"".join([encode(self._distorted(packet)) for packet in self._heard_saying.feed(said)])
        if not self._mute:
            self._to_daemon.put(said, now_ns)
        return said, self._to_daemon.take(now_ns)

    def _distorted(self, packet: Packet) -> Packet:
        body = packet.body
        if isinstance(body, Status):
            body = replace(body, faults=body.faults | self._faults, **self._told)
        return Packet(packet.session if self._session is None else self._session, packet.seq, body)

    # --- orders ---

    def obey(self, words: Sequence[str], now_ns: int) -> bytes:
        """Do as ordered, `advance`d to `now_ns` before; what to write to the daemon at once and as it is.

        Raises UnknownOrderError.
        """
        try:
            said = self._obey_about_line(words)
            return self._obey_about_controller(words, now_ns) if said is None else said
        except (ValueError, OverflowError) as error:
            raise UnknownOrderError(str(error)) from error

    def _obey_about_line(self, words: Sequence[str]) -> bytes | None:
        ways = (self._to_controller, self._to_daemon)
        match words:
            case ["mute", ("on" | "off") as flag]:
                self._mute = _ON_OFF[flag]
            case ["deaf", ("on" | "off") as flag]:
                self.deaf = _ON_OFF[flag]
            case ["corrupt", share, seed]:
                for way in ways:
                    way.corrupt(_share(share), int(seed))
            case ["lose", share, seed]:
                for way in ways:
                    way.lose(_share(share), int(seed))
            case ["delay", ms]:
                for way in ways:
                    way.delay_ns = round(float(ms) * MS)
            case ["say", hexadecimal]:
                return bytes.fromhex(hexadecimal)
            case _:
                return None
        return b""

    def _obey_about_controller(self, words: Sequence[str], now_ns: int) -> bytes:
        match words:
            case ["reset"]:
                self._controller.reset(now_ns)
            case ["trip"]:
                self._controller.trip()
            case ["fault", bit, ("on" | "off") as flag]:
                self._set_fault(int(bit), _ON_OFF[flag])
            case ["state", value]:
                self._tell("state", value, 0xFF)
            case ["watchdog", value]:
                self._tell("watchdog_ms", value, 0xFFFF)
            case ["session", value]:
                self._session = None if value == "-" else _within(value, 0xFFFF)
            case ["measure", how] if how in _MEASURES:
                self._controller.disobey = _MEASURES[how]
            case _:
                raise UnknownOrderError
        return b""

    def _set_fault(self, bit: int, on: bool) -> None:
        """A fault of the hardware, or a higher bit that is only reported."""
        if bit < _HARDWARE_FAULTS:
            self._controller.set_fault(bit, on)
        else:
            fault = 1 << _within(str(bit), 7)
            self._faults = self._faults | fault if on else self._faults & ~fault

    def _tell(self, what: str, value: str, most: int) -> None:
        if value == "-":
            self._told.pop(what, None)
        else:
            self._told[what] = _within(value, most)


def _with_bit_turned(chunk: bytes, bit: int) -> bytes:
    turned = bytearray(chunk)
    turned[bit // 8] ^= 1 << bit % 8
    return bytes(turned)


def _share(text: str) -> float:
    share = float(text)
    if not 0 <= share <= 1:
        raise ValueError(f"a share is between 0 and 1, not {text}")
    return share


def _within(text: str, most: int) -> int:
    value = int(text)
    if not 0 <= value <= most:
        raise ValueError(f"{text} is not between 0 and {most}")
    return value
