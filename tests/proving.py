"""One daemon on the proving ground for many faults: put right again before each, and its whole wire judged after each.

What is judged here holds whatever was done to the daemon. The limits are those of the configuration, written down anew.
"""

from __future__ import annotations

import itertools
import math
import os
import struct
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.forgiving import TALLY, TRIES, excuse
from tests.rig import BRISK, GroundRig, Rig, Scene, Timed, gone, reasons

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence
    from pathlib import Path

    from tests.once_more import OnceMore

IS_LONG = "MVLA_TEST_LONG" in os.environ
LONG = pytest.mark.skipif(not IS_LONG, reason="a further way of the same fault: MVLA_TEST_LONG is not set")
PERIOD_S = 0.050
JITTER_S = 0.010
LIMITS = {"vx": (0.5, 1.0), "vy": (0.5, 1.0), "wz": (1.5, 4.0)}
DEADLINE_MISSED, FRAME_STALE, FRAME_FROZEN, CAMERA_LOST, NOT_FINITE, LIMIT_VIOLATED = range(1, 7)
POLICY_LOST, POLICY_ERROR, SEQUENCE_ERROR, CONTROLLER_LOST, CONTROLLER_RESET, CONTROLLER_FAULT = range(7, 13)
OPERATOR, SHUTDOWN, CONFIG_CHANGED, INTERNAL, PORT_LOST, SUSPENDED = range(13, 19)
FAULT = 5
NEUTRAL = (
    *("mute off", "deaf off", "corrupt 0 0", "lose 0 0", "delay 0", "state -", "session -", "watchdog -"),
    *("measure true", "fault 0 off", "fault 4 off", "fault 5 off", "camera back", "camera fps 50"),
    *("camera freeze off", "camera black off", "camera silent off", "camera skew 0"),
    *("camera backwards off", "camera repeat off"),
)
NO_SABOTAGE = ("stale off", "compute 0", "wish 0 0 0 0", "offer 0 0 0 0")
WORDS = (
    *("--set", "safety.recover_cycles=2", "--set", "safety.stop_timeout_ms=400", "--set", "motor.identify_timeout_s=0"),
    *("--set", "safety.policy_dead_after_ms=15000", "--set", "safety.stop_window_s=3600"),
)
"""A busy machine may keep a policy process from running for seconds: only the tests of a lost policy are shorter."""

CLOCKS = '''
"""Python's clocks, off by what a file says: two numbers of nanoseconds, for the boot-time clock and the wall clock."""
import mmap, os, struct, time
fd = os.open(os.environ["MVLA_TEST_CLOCKS"], os.O_RDWR)
offsets = mmap.mmap(fd, 16)
os.close(fd)
clock_gettime_ns, time_ns = time.clock_gettime_ns, time.time_ns
def off(which): return struct.unpack_from("<q", offsets, 8 * which)[0]
def changed(clock):
    extra = {time.CLOCK_BOOTTIME: 0, time.CLOCK_REALTIME: 1}.get(clock)
    return clock_gettime_ns(clock) + (0 if extra is None else off(extra))
time.clock_gettime_ns = changed
time.clock_gettime = lambda clock: changed(clock) / 1e9
time.time_ns = lambda: time_ns() + off(1)
time.time = lambda: time.time_ns() / 1e9
'''


class Clocks:
    """Sets the clocks of a daemon and of all its processes, at the boundary to the system."""

    def __init__(self, folder: Path) -> None:
        (folder / "boundary").mkdir()
        (folder / "boundary/sitecustomize.py").write_text(CLOCKS)
        self._file = folder / "clocks"
        self._file.write_bytes(bytes(16))
        self._boot_ns = self._wall_ns = 0
        self.environment = {"PYTHONPATH": f"{folder / 'boundary'}", "MVLA_TEST_CLOCKS": str(self._file)}

    def suspend(self, for_ns: int) -> None:
        self._boot_ns += for_ns
        self._write()

    def set_wall(self, off_ns: int) -> None:
        self._wall_ns = off_ns
        self._write()

    def _write(self) -> None:
        with self._file.open("r+b") as file:
            file.write(struct.pack("<qq", self._boot_ns, self._wall_ns))


