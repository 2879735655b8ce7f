"""One daemon on the proving ground for many faults: put right again before each, and its whole wire judged after each.

What is judged here holds whatever was done to the daemon. The limits are those of the configuration, written down anew.
"""

from __future__ import annotations

import os
from contextlib import suppress
from functools import partial
from typing import TYPE_CHECKING

import pytest

from tests.rig import BRISK, GroundRig, Rig, Scene, Timed, gone, reasons

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

IS_LONG = "MVLA_TEST_LONG" in os.environ
LONG = pytest.mark.skipif(not IS_LONG, reason="a further way of the same fault: MVLA_TEST_LONG is not set")
PERIOD_S = 0.050
LIMITS = {"vx": (0.5, 1.0), "vy": (0.5, 1.0), "wz": (1.5, 4.0)}
DEADLINE_MISSED, FRAME_STALE, FRAME_FROZEN, CAMERA_LOST, NOT_FINITE, LIMIT_VIOLATED = range(1, 7)
POLICY_LOST, POLICY_ERROR, SEQUENCE_ERROR, CONTROLLER_LOST, CONTROLLER_RESET, CONTROLLER_FAULT = range(7, 13)
OPERATOR, SHUTDOWN, CONFIG_CHANGED, INTERNAL, PORT_LOST, SUSPENDED = range(13, 19)
FAULT = 5
NEUTRAL = (
    *("mute off", "deaf off", "corrupt 0 0", "lose 0 0", "delay 0", "state -", "session -", "watchdog -"),
    *("measure true", "fault 0 off", "fault 4 off", "camera back", "camera freeze off", "camera black off"),
    *("camera silent off", "camera skew 0", "camera backwards off", "camera repeat off"),
)
WORDS = (
    *("--set", "safety.recover_cycles=3", "--set", "safety.stop_timeout_ms=400", "--set", "motor.identify_timeout_s=0"),
    *("--set", "safety.policy_dead_after_ms=1300"),
)


class Proving:
    """Holds the daemon; `ready` gives it driving, or a new one where the last test has left nothing of it."""

    def __init__(self, make_folder: Callable[[], Path], manifest: Path) -> None:
        self._make_folder = make_folder
        self._scene = Scene(None, manifest, 640, 480)
        self._rig: GroundRig | None = None

    def ready(self) -> GroundRig:
        if self._rig is not None and not gone(self._rig.pid):
            with suppress(AssertionError, OSError):
                for order in NEUTRAL:
                    self._rig.order(order)
                if self._rig.statuses()[-1].number("state") == FAULT:  # which nothing but a reboot ends
                    self._rig.order("reset")
                self._rig.arm()
                return self._rig
        self.close()
        self._rig = rig = GroundRig(self._make_folder(), self._scene, pace=BRISK)
        rig.__enter__()
        rig.start_driving(*WORDS)
        return rig

    def close(self) -> None:
        if self._rig is not None:
            self._rig.__exit__()
            self._rig = None


def the_wire_is_right(wire: list[Timed]) -> None:
    """No motion outside a session, every number inside its limits, every drive begun from zero."""
    armed = newest = 0
    last: dict[str, float] = {}
    since_ns = 0
    for timed in wire:
        frame = timed.frame
        if timed.kind == "ARM":
            assert frame.session not in {0, newest}, "a session was used twice"
            armed = newest = frame.session
            last = dict.fromkeys(LIMITS, 0.0)
            since_ns = timed.at_ns
        elif timed.kind == "STOP":
            armed = 0
        elif timed.kind == "VELOCITY":
            assert armed == frame.session, "a VELOCITY outside an armed session"
            for axis, (most, accel) in LIMITS.items():
                value = frame.number(axis) / 1e6
                assert abs(value) <= most, f"{axis} is {value}"
                # What T allows is granted beside the time, and so is what two processes' clocks may differ.
                allowed_s = (timed.at_ns - since_ns) / 1e9 + PERIOD_S + 0.020
                if abs(value) > abs(last[axis]) or value * last[axis] < 0:
                    assert abs(value - last[axis]) <= accel * allowed_s, f"{axis} rose from {last[axis]} to {value}"
                last[axis] = value
            since_ns = timed.at_ns


def provoke(rig: GroundRig, what: Callable[[], object], *expected: int) -> list[Timed]:
    """Do something to a driving robot: the STOPs that follow have these reasons, in this order. The wire from there on.

    One try is forgiven, which a busy machine has spoiled by a deadline that it missed by itself.
    """
    for attempt in range(2):
        before = len(rig.read_wire())
        what()
        rig.wait_for("STOP", after=before)
        if reasons(rig, before)[0] == expected[0] or attempt:
            break
        rig.arm()
    try:
        rig.wait_until(lambda: reasons(rig, before)[: len(expected)] == list(expected), f"STOPs for {expected}")
    except AssertionError as error:
        raise AssertionError(f"STOPs for {reasons(rig, before)} instead of {expected}") from error
    return rig.read_wire()[before:]


def _has(rig: Rig, before: int, cycles: int) -> bool:
    kinds = [timed.kind for timed in rig.read_wire()[before:]]
    return kinds.count("VELOCITY") >= cycles or "STOP" in kinds


def drives_on(rig: Rig, what: Callable[[], object] = lambda: None, cycles: int = 5) -> list[Timed]:
    """Do something: it goes on driving, without a stop; the VELOCITYs. One try is forgiven, as with `provoke`."""
    for attempt in range(2):
        before = len(rig.read_wire())
        what()
        rig.wait_until(partial(_has, rig, before, cycles), f"{cycles} VELOCITY or a STOP")
        drive = [timed for timed in rig.read_wire()[before:] if timed.kind == "VELOCITY"]
        if not reasons(rig, before) or attempt:
            break
        rig.arm()
    assert reasons(rig, before) == []
    return drive
