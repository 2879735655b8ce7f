"""Parts of a policy process that work until they are told not to: slot, thinker, and the socket to the gate."""

from __future__ import annotations

import asyncio
import math
import os
import socket
import threading
import time
from contextlib import suppress
from dataclasses import replace
from typing import Any

from mvla_daemon.cameras.slot import Frame, NewestFrameSlot
from mvla_daemon.config import Control
from mvla_daemon.core.admission import Offer
from mvla_daemon.core.limits import Axes3
from mvla_daemon.core.messages import MS, SECOND, Stage, Velocity
from mvla_daemon.engines.base import EngineError
from mvla_daemon.engines.thinker import Thinker
from mvla_daemon.link import Started, pack_command, pack_start, unpack


class Instead:
    """Values that take the place of the next `count` others."""

    def __init__(self) -> None:
        self._values: Axes3 = (0.0, 0.0, 0.0)
        self._left = 0

    def give(self, values: Axes3, count: int) -> None:
        """From now on; an order that is still being carried out is forgotten."""
        self._values = values
        self._left = count

    def take(self) -> Axes3 | None:
        """The values to use, or None where the real ones are."""
        if not self._left:
            return None
        self._left -= 1
        return self._values


class SabotagedSlot(NewestFrameSlot):
    """While `stale`, gives the first frame that it gave since then again for every new one."""

    stale = False
    _kept: Frame | None = None

    def take(self) -> Frame | None:
        """As every slot."""
        frame = super().take()
        if frame is None or not self.stale:
            self._kept = self._kept if self.stale else None
            return frame
        if self._kept is None:
            self._kept = replace(frame, pixels=frame.pixels.copy())
        return self._kept


class SabotagedThinker(Thinker):
    """The next inference takes `delay_s` longer (without Python's lock) or fails, and actions may be replaced."""

    def __init__(self, *parts: Any) -> None:
        super().__init__(*parts)
        self.delay_s = 0.0
        self.fails = False
        self.wishes = Instead()

    def think(self, frame: Frame, cycle: int) -> Velocity:
        """As every thinker."""
        wish = super().think(frame, cycle)
        instead = self.wishes.take()
        return wish if instead is None else Velocity(*instead)

    def _mark(self, stage: Stage) -> None:
        super()._mark(stage)
        if stage is not Stage.COMPUTE:
            return
        if self.fails:
            self.fails = False
            raise EngineError("the self-test asked for it")
        delay_s, self.delay_s = self.delay_s, 0.0
        if math.isinf(delay_s):
            threading.Event().wait()
        elif delay_s:
            time.sleep(delay_s)


class SabotagedSocket(socket.socket):
    """Lies about the next start as `next_start` says, and sends a command of `next_cycle`'s kind after the next one.

    Needs the `loop` before the first of them. Offers may be replaced.
    """

    def __init__(self, gate: socket.socket, control: Control) -> None:
        super().__init__(fileno=os.dup(gate.fileno()))
        self.offers = Instead()
        self.next_start = self.next_cycle = ""
        self.loop: asyncio.AbstractEventLoop | None = None
        self._control = control
        self._held: list[bytes] | None = None

    def send(self, data: Any, flags: int = 0, /) -> int:
        """As every socket."""
        message = bytes(data)
        said = unpack(message)
        if isinstance(said, Started) and self.next_start:
            message = self._false_start(said)
        elif isinstance(said, Offer):
            instead = self.offers.take()
            if instead is not None:
                said.values = instead
                message = pack_command(said)
        # Settled before the true one is sent: an order that comes in between is for the next.
        false = self._false_command(said) if isinstance(said, Offer) and self.next_cycle else None
        sent = self._pass_on(message, flags)
        if false is not None:
            self._pass_on(pack_command(false), flags)
        return sent

    def send_raw(self, message: bytes) -> None:
        """Past all that, from any thread; raises BlockingIOError while the gate's buffer is full."""
        super().send(message)

    def _pass_on(self, message: bytes, flags: int) -> int:
        if self._held is not None:
            self._held.append(message)
            return len(message)
        return super().send(message, flags)

    def _false_start(self, start: Started) -> bytes:
        kind, self.next_start = self.next_start, ""
        announced_ns = start.announced_ns
        if kind == "early":  # so early that it is due at once
            announced_ns -= round(self._control.deadline_ms * MS)
        elif kind == "future":
            announced_ns += SECOND
        else:
            # Nothing is heard of the cycle until long after its deadline, and then it is said to have just begun.
            assert self.loop is not None
            self._held = []
            self.loop.call_later(3 * self._control.period_ns / SECOND, self._release)
        return pack_start(start.epoch, start.cycle, announced_ns)

    def _release(self) -> None:
        held, self._held = self._held, None
        assert held
        first, *rest = held
        start = unpack(first)
        assert isinstance(start, Started)
        for message in (pack_start(start.epoch, start.cycle, time.monotonic_ns()), *rest):
            with suppress(OSError):
                super().send(message)

    def _false_command(self, offer: Offer) -> Offer:
        kind, self.next_cycle = self.next_cycle, ""
        if kind == "old":
            return replace(offer, epoch=(offer.epoch - 1) & 0xFFFFFFFF)
        if kind == "passed":
            return replace(offer, cycle=(offer.cycle - 1) & 0xFFFFFFFF)
        if kind == "future":
            return replace(offer, cycle=(offer.cycle + 1) & 0xFFFFFFFF)
        return offer
