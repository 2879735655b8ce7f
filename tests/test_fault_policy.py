"""Faults of the policy process, each in the middle of a drive, judged by what arrives at the motor controller."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.proving import (
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
    drives_on,
    provoke,
    the_wire_is_right,
)
from tests.rig import BRISK, GroundRig, Scene, Timed, freeze, gone, reasons, thaw


def counted(rig: GroundRig, name: str) -> int:
    return int(rig.ask("status")["counts"].get(name, 0))


def latched(rig: GroundRig) -> str:
    rig.wait_until(lambda: rig.ask("status")["state"] == "latched", "latch")
    return str(rig.ask("status")["reason"])


def after_the_stop(wire: list[Timed]) -> list[str]:
    at = next(i for i, timed in enumerate(wire) if timed.kind == "STOP")
    return [timed.kind for timed in wire[at:]]


# --- too late ---


@pytest.mark.parametrize("longer_ms", [51, pytest.param(100, marks=LONG), 400])
def test_an_inference_that_takes_too_long_is_stopped_for_and_its_result_dropped(
    ground: GroundRig, longer_ms: int
) -> None:
    before, told = counted(ground, "abandoned_cycle"), len(ground.events("stop"))
    wire = provoke(ground, lambda: ground.sabotage(f"compute {longer_ms}"), DEADLINE_MISSED)
    assert "VELOCITY" not in after_the_stop(wire)
    assert counted(ground, "abandoned_cycle") > before
    ground.wait_until(lambda: len(ground.events("stop")) > told, "record")
    record = ground.events("stop")[-1]
    assert (record["reason"], record["stage"]) == ("deadline_missed", "compute")
    assert 0 < int(str(record["duration_us"])) < 1_000_000


@pytest.mark.parametrize("how", ["loop 200", "gil 200"])
def test_a_loop_that_is_blocked_or_a_lock_that_is_held_is_stopped_for(ground: GroundRig, how: str) -> None:
    told = len(ground.events("stop"))
    wire = provoke(ground, lambda: ground.sabotage(how), DEADLINE_MISSED)
    assert "VELOCITY" not in after_the_stop(wire)
    ground.wait_until(lambda: len(ground.events("stop")) > told, "record")
    assert "stage" in ground.events("stop")[-1]


def test_a_recovery_within_a_millisecond_takes_no_stop_back(ground: GroundRig) -> None:
    pid = ground.policy_pid()
    told = len(ground.events("stop"))
    before = len(ground.read_wire())
    counted_before = ground.ask("status")["stops_in_window"]
    freeze(pid)
    ground.wait_for("STOP", after=before)
    thaw(pid)
    ground.wait_for("ARM", after=before)
    kinds = after_the_stop(ground.read_wire()[before:])
    assert "VELOCITY" not in kinds[: kinds.index("ARM")]
    assert [event["reason"] for event in ground.events("stop")[told:]] == ["deadline_missed"]
    assert ground.ask("status")["stops_in_window"] == counted_before + 1


@pytest.mark.parametrize("kind", ["early", "late"])
def test_a_lie_about_a_start_only_tightens_the_deadline(ground: GroundRig, kind: str) -> None:
    provoke(ground, lambda: ground.sabotage(f"start {kind}"), DEADLINE_MISSED)


def test_a_start_in_the_future_begins_when_it_is_received(ground: GroundRig) -> None:
    drives_on(ground, lambda: ground.sabotage("start future"))


def test_commands_from_one_old_picture_are_stale(ground: GroundRig) -> None:
    told = len(ground.events("stop"))
    provoke(ground, lambda: ground.sabotage("stale on"), FRAME_STALE)
    ground.wait_until(lambda: len(ground.events("stop")) > told, "record")
    ground.sabotage("stale off")
    ground.arm()


# --- wrong ---


@pytest.mark.parametrize("wish", ["nan 0 0", "0 inf 0", pytest.param("0 0 -inf", marks=LONG)])
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
    ground.sabotage("wish 0 0 0 0")
    assert {timed.kind for timed in ground.read_wire()[before:]} <= {"HELLO", "STOP"}


def test_a_denormal_number_is_zero(ground: GroundRig) -> None:
    ground.sabotage("wish 1e-40 -1e-40 5e-324 1000000")
    time.sleep(0.2)
    drive = drives_on(ground)
    assert {timed.frame.number(axis) for timed in drive for axis in ("vx", "vy", "wz")} == {0}
    ground.sabotage("wish 0 0 0 0")


def test_up_to_ten_times_a_limit_is_clamped_and_comes_no_faster_than_allowed(ground: GroundRig) -> None:
    """Limits and accelerations of every number are judged by the fixture, for all that was written."""
    ground.sabotage("wish 4.9 -4.9 14 1000000")
    before = len(ground.read_wire())
    at_the_limits = {"vx": 500_000, "vy": -500_000, "wz": 1_500_000}

    def reached() -> bool:
        newest = [timed.frame for timed in ground.read_wire()[before:] if timed.kind == "VELOCITY"][-1:]
        return bool(newest) and all(newest[0].number(axis) == value for axis, value in at_the_limits.items())

    ground.wait_until(reached, "limits")
    for turn in range(12):  # about one cycle each
        ground.sabotage(f"wish {4.9 * (-1) ** turn} 0 0 1000000")
        time.sleep(0.05)
    drive = drives_on(ground)
    ground.sabotage("wish 0 0 0 0")
    assert reasons(ground, before) == []
    values = [timed.frame.number("vx") for timed in ground.read_wire()[before:] if timed.kind == "VELOCITY"]
    assert any(a > 0 >= b for a, b in pairwise(values))
    assert drive


@pytest.mark.parametrize(
    "how", ["wish 1e30 0 0 1", "offer 0.6 0 0 1", pytest.param("offer 0 0 -1.6 1", marks=LONG), "offer 0 -0.5 0 1"]
)
def test_what_violates_a_limit_at_the_gate_is_stopped_for(ground: GroundRig, how: str) -> None:
    """The last one is inside the limits but comes at once."""
    provoke(ground, lambda: ground.sabotage(how), LIMIT_VIOLATED)
    assert latched(ground) == "limit_violated"


@pytest.mark.parametrize(("kind", "counter"), [("old", "old_epoch"), ("passed", "passed_cycle")])
def test_a_command_of_before_is_dropped_and_counted(ground: GroundRig, kind: str, counter: str) -> None:
    before = counted(ground, counter)
    drives_on(ground, lambda: ground.sabotage(f"cycle {kind}"))
    assert counted(ground, counter) > before


# --- hostile ---


def test_a_policy_that_spins_on_every_core_misses_at_most_its_own_deadlines(ground: GroundRig) -> None:
    told = len(ground.events("stop"))
    before = len(ground.read_wire())
    ground.sabotage("spin 1")
    time.sleep(1)
    assert set(reasons(ground, before)) <= {DEADLINE_MISSED, FRAME_STALE}
    ground.arm()
    sessions = {timed.frame.session for timed in ground.read_wire()[before:] if timed.kind == "STOP"}
    blamed = ground.events("stop")[told:]
    assert len(blamed) >= len(sessions)
    assert all(record["stage"] and record["reason"] in {"deadline_missed", "frame_stale"} for record in blamed)


def test_a_policy_has_nothing_of_the_gates_to_write_to(ground: GroundRig) -> None:
    """Neither the port, nor a file of it under another number; and the board cannot be cut off under the gate."""
    port = Path(ground.link).resolve()
    held = [os.readlink(fd) for fd in Path(f"/proc/{ground.policy_pid()}/fd").iterdir()]  # noqa: PTH115 - sockets too
    assert str(port) not in held
    assert str(port) in [os.readlink(fd) for fd in Path(f"/proc/{ground.pid}/fd").iterdir()]  # noqa: PTH115


# --- broken: a new policy process each time ---


@pytest.fixture
def mortal(tmp_path: Path, studio: Path) -> Iterator[GroundRig]:
    with GroundRig(tmp_path, Scene(None, studio / "steady.toml", 640, 480), pace=BRISK) as rig:
        rig.start_driving(*WORDS)
        yield rig
        the_wire_is_right(rig.read_wire())


def dies(rig: GroundRig, how: str, *expected: int) -> None:
    """Do it, see the robot stopped for good, and have it drive with a new policy process."""
    pid = rig.policy_pid()
    told = len(rig.events("policy_ready"))
    wire = provoke(rig, lambda: rig.sabotage(how, answered=False), *expected)
    assert "VELOCITY" not in after_the_stop(wire)
    assert latched(rig) in {"policy_lost", "policy_error", "sequence_error"}
    rig.wait_until(lambda: gone(pid), "end of the old process")
    rig.wait_until(lambda: len(rig.events("policy_ready")) > told, "new process")
    before = len(rig.read_wire())
    assert reasons(rig, before) in ([], [expected[-1]])
    assert "ARM" not in {timed.kind for timed in wire}
    rig.arm()


def test_a_policy_process_that_is_broken_is_replaced_and_one_that_keeps_breaking_ends_the_daemon(
    mortal: GroundRig,
) -> None:
    """Five new ones within a minute, each after a stop that only an operator ends; the sixth end is the daemon's."""
    dies(mortal, "raise", POLICY_ERROR)
    dies(mortal, "flood 5000", SEQUENCE_ERROR)
    mortal.sabotage("grow 256")
    mortal.sabotage("board", answered=False)  # it crashes at its next stage; the gate has the board still
    mortal.wait_until(lambda: mortal.ask("status")["state"] == "latched", "latch")
    mortal.wait_until(lambda: len(mortal.events("policy_ready")) == 4, "new process")
    assert POLICY_LOST in reasons(mortal)
    mortal.arm()
    # And one that does not even come to load, again and again: nothing arms, and after the fifth that is the end.
    assert mortal.ask("status")["policy_restarts"] == 3  # one for each
    before = len(mortal.read_wire())
    killed: set[int] = set()
    while len(killed) < 3:
        mortal.wait_until(lambda: _another(mortal, killed), "new process")
        pid = mortal.policy_pid()
        killed.add(pid)
        os.kill(pid, signal.SIGKILL)
    assert mortal.wait() == 70
    assert "The policy process ended 6 times within a minute" in mortal.said()
    wire = mortal.read_wire()[before:]
    assert "ARM" not in {timed.kind for timed in wire}
    assert "VELOCITY" not in after_the_stop(wire)
    assert set(reasons(mortal, before)) <= {DEADLINE_MISSED, POLICY_LOST, SHUTDOWN}