class Proving:
    """Holds the daemon; `ready` gives it driving, or a new one where the last test has left nothing of it.

    `heard_booting` is what the first of them wrote to a board that said nothing yet.
    """

    def __init__(self, make_folder: Callable[[], Path], manifest: Path) -> None:
        self._make_folder = make_folder
        self._scene = Scene(None, manifest, 640, 480)
        self._rig: GroundRig | None = None
        self.clocks: Clocks
        self.heard_booting: Sequence[Timed] = ()

    def ready(self) -> GroundRig:
        if self._rig is not None and not gone(self._rig.pid):
            with suppress(AssertionError, OSError):
                put_right(self._rig)
                return self._rig
        self.close()
        folder = self._make_folder()
        self._rig = rig = GroundRig(folder, self._scene, pace=BRISK)
        self.clocks = Clocks(folder)
        rig.environment = self.clocks.environment
        rig.__enter__()
        if self.heard_booting:
            rig.start_driving(*WORDS)
        else:
            self._boot(rig)
        self._judge = WireJudge()
        return rig

    def _boot(self, rig: GroundRig) -> None:
        """The board boots for as long as the policy needs to load."""
        rig.order("mute on")
        rig.start(*WORDS)
        rig.wait_until(lambda: bool(rig.events("policy_ready")), "policy")
        rig.wait_for("HELLO", count=4)
        self.heard_booting = tuple(rig.read_wire())
        rig.order("mute off")
        rig.wait_for("VELOCITY")

    def judge(self) -> None:
        """The wire of the daemon since the last time."""
        assert self._rig is not None
        self._judge.go_on(self._rig.read_wire())

    def close(self) -> None:
        if self._rig is not None:
            self._rig.__exit__()
            self._rig = None


class Beside:
    """Runs the tests that are marked so on a proving ground of their own, while the others run on theirs.

    Most of their time is waiting, so two at a time take half as long. `results` has what became of each, by its id.
    """

    def __init__(self, proving: Proving, items: Sequence[pytest.Item], once_more: OnceMore) -> None:
        self._proving = proving
        self._pool = ThreadPoolExecutor(1)
        self.results = {
            item.nodeid: self._pool.submit(once_more.run, item.nodeid, partial(self._run, item))
            for item in items
            if is_beside(item)
        }
        self._pool.submit(proving.close)  # nothing of it is to run beside the tests that come later

    def _run(self, item: pytest.Function) -> None:
        params = item.callspec.params if hasattr(item, "callspec") else {}
        item.obj(ground=self._proving.ready(), **params)
        self._proving.judge()

    def close(self) -> None:
        self._pool.shutdown(cancel_futures=True)
        self._proving.close()


def is_beside(item: pytest.Item) -> bool:
    skipped = any(mark.args[0] for mark in item.iter_markers("skipif"))
    return item.get_closest_marker("beside") is not None and not skipped


def put_right(rig: GroundRig) -> None:
    """Take back every order, and have the robot drive."""
    rig.order(*NEUTRAL)
    with suppress(OSError):  # there may be no policy process just now, and a new one is not spoiled
        for words in NO_SABOTAGE:
            rig.sabotage(words, answered=False)
    if rig.statuses()[-1].number("state") == FAULT:  # which nothing but a reboot ends
        rig.order("reset")
    rig.arm()
    # And its log has come so far, so that what is read of it from now on is about what comes now.
    rig.wait_until(lambda: _is_told_armed(rig) or rig.ask("status")["state"] != "armed", "record of the arming")


def _is_told_armed(rig: Rig) -> bool:
    return [event["state"] for event in rig.events("state")[-1:]] == ["armed"]


def latched(rig: Rig) -> str:
    """The reason of a stop that only an operator ends."""
    rig.wait_until(lambda: rig.ask("status")["state"] == "latched", "latch")
    return str(rig.ask("status")["reason"])


