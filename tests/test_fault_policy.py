"""Faults of the policy process, each in the middle of a drive, judged by what arrives at the motor controller."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.forgiving import STARVED
from tests.proving import (
    CAMERA_LOST,
    DEADLINE_MISSED,
    FRAME_STALE,
    LIMIT_VIOLATED,
    LONG,
    NOT_FINITE,
    POLICY_ERROR,
    POLICY_LOST,
    SEQUENCE_ERROR,
    SHUTDOWN,
    WORDS,
    WireJudge,
    drives_on,
    first_reason,
    latched,
    provoke,
    put_right,
    stop_record,
    tried,
    until_armed,
)
from tests.rig import BRISK, GroundRig, Scene, freeze, gone, reasons, thaw

AT_THE_LIMITS = {"vx": 500_000, "vy": -500_000, "wz": 1_500_000}
LOST = {DEADLINE_MISSED, FRAME_STALE, POLICY_LOST}
"""The reasons on the way to a lost policy; which one is first depends on what is noticed first."""


def counted(rig: GroundRig, name: str) -> int:
    return int(rig.ask("status")["counts"].get(name, 0))


# --- too late ---


@pytest.mark.parametrize("longer_ms", [51, pytest.param(100, marks=LONG), pytest.param(400, marks=LONG)])
def test_an_inference_that_takes_too_long_is_stopped_for_and_its_result_dropped(
    ground: GroundRig, longer_ms: int
) -> None:
    before = counted(ground, "abandoned_cycle")
    told = 0

    def take_longer() -> None:
        nonlocal told
        told = len(ground.events("stop"))
        ground.sabotage(f"compute {longer_ms}")

    provoke(ground, take_longer, DEADLINE_MISSED, as_meant=lambda: stop_record(ground, told).get("stage") == "compute")
    assert counted(ground, "abandoned_cycle") > before
    record = stop_record(ground, told)
    assert record["reason"] == "deadline_missed"
    assert 0 < int(str(record["duration_us"])) < 1_000_000


@pytest.mark.parametrize("how", ["loop 200", "gil 200"])
def test_a_loop_that_is_blocked_or_a_lock_that_is_held_is_stopped_for(ground: GroundRig, how: str) -> None:
    told = len(ground.events("stop"))
    provoke(ground, lambda: ground.sabotage(how), DEADLINE_MISSED)
    assert stop_record(ground, told)["stage"]


def test_a_recovery_within_a_millisecond_takes_no_stop_back(ground: GroundRig) -> None:
    pid = ground.policy_pid()
    told, known = len(ground.events("stop")), ground.ask("status")["stops_in_window"]
    before = len(ground.read_wire())
    freeze(pid)
    ground.wait_for("STOP", after=before)
    thaw(pid)
    ground.arm()
    kinds = [timed.kind for timed in ground.read_wire()[before:]]
    assert "ARM" in kinds[kinds.index("STOP") :]
    assert set(until_armed(ground.read_wire()[before:])) <= {"STOP", "HELLO"}
    assert stop_record(ground, told)["reason"] in {"deadline_missed", "frame_stale"}
    assert ground.ask("status")["stops_in_window"] > known


def test_a_start_that_was_long_ago_is_due_at_once(ground: GroundRig) -> None:
    """One that really missed its deadline is stopped for at least the 50 ms of the deadline after the last command."""
    told = 0

    def lie() -> None:
        nonlocal told
        told = len(ground.events("stop"))
        ground.sabotage("start early")

    def was_at_once() -> bool:
        return int(str(stop_record(ground, told).get("since_velocity_us", 1_000_000))) < 50_000

    provoke(ground, lie, DEADLINE_MISSED, as_meant=was_at_once)


@LONG
def test_a_start_that_is_told_late_is_missed_meanwhile(ground: GroundRig) -> None:
    provoke(ground, lambda: ground.sabotage("start late"), DEADLINE_MISSED)


def test_a_start_in_the_future_begins_when_it_is_received(ground: GroundRig) -> None:
    drives_on(ground, lambda: ground.sabotage("start future"))


def test_commands_from_one_old_picture_are_stale(ground: GroundRig) -> None:
    """While it gets older the robot drives by it, as by any picture."""
    wire = provoke(ground, lambda: ground.sabotage("stale on"), FRAME_STALE)
    assert wire[0].kind == "VELOCITY"


# --- wrong ---


@pytest.mark.parametrize("wish", ["nan 0 0", pytest.param("0 inf 0", marks=LONG), pytest.param("0 0 -inf", marks=LONG)])
def test_a_number_that_is_none_is_never_on_the_wire_and_poisons_nothing(ground: GroundRig, wish: str) -> None:
    provoke(ground, lambda: ground.sabotage(f"wish {wish} 1"), NOT_FINITE)
    assert latched(ground) == "not_finite"
    ground.arm()
    drive = drives_on(ground)
    assert drive[-1].frame.number("wz") > 0


def test_a_number_that_is_none_from_the_first_cycle_on_is_never_armed(ground: GroundRig) -> None:
    ground.ask("stop")
    latched(ground)
    before = len(ground.read_wire())
    ground.sabotage("wish 0 nan 0 1000000")
    assert ground.ask("arm")["ok"]
    ground.wait_until(lambda: "not_finite" in ground.ask("status")["refusal"], "refusal")
    assert {timed.kind for timed in ground.read_wire()[before:]} <= {"HELLO", "STOP"}


def test_a_denormal_number_is_zero(ground: GroundRig) -> None:
    """And what comes after it is what it would have been."""

    def speeds() -> list[int]:
        newest = next(timed.frame for timed in reversed(ground.read_wire()) if timed.kind == "VELOCITY")
        return [newest.number(axis) for axis in AT_THE_LIMITS]

    drives_on(ground, lambda: ground.sabotage("wish 1e-40 -1e-40 5e-324 1000000"))
    ground.wait_until(lambda: speeds() == [0, 0, 0], "zeros")
    drives_on(ground, lambda: ground.sabotage("wish 0 0 0 0"))
    ground.wait_until(lambda: speeds()[2] > 0, "motion")


@pytest.mark.beside
def test_up_to_ten_times_a_limit_is_clamped_and_comes_no_faster_than_allowed(ground: GroundRig) -> None:
    """Limits and accelerations of every number are judged by the fixture, for all that was written."""

    def attempt(before: int) -> int | None:
        _wish_beyond_the_limits(ground)
        for turn in range(12):
            ground.sabotage(f"wish {4.9 * (-1) ** turn} 0 0 1000000")
            _hear_more(ground)
        return first_reason(ground, before)

    before, stopped_for = tried(ground, attempt)
    assert stopped_for is None
    values = [timed.frame.number("vx") for timed in ground.read_wire()[before:] if timed.kind == "VELOCITY"]
    assert any(a > 0 >= b for a, b in pairwise(values))


def _hear_more(rig: GroundRig) -> None:
    """A VELOCITY, or the STOP instead of it."""
    known = len(rig.read_wire())
    rig.wait_until(lambda: len(rig.read_wire()) > known, "VELOCITY or STOP")


def _wish_beyond_the_limits(rig: GroundRig) -> None:
    before = len(rig.read_wire())

    def reached() -> bool:
        newest = [timed.frame for timed in rig.read_wire()[before:] if timed.kind == "VELOCITY"][-1:]
        return bool(newest) and all(newest[0].number(axis) == value for axis, value in AT_THE_LIMITS.items())

    rig.sabotage("wish 4.9 -4.9 14 1000000")
    rig.wait_until(lambda: reached() or reasons(rig, before) != [], "limits")


@pytest.mark.parametrize(
    "how",
    [
        "wish 1e30 0 0 1",
        pytest.param("offer 0.6 0 0 1", marks=LONG),
        pytest.param("offer 0 0 -1.6 1", marks=LONG),
        "offer 0 -0.5 0 1",  # inside the limits, but all at once
    ],
)
def test_what_violates_a_limit_at_the_gate_is_stopped_for(ground: GroundRig, how: str) -> None:
    provoke(ground, lambda: ground.sabotage(how), LIMIT_VIOLATED)
    assert latched(ground) == "limit_violated"


@pytest.mark.parametrize(("kind", "counter"), [("old", "old_epoch"), ("passed", "passed_cycle")])
def test_a_command_of_before_is_dropped_and_counted(ground: GroundRig, kind: str, counter: str) -> None:
    before = counted(ground, counter)
    drives_on(ground, lambda: ground.sabotage(f"cycle {kind}"))
    assert counted(ground, counter) > before


# --- hostile ---


@pytest.mark.alone  # it would starve the daemons of other tests too, and those may not be stopped
def test_a_policy_that_spins_on_every_core_harms_nobody_but_itself(mortal: GroundRig) -> None:
    """It may get late, or starve altogether; what the gate and the controller do goes on, and each stop is told."""
    told = 0

    def spin(before: int) -> int | None:
        nonlocal told
        told = len(mortal.events("stop"))
        mortal.sabotage("spin 0.5")
        mortal.wait_until(lambda: _lasted(mortal, before, 0.5), "commands or STOPs")
        put_right(mortal)
        return next((reason for reason in reasons(mortal, before) if reason not in {*STARVED, CAMERA_LOST}), None)

    before, harm = tried(mortal, spin)
    assert harm is None
    sessions = {timed.frame.session for timed in mortal.read_wire()[before:] if timed.kind == "STOP"}
    mortal.wait_until(lambda: len(mortal.events("stop")) >= told + len(sessions), "record of each stop")
    assert all(record["stage"] for record in mortal.events("stop")[told:])


def _lasted(rig: GroundRig, before: int, for_s: float) -> bool:
    """Commands or STOPs have come for this long."""
    wire = rig.read_wire()
    return wire[-1].at_ns - wire[before - 1].at_ns >= for_s * 1e9


def test_a_policy_has_nothing_of_the_gates_to_write_to(ground: GroundRig) -> None:
    """Neither the port, nor a file of it under another number; and the board cannot be cut off under the gate."""
    port = Path(ground.link).resolve()
    held = [os.readlink(fd) for fd in Path(f"/proc/{ground.policy_pid()}/fd").iterdir()]  # noqa: PTH115 - sockets too
    assert str(port) not in held
    assert str(port) in [os.readlink(fd) for fd in Path(f"/proc/{ground.pid}/fd").iterdir()]  # noqa: PTH115


# --- broken: a new policy process each time ---


def breaks(rig: GroundRig, how: str, *expected: int) -> None:
    """Do it and see the robot stopped until an operator ends that, and the process replaced; then it drives again."""
    pid = rig.policy_pid()
    provoke(rig, lambda: rig.sabotage(how, answered=False), *expected)
    assert latched(rig) in {"policy_lost", "policy_error", "sequence_error"}
    rig.wait_until(lambda: gone(pid), "end of the old process")
    put_right(rig)
    assert rig.policy_pid() != pid


def loses(rig: GroundRig, how: str) -> None:
    """Do something that ends the process: a lost policy, and before it whatever is noticed earlier than its end."""
    put_right(rig)
    before = len(rig.read_wire())
    if how == "SIGKILL":
        os.kill(rig.policy_pid(), signal.SIGKILL)
    else:
        rig.sabotage(how, answered=False)
    rig.wait_until(lambda: POLICY_LOST in reasons(rig, before), "STOP policy_lost")
    assert set(reasons(rig, before)) <= LOST
    assert reasons(rig, before)[-1] == POLICY_LOST
    assert set(until_armed(rig.read_wire()[before:])) <= {"STOP", "HELLO"}
    assert latched(rig) == "policy_lost"


@pytest.mark.meanwhile
def test_an_inference_that_never_returns_is_a_lost_policy(tmp_path: Path, studio: Path) -> None:
    with GroundRig(tmp_path, Scene(None, studio / "steady.toml", 640, 480), pace=BRISK) as rig:
        rig.start_driving(*WORDS, "--set", "safety.policy_dead_after_ms=1300")
        breaks(rig, "compute forever", DEADLINE_MISSED, POLICY_LOST)
        WireJudge().go_on(rig.read_wire())


@pytest.mark.meanwhile
def test_a_policy_process_that_is_broken_is_replaced_and_one_that_keeps_breaking_ends_the_daemon(
    tmp_path: Path, studio: Path
) -> None:
    """Five new processes within a minute, each after a stop that only an operator ends; the sixth end is the daemon's.

    Two of them die with memory to free. None of them is lost by its silence, however busy the machine.
    """
    with GroundRig(tmp_path, Scene(None, studio / "steady.toml", 640, 480), pace=BRISK) as rig:
        rig.start_driving(*WORDS)
        breaks(rig, "raise", POLICY_ERROR)
        breaks(rig, "flood 5000", SEQUENCE_ERROR)
        rig.sabotage("grow 256")
        loses(rig, "board")  # it cannot cut it off, but unmaps it, and crashes at its next stage; the gate has it still
        put_right(rig)
        rig.sabotage("grow 256")
        killed = {rig.policy_pid()}
        loses(rig, "SIGKILL")
        # And such that do not even come to load, again and again: nothing arms any more.
        before = len(rig.read_wire())
        while not gone(rig.pid):
            rig.wait_until(lambda: gone(rig.pid) or bool(_others(rig, killed)), "new process, or the end")
            for pid in _others(rig, killed):
                killed.add(pid)
                os.kill(pid, signal.SIGKILL)
        assert rig.wait() == 70
        assert "The policy process ended 6 times within a minute" in rig.said()
        assert set(reasons(rig, before)) <= {POLICY_LOST, SHUTDOWN}
        assert {timed.kind for timed in rig.read_wire()[before:]} <= {"STOP", "HELLO"}
        WireJudge().go_on(rig.read_wire())


def _others(rig: GroundRig, known: set[int]) -> set[int]:
    try:
        return {rig.policy_pid()} - known
    except (AssertionError, OSError):  # one of its children has ended meanwhile
        return set()


@pytest.fixture
def mortal(tmp_path: Path, studio: Path) -> Iterator[GroundRig]:
    with GroundRig(tmp_path, Scene(None, studio / "steady.toml", 640, 480), pace=BRISK) as rig:
        rig.start_driving(*WORDS)
        yield rig
        WireJudge().go_on(rig.read_wire())


@LONG
@pytest.mark.parametrize("how", ["SIGKILL", "segfault", "exit 3"])
def test_every_way_to_end(mortal: GroundRig, how: str) -> None:
    mortal.sabotage("grow 1024")
    loses(mortal, how)
    put_right(mortal)


@LONG
@pytest.mark.parametrize("how", ["cycle future", "cycle twice", "send 00 1", "send 0505 1"])
def test_every_way_to_say_what_is_never_said(mortal: GroundRig, how: str) -> None:
    breaks(mortal, how, SEQUENCE_ERROR)
