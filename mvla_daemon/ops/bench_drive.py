"""One drive of a bench: the whole daemon as a process, listened to until it stops or has driven long enough."""

from __future__ import annotations

import json
import os
import select
import subprocess
import time
from collections import deque
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from mvla_daemon.core.messages import MS
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.ops.child import Process, start_module
from mvla_daemon.ops.standstill import StandstillWatch

if TYPE_CHECKING:
    from collections.abc import Sequence

START_S = 20.0
"""For loading and arming, before the seconds that were asked for begin."""
EXCUSED = 0.5
"""Of T: a machine that stood still for so long has itself missed the deadline. The other half is left to the daemon."""


@dataclass(slots=True)
class Drive:
    """What became of it: what stopped it, empty when nothing did, and what was warned of.

    `stood_ms` is how long the machine stood still at each miss that is not the daemon's.
    """

    stop: str = ""
    stood_ms: list[float] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)


def drive(words: Sequence[str], seconds: float, *, period_ns: int | None) -> Drive:
    """Drive for so many seconds; `words` are the daemon's command line.

    With `period_ns` (T) a miss during which the machine stood still for half of T is noted, and driven on after.
    """
    driven, pipe = Drive(), subprocess.PIPE
    watch = nullcontext() if period_ns is None else StandstillWatch()
    with watch as machine, start_module("mvla_daemon", *words, stdout=subprocess.DEVNULL, stderr=pipe) as process:
        try:
            if machine is not None and machine.refusal:
                driven.warnings.append(f"Standstills of the machine itself were not watched: {machine.refusal}.")
            _listen(_Listener(process, driven.warnings), driven, seconds, machine, period_ns or 0)
        finally:
            process.terminate()
            process.wait()
    return driven


def _listen(
    listener: _Listener, driven: Drive, seconds: float, machine: StandstillWatch | None, period_ns: int
) -> None:
    answer = listener.wait_for({"refused", "armed"}, START_S)
    left_s = seconds
    while answer is not None and answer["kind"] != "refused":
        began_s = time.monotonic()
        stop = listener.wait_for({"stop"}, left_s)
        if stop is None:
            return
        left_s -= time.monotonic() - began_s
        stood_ns = 0 if machine is None else _stood_ns(machine, stop, period_ns)
        if stood_ns < max(1, EXCUSED * period_ns):
            driven.stop = stop["event"]
            return
        answer = listener.wait_for({"armed", "latched"}, START_S)
        if answer is not None and answer["state"] == "latched":  # excused or not, it does not drive on by itself
            driven.stop = stop["event"]
            return
        driven.stood_ms.append(stood_ns / MS)
    driven.stop = answer["event"] if answer else f"not armed within {START_S:g} s"


def _stood_ns(machine: StandstillWatch, stop: dict[str, Any], period_ns: int) -> int:
    """For how long during the late cycle and the one before, which is as far back as its deadline reaches."""
    written_ns = int(stop["written_ns"])
    due_ns = written_ns - 1000 * int(stop.get("late_us", 0))
    return machine.stood_ns(due_ns - 2 * period_ns, written_ns)


class _Listener:
    """Reads what the daemon logs; raises DaemonError with its last sentence when it ends."""

    def __init__(self, process: Process, warnings: list[str]) -> None:
        assert process.stderr is not None
        self._process = process
        self._fd = process.stderr.fileno()
        self._pending = b""
        self._unheard: deque[dict[str, Any]] = deque()
        self._said = "The daemon ended without a word; try again."
        self._warnings = warnings

    def wait_for(self, kinds: set[str], seconds: float) -> dict[str, Any] | None:
        """The next record of one of these kinds, or None once the time is over."""
        end_s = time.monotonic() + seconds
        while (left_s := end_s - time.monotonic()) > 0 or self._unheard:
            if not self._unheard and select.select([self._fd], [], [], left_s)[0]:
                self._unheard += self._read()
            while self._unheard:
                record = self._unheard.popleft()
                if record["kind"] == "realtime" and record["level"] == "warning":
                    self._warnings.append(record["event"])
                if record["kind"] in kinds or record.get("state") in kinds:
                    return record
        return None

    def _exit_code(self) -> ExitCode:
        status = self._process.wait()
        return ExitCode(status) if status and status in list(ExitCode) else ExitCode.INTERNAL

    def _read(self) -> list[dict[str, Any]]:
        data = os.read(self._fd, 65536)
        *lines, self._pending = (self._pending + data).split(b"\n")
        for line in lines:
            if not line.startswith(b"{"):
                self._said = line.decode("utf-8", "replace").removeprefix("mvla-daemon: ")
        if not data:
            raise DaemonError(self._said, self._exit_code())
        return [json.loads(line) for line in lines if line.startswith(b"{")]
