"""What makes a policy process fail in every way, from inside and on request; only the self-test puts it in.

Orders are datagrams to a Unix socket, one each, in ASCII. They are read on a thread of their own, so that they are
obeyed whatever the other threads do. Whoever sends from an address is answered once the order was carried out:
`done NS` with the time at which that began, or `unknown` and the order.
"""

from __future__ import annotations

import asyncio
import ctypes
import hashlib
import math
import mmap
import os
import resource
import select
import socket
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, NoReturn, Protocol

from mvla_daemon.cameras.slot import NewestFrameSlot
from mvla_daemon.config import Config, Realtime
from mvla_daemon.core.messages import SECOND
from mvla_daemon.engines.thinker import Thinker
from mvla_daemon.link import pack_start
from mvla_daemon.ops import realtime
from mvla_daemon.selftest.sabotaged import SabotagedSlot, SabotagedSocket, SabotagedThinker

_LIBC = ctypes.CDLL(None)
_LIBC.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
_KEEPING_THE_LOCK = ctypes.PyDLL(None)
_BOARD = "/memfd:mvla-board"
_TOUCHED_BYTES = 1 << 18
_ROUNDS = 50_000
"""Of a hash that is computed without Python's lock: some 20 ms."""


class Victim(Protocol):
    """What a policy process lets be replaced before it runs."""

    config: Config
    gate: socket.socket
    slot: NewestFrameSlot
    make_thinker: Callable[..., Thinker]


def infiltrate(victim: Victim, path: Path) -> None:
    """Have `victim` take orders at `path`, from when it loads its policy until it ends."""
    Saboteur(victim, path)


class Saboteur:
    """Replaces the victim's parts; its thread begins when the victim asks for a thinker."""

    def __init__(self, victim: Victim, path: Path) -> None:
        camera = victim.config.camera
        self._realtime = victim.config.realtime
        self._slot = victim.slot = SabotagedSlot(camera.height, camera.width)
        self._gate = victim.gate = SabotagedSocket(victim.gate, victim.config.control)
        victim.make_thinker = self._make_thinker
        self._memory: list[mmap.mmap] = []
        path.unlink(missing_ok=True)
        self._orders = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._orders.bind(str(path))

    def _make_thinker(self, *parts: Any) -> Thinker:
        """Called on the loop."""
        self._thinker = SabotagedThinker(*parts)
        self._loop = self._gate.loop = asyncio.get_running_loop()
        threading.Thread(target=self._run, name="saboteur", daemon=True).start()
        return self._thinker

    def _run(self) -> None:
        while True:
            data, sender = self._orders.recvfrom(65536)
            text = data.decode("ascii", "replace")
            words = text.split()
            began_ns = time.monotonic_ns()
            try:
                known = self._spoil_thinking(words) or self._spoil_sending(words) or self._spoil_process(words)
            except (ValueError, OverflowError, OSError):
                known = False
            if sender:
                answer = f"done {began_ns}" if known else f"unknown {text}"
                with suppress(OSError):  # whoever does not read gets no answer
                    self._orders.sendto(answer.encode(), socket.MSG_DONTWAIT, sender)

    def _spoil_thinking(self, words: Sequence[str]) -> bool:
        match words:
            case ["compute", "forever"]:
                self._thinker.delay_s = math.inf
            case ["compute", ms]:
                self._thinker.delay_s = _seconds(ms)
            case ["raise"]:
                self._thinker.fails = True
            case ["wish", vx, vy, wz, count]:
                self._thinker.wishes.give((float(vx), float(vy), float(wz)), int(count))
            case ["stale", ("on" | "off") as flag]:
                self._slot.stale = flag == "on"
            case _:
                return False
        return True

    def _spoil_sending(self, words: Sequence[str]) -> bool:
        match words:
            case ["offer", vx, vy, wz, count]:
                self._gate.offers.give((float(vx), float(vy), float(wz)), int(count))
            case ["cycle", ("old" | "passed" | "future" | "twice") as kind]:
                self._gate.next_cycle = kind
            case ["start", ("early" | "late" | "future") as kind]:
                self._gate.next_start = kind
            case ["send", message, count]:
                self._send(bytes.fromhex(message), int(count))
            case ["flood", count]:
                # Each of them alone would be dropped: no gate's epoch is 0 while it listens.
                self._send(pack_start(0, 0, 0), int(count))
            case _:
                return False
        return True

    def _spoil_process(self, words: Sequence[str]) -> bool:
        match words:
            case ["loop", ms]:
                self._loop.call_soon_threadsafe(time.sleep, _seconds(ms))
            case ["gil", ms]:
                _KEEPING_THE_LOCK.poll(None, 0, round(_seconds(ms) * 1000))
            case ["segfault"]:
                _crash()
            case ["exit", number]:
                os._exit(int(number))
            case ["grow", mib]:
                self._grow(int(mib) << 20)
            case ["spin", seconds]:
                self._spin(float(seconds))
            case ["board"]:
                _ruin_board()
            case _:
                return False
        return True

    def _send(self, message: bytes, count: int) -> None:
        """As fast as the gate takes them."""
        for _ in range(count):
            while True:
                try:
                    self._gate.send_raw(message)
                    break
                except BlockingIOError:
                    select.select([], [self._gate], [])
                except OSError:
                    return

    def _grow(self, size: int) -> None:
        memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        chunk = b"\1" * _TOUCHED_BYTES  # in pieces, so that Python's lock is never kept for long
        for at in range(0, size, _TOUCHED_BYTES):
            memory[at : at + _TOUCHED_BYTES] = chunk
        self._memory.append(memory)

    def _spin(self, seconds: float) -> None:
        end_ns = time.monotonic_ns() + round(seconds * SECOND)
        for core in os.sched_getaffinity(0):
            threading.Thread(target=_spin, args=(core, self._realtime, end_ns), daemon=True).start()


def _spin(core: int, priorities: Realtime, end_ns: int) -> None:
    """Keep one processor busy, at the highest priority that this process was given."""
    os.sched_setaffinity(0, {core})
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    if priorities.scheduler == "fifo":
        realtime.use_fifo(priorities.policy_priority)
    while time.monotonic_ns() < end_ns:
        hashlib.pbkdf2_hmac("sha256", b"", b"", _ROUNDS)


def _crash() -> NoReturn:
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    ctypes.memset(0, 0, 1)
    raise AssertionError("still alive")


def _ruin_board() -> None:
    """Cut the memory off that is shared with the gate, if the kernel lets it, and unmap it behind Python's back."""
    for link in Path("/proc/self/fd").iterdir():
        with suppress(OSError):
            if str(link.readlink()).startswith(_BOARD):
                os.ftruncate(int(link.name), 0)
    for line in Path("/proc/self/maps").read_text().splitlines():
        if _BOARD in line:
            begin, end = (int(address, 16) for address in line.split()[0].split("-"))
            _LIBC.munmap(begin, end - begin)


def _seconds(ms: str) -> float:
    seconds = float(ms) / 1000
    if not 0 <= seconds < math.inf:
        raise ValueError(f"{ms} ms is no time to wait")
    return seconds