def _another(rig: GroundRig, known: set[int]) -> bool:
    try:
        return rig.policy_pid() not in known
    except (AssertionError, FileNotFoundError):
        return False


def test_an_inference_that_never_returns_is_a_lost_policy(mortal: GroundRig) -> None:
    """And a process that is killed while it has memory to free is not waited for."""
    dies(mortal, "compute forever", DEADLINE_MISSED, POLICY_LOST)
    mortal.sabotage("grow 512")
    pid = mortal.policy_pid()
    provoke(mortal, lambda: os.kill(pid, signal.SIGKILL), POLICY_LOST)
    assert latched(mortal) == "policy_lost"


@LONG
@pytest.mark.parametrize(
    ("how", "expected"),
    [
        ("compute forever", (DEADLINE_MISSED, POLICY_LOST)),
        ("segfault", (POLICY_LOST,)),
        ("exit 3", (POLICY_LOST,)),
        ("cycle future", (SEQUENCE_ERROR,)),
        ("cycle twice", (SEQUENCE_ERROR,)),
        ("send 00 1", (SEQUENCE_ERROR,)),
        ("send 0505 1", (SEQUENCE_ERROR,)),
    ],
)
def test_every_way_to_break(mortal: GroundRig, how: str, expected: tuple[int, ...]) -> None:
    dies(mortal, how, *expected)