class WireJudge:
    """No motion outside a session, every number inside its limits, every drive begun from zero.

    How fast a number rises is judged by times of the far end, which may read a frame long after it was written: it was
    written at the earliest when the chunk before it was read. So from each frame on, a speed may be as much higher as
    the time since then allows, and by what T allows beside.
    """

    def __init__(self) -> None:
        self._at = 0
        self._armed = self._newest = 0
        self._read_ns = self._before_ns = 0
        self._lines: dict[tuple[str, int], float] = {}

    def go_on(self, wire: list[Timed]) -> None:
        for timed in wire[self._at :]:
            if timed.at_ns != self._read_ns:
                self._before_ns, self._read_ns = self._read_ns, timed.at_ns
            self._judge(timed)
        self._at = len(wire)

    def _judge(self, timed: Timed) -> None:
        session = timed.frame.session
        if timed.kind == "ARM":
            assert session not in {0, self._newest}, "a session was used twice"
            self._armed = self._newest = session
            self._lines = {}
            self._rise(dict.fromkeys(LIMITS, 0.0), timed)
        elif timed.kind == "STOP":
            self._armed = 0
        elif timed.kind == "VELOCITY":
            assert self._armed == session, "a VELOCITY outside an armed session"
            self._rise({axis: timed.frame.number(axis) / 1e6 for axis in LIMITS}, timed)

    def _rise(self, values: dict[str, float], timed: Timed) -> None:
        """Of each axis each direction by itself: `_lines` is the lowest start of all ramps so far, taken back to 0."""
        for axis, value in values.items():
            most, accel = LIMITS[axis]
            assert abs(value) <= most, f"{axis} is {value}"
            for sign in (1, -1):
                speed = max(0.0, sign * value)
                highest = self._lines.get((axis, sign), math.inf) + accel * (timed.at_ns / 1e9 + PERIOD_S + JITTER_S)
                assert speed <= highest, f"{axis} rose to {value} within too short a time"
                start = speed - accel * self._before_ns / 1e9
                self._lines[axis, sign] = min(self._lines.get((axis, sign), math.inf), start)


def stop_record(rig: Rig, told: int) -> dict[str, object]:
    """The record of the first stop after the first `told` ones."""
    rig.wait_until(lambda: len(rig.events("stop")) > told, "record of the stop")
    return rig.events("stop")[told]


def until_armed(wire: list[Timed]) -> list[str]:
    """The kinds from the first STOP on, up to the next ARM."""
    kinds = itertools.dropwhile(lambda kind: kind != "STOP", (timed.kind for timed in wire))
    return list(itertools.takewhile(lambda kind: kind != "ARM", kinds))


def tried(
    rig: Rig, attempt: Callable[[int], int | None], again: Callable[[Rig], None] = put_right
) -> tuple[int, int | None]:
    """Try something with a driving robot: the wire's length before it, and what `attempt` has made of it.

    `attempt` is given that length; its result is None, or the reason of a stop that spoiled it. A stop that a busy
    machine can bring about by itself is counted and forgiven, and after `again` the next try is made.
    """
    for left in reversed(range(TRIES)):
        before, told = len(rig.read_wire()), len(rig.statuses())
        spoiled = attempt(before)
        forgiven = excuse(spoiled, rig.statuses()[told - 1 :]) if spoiled is not None and left else ""
        TALLY.count(forgiven)
        if not forgiven:
            break
        print(f"forgiven: STOPs for {reasons(rig, before)}")
        again(rig)
    return before, spoiled


def provoke(
    rig: GroundRig, what: Callable[[], object], *expected: int, as_meant: Callable[[], bool] = lambda: True
) -> list[Timed]:
    """Do something to a driving robot: the STOPs that follow have these reasons, in this order. The wire from there on.

    Nothing of the robot's moves after them. A try is spoiled by a stop for another reason, or one that is not
    `as_meant`.
    """

    def attempt(before: int) -> int | None:
        what()
        rig.wait_for("STOP", after=before)
        first = reasons(rig, before)[0]
        return None if first == expected[0] and as_meant() else first

    before, _ = tried(rig, attempt)
    try:
        rig.wait_until(lambda: reasons(rig, before)[: len(expected)] == list(expected), f"STOPs for {expected}")
    except AssertionError as error:
        raise AssertionError(f"STOPs for {reasons(rig, before)} instead of {expected}") from error
    assert as_meant()
    wire = rig.read_wire()[before:]
    assert set(until_armed(wire)) <= {"STOP", "HELLO"}
    return wire


def _has(rig: Rig, before: int, cycles: int) -> bool:
    kinds = [timed.kind for timed in rig.read_wire()[before:]]
    return kinds.count("VELOCITY") >= cycles or "STOP" in kinds


def first_reason(rig: Rig, before: int) -> int | None:
    return next(iter(reasons(rig, before)), None)


def drives_on(
    rig: Rig,
    what: Callable[[], object] = lambda: None,
    cycles: int = 4,
    again: Callable[[Rig], None] = put_right,
) -> list[Timed]:
    """Do something: it goes on driving, without a stop; the VELOCITYs."""
    drive: list[Timed] = []

    def attempt(before: int) -> int | None:
        what()
        rig.wait_until(lambda: _has(rig, before, cycles), f"{cycles} VELOCITY or a STOP")
        drive[:] = [timed for timed in rig.read_wire()[before:] if timed.kind == "VELOCITY"]
        return first_reason(rig, before)

    _, stopped_for = tried(rig, attempt, again)
    assert stopped_for is None
    return drive
