"""Faults of the serial line and of the motor controller, each in the middle of a drive, judged at the far end."""

from __future__ import annotations

import itertools
import os
import threading
import time
import tty
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import pytest

from tests.proving import (
    CAMERA_LOST,
    CONTROLLER_FAULT,
    CONTROLLER_LOST,
    CONTROLLER_RESET,
    DEADLINE_MISSED,
    FRAME_STALE,
    IS_LONG,
    LONG,
    OPERATOR,
    PORT_LOST,
    drives_on,
    provoke,
)
from tests.rig import GroundRig, Rig, Scene, Timed, freeze, reasons, thaw
from tests.wire import WireReader, encode

STOPPED = 3
WATCHDOGS = ("0", "299", "65535") if IS_LONG else ("0",)
FULL_SPEED = "wish 0.4 0 0 1000000"


def latched(rig: GroundRig) -> str:
    rig.wait_until(lambda: rig.ask("status")["state"] == "latched", "latch")
    return str(rig.ask("status")["reason"])


def _told_of(rig: GroundRig, stops: int) -> bool:
    return len(rig.events("stop")) >= stops


def drive_fast(rig: GroundRig) -> None:
    rig.sabotage(FULL_SPEED)
    before = len(rig.read_wire())
    rig.wait_until(
        lambda: any(t.kind == "VELOCITY" and t.frame.number("vx") > 390_000 for t in rig.read_wire()[before:]), "speed"
    )


# --- what the controller says ---


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ("reset", CONTROLLER_RESET),
        ("session 0", CONTROLLER_RESET),
        pytest.param("session 4711", CONTROLLER_RESET, marks=LONG),
        pytest.param("fault 0 on", CONTROLLER_FAULT, marks=LONG),
        ("fault 4 on", CONTROLLER_FAULT),  # the emergency stop's input
        ("trip", CONTROLLER_FAULT),
        pytest.param("state 0", CONTROLLER_FAULT, marks=LONG),
        ("state 3", CONTROLLER_FAULT),
        pytest.param("state 5", CONTROLLER_FAULT, marks=LONG),
        pytest.param("state 77", CONTROLLER_FAULT, marks=LONG),
        ("mute on", CONTROLLER_LOST),
    ],
)
def test_what_a_controller_must_not_say_is_stopped_for_and_latched(ground: GroundRig, order: str, reason: int) -> None:
    provoke(ground, lambda: ground.order(order), reason)
    ground.order("mute off")
    assert latched(ground) in {"controller_reset", "controller_fault", "controller_lost"}
    assert set(reasons(ground, len(ground.read_wire()) - 1)) <= {reason, CONTROLLER_FAULT}


def test_a_ttl_that_ran_out_by_itself_is_a_fault_of_the_controller(ground: GroundRig) -> None:
    """Commands go on, so there is nothing that it could have run out for."""
    ground.order("fault 5 on")
    ground.wait_until(lambda: ground.ask("status")["state"] != "armed", "stop")
    ground.order("fault 5 off")
    assert latched(ground) == "controller_fault"


@pytest.mark.parametrize("how", ["stuck", "reversed", pytest.param("runaway", marks=LONG)])
def test_motion_that_was_not_told_is_a_fault_half_a_second_later(ground: GroundRig, how: str) -> None:
    drive_fast(ground)
    began_ns = time.monotonic_ns()
    wire = provoke(ground, lambda: ground.order(f"measure {how}"), CONTROLLER_FAULT)
    stop = next(timed for timed in wire if timed.kind == "STOP")
    assert stop.at_ns - began_ns >= 500_000_000
    assert "linear_x" in str(ground.events("stop")[-1]["event"])
    ground.order("measure true")
    assert latched(ground) == "controller_fault"
    ground.sabotage("wish 0 0 0 0")


def test_a_watchdog_that_is_not_set_is_never_driven_with(ground: GroundRig) -> None:
    assert ground.ask("stop")["ok"]
    assert latched(ground) == "operator"
    told = len(ground.events("stop"))
    for number, wrong in enumerate(WATCHDOGS, 1):
        before = len(ground.read_wire())
        ground.order(f"watchdog {wrong}")
        assert ground.ask("arm")["ok"]
        ground.wait_until(partial(_told_of, ground, told + number), "stop")
        assert latched(ground) == "controller_fault"
        kinds = {timed.kind for timed in ground.read_wire()[before:]}
        assert "ARM" in kinds
        assert "VELOCITY" not in kinds
        assert reasons(ground, before)[-1] == CONTROLLER_FAULT
        assert f"{wrong} ms" in str(ground.events("stop")[-1]["event"])
    ground.order("watchdog -")
    ground.arm()


def test_a_status_of_an_earlier_session_confirms_nothing(ground: GroundRig) -> None:
    (earlier,) = {timed.frame.session for timed in drives_on(ground)}
    assert ground.ask("stop")["ok"]
    latched(ground)
    before = len(ground.read_wire())
    ground.order(f"session {earlier}")
    assert ground.ask("arm")["ok"]
    ground.wait_until(lambda: CONTROLLER_FAULT in reasons(ground, before), "STOP controller_fault")
    kinds = [timed.kind for timed in ground.read_wire()[before:]]
    assert "ARM" in kinds
    assert "VELOCITY" not in kinds


def test_a_standstill_that_is_never_reported_removes_the_drive(ground: GroundRig) -> None:
    """stop_timeout_ms is 400 here."""
    ground.order("state 2")
    before = len(ground.read_wire())
    ground.wait_until(lambda: reasons(ground, before)[:1] == [CONTROLLER_FAULT], "STOP controller_fault")
    ground.wait_until(lambda: any(t.frame.number("category") == 0 for t in stops(ground, before)), "category 0")
    categories = [timed.frame.number("category") for timed in stops(ground, before)]
    assert [category for category, _ in itertools.groupby(categories)] == [1, 0]
    ground.order("state -")
    assert latched(ground) == "controller_fault"


def stops(rig: Rig, after: int) -> list[Timed]:
    return [timed for timed in rig.read_wire()[after:] if timed.kind == "STOP"]


def test_of_two_stops_the_stricter_wins_and_a_recovery_of_the_cause_ends_neither(ground: GroundRig) -> None:
    pid = ground.policy_pid()
    before = len(ground.read_wire())
    freeze(pid)
    ground.wait_for("STOP", after=before)
    thaw(pid)  # within a millisecond
    ground.ask("stop")
    ground.wait_until(lambda: reasons(ground, before) == [DEADLINE_MISSED, OPERATOR], "STOP operator")
    assert latched(ground) == "operator"
    kinds = [timed.kind for timed in ground.read_wire()[before:]]
    assert "VELOCITY" not in itertools.dropwhile(lambda kind: kind != "STOP", kinds)
    assert "deadline_missed" in str(ground.events("stop")[-1]["reason"])


def test_a_stop_while_arming_ends_the_arming(ground: GroundRig) -> None:
    ground.ask("stop")
    latched(ground)
    before = len(ground.read_wire())
    assert ground.ask("arm")["ok"]
    assert ground.ask("stop")["ok"]
    refused = ground.ask("arm")
    assert not refused["ok"]
    assert "still stopping" in refused["text"]
    latched(ground)
    kinds = {timed.kind for timed in ground.read_wire()[before:]}
    assert "STOP" in kinds
    assert "VELOCITY" not in kinds


# --- the line ---


def test_nothing_is_put_behind_what_nobody_reads(ground: GroundRig) -> None:
    told = len(ground.events("stop"))
    before = len(ground.read_wire())
    ground.order("deaf on")
    ground.wait_until(lambda: len(ground.events("stop")) > told, "stop")
    ground.order("deaf off")
    ground.wait_for("STOP", after=before)
    # Deaf as it is, it says that the ttl of the last VELOCITY ran out; either may be noticed first.
    assert reasons(ground, before)[0] in {CONTROLLER_LOST, CONTROLLER_FAULT}
    held = itertools.takewhile(lambda timed: timed.kind != "STOP", ground.read_wire()[before:])
    assert len([timed for timed in held if timed.kind == "VELOCITY"]) <= 3


def test_over_a_bad_line_no_wrong_frame_is_obeyed_and_a_lost_stop_is_said_again(ground: GroundRig) -> None:
    """The controller is the judge: whatever it accepts was sent; and of the daemon nothing undecodable ever comes."""
    for order in ("corrupt 0.02 7", "lose 0.05 7", "delay 5"):
        ground.order(order)
    time.sleep(0.5)
    ground.order("corrupt 0.5 8")
    ground.order("lose 0.5 8")
    before = len(ground.read_wire())
    ground.ask("stop")
    ground.wait_until(lambda: ground.statuses()[-1].number("state") != 1, "end of motion")
    ground.wait_for("STOP", after=before)
    for order in ("corrupt 0 0", "lose 0 0", "delay 0"):
        ground.order(order)
    latched(ground)
    sent = {timed.frame.seq for timed in ground.read_wire()}
    assert {status.number("host_seq") for status in ground.statuses()} - {0} <= sent
    counts = ground.ask("status")["link"]
    assert any(name.startswith("odd_") for name in counts)


def test_a_second_talker_is_noticed(ground: GroundRig) -> None:
    """Somebody else's frame was taken, says the controller: one with a number that we have not come to."""
    newest = ground.statuses()[-1]
    fields = {**newest.fields, "host_seq": newest.number("host_seq") + 1_000_000}
    said = encode("STATUS", newest.session, newest.seq + 3, **fields)
    provoke(ground, lambda: ground.order(f"say {said.hex()}"), CONTROLLER_FAULT)


def test_what_a_controller_said_long_ago_is_taken_for_a_reset(ground: GroundRig) -> None:
    newest = ground.statuses()[-1]
    fields = {**newest.fields, "uptime_ms": newest.number("uptime_ms") - 600}
    said = encode("STATUS", newest.session, newest.seq - 30, **fields)
    provoke(ground, lambda: ground.order(f"say {said.hex()}"), CONTROLLER_RESET)


@pytest.mark.skipif(os.geteuid() != 0, reason="the port is kept from everybody but root")
def test_an_arming_and_a_drive_that_are_played_back_move_nothing(ground: GroundRig) -> None:
    """A second talker on the daemon's side of the wire: what was recorded there, once more, while the robot stands."""
    drives_on(ground)
    wire = ground.read_wire()
    recorded = wire[max(i for i, timed in enumerate(wire) if timed.kind == "ARM") :]
    played = b"".join(
        encode(timed.kind, timed.frame.session, timed.frame.seq, **timed.frame.fields)
        for timed in recorded
        if timed.kind in {"ARM", "VELOCITY"}
    )
    assert ground.ask("stop")["ok"]
    latched(ground)
    before, told = len(ground.read_wire()), len(ground.statuses())
    port = os.open(ground.link, os.O_WRONLY | os.O_NOCTTY)
    os.write(port, played)
    os.close(port)
    ground.wait_until(lambda: len(ground.statuses()) > told + 10, "STATUS")
    ground.wait_until(lambda: "VELOCITY" in {timed.kind for timed in ground.read_wire()[before:]}, "playing")
    for status in ground.statuses()[told:]:
        assert status.number("state") == STOPPED
        assert [status.number(axis) for axis in ("vx", "vy", "wz")] == [0, 0, 0]
    assert ground.ask("status")["state"] == "latched"
    del ground.wire[before:]  # not the daemon's


def test_one_byte_at_a_time_is_as_good_as_a_frame(ground: GroundRig) -> None:
    newest = ground.statuses()[-1]
    again = encode("STATUS", newest.session, newest.seq, **newest.fields)  # old news, and no harm
    drives_on(ground, lambda: [ground.order(f"say {byte:02x}") for byte in again])


# --- the port ---


def test_a_port_that_is_unplugged_is_asked_who_it_is_when_it_comes_back(ground: GroundRig) -> None:
    before = len(ground.read_wire())
    ours, theirs = os.openpty()  # takes the number that the port had
    try:
        ground.order("hang_up")
        assert latched(ground) == "port_lost"
        assert reasons(ground, before) == []  # nobody was there to hear
        other = os.openpty()
        before = len(ground.read_wire())
        ground.plug_in()
        ground.wait_for("STOP", after=before)
        for fd in other:
            os.close(fd)
    finally:
        os.close(ours)
        os.close(theirs)
    wire = ground.read_wire()[before:]
    kinds = [kind for kind, _ in itertools.groupby(timed.kind for timed in wire)]
    assert kinds == ["HELLO", "STOP"]
    assert set(reasons(ground, before)) == {PORT_LOST}
    ground.arm()


@pytest.mark.parametrize("first", ["camera", pytest.param("port", marks=LONG)])
def test_a_hub_that_resets_is_a_lost_port_in_whatever_order_things_come_back(ground: GroundRig, first: str) -> None:
    before = len(ground.read_wire())
    ground.order("camera gone")
    ground.order("hang_up")
    ground.wait_until(lambda: ground.ask("status")["reason"] == "port_lost", "loss of the port")
    assert set(reasons(ground, before)) <= {FRAME_STALE}
    if first == "camera":
        ground.order("camera back")
        ground.plug_in()
    else:
        ground.plug_in()
        ground.wait_for("STOP", after=before)
        ground.order("camera back")
    assert latched(ground) == "port_lost"
    ground.wait_until(lambda: PORT_LOST in reasons(ground, before), "STOP port_lost")
    assert CAMERA_LOST not in reasons(ground, before)
    ground.arm()


@contextmanager
def chatter() -> Iterator[tuple[str, list[bytes]]]:
    """A port with something else behind it, which talks as a GPS, echoes as a modem, and answers with a wrong nonce."""
    ours, theirs = os.openpty()
    tty.setraw(ours)
    tty.setraw(theirs)
    heard: list[bytes] = []
    over = threading.Event()

    def talk() -> None:
        reader = WireReader()
        os.set_blocking(ours, False)
        while not over.wait(0.02):
            os.write(ours, b"$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47\r\n")
            with suppress(BlockingIOError):
                data = os.read(ours, 4096)
                heard.append(data)
                os.write(ours, b"AT\r\nOK\r\n\0" + data)
                for hello in reader.feed(data):
                    limits = {
                        "watchdog_min_ms": 20,
                        "watchdog_max_ms": 1000,
                        "decel_mm_s2": 2000,
                        "decel_mrad_s2": 8000,
                    }
                    nonce = hello.number("nonce") ^ 1
                    os.write(ours, encode("IDENTITY", 0, 1, nonce=nonce, name=b"x", fw_major=1, fw_minor=0, **limits))

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield os.ttyname(theirs), heard
    finally:
        over.set()
        thread.join()
        os.close(ours)
        os.close(theirs)


def test_to_something_else_only_hello_is_said(tmp_path: Path, scene: Scene) -> None:
    with chatter() as (port, heard), Rig(tmp_path, scene, port=port) as rig:
        done = rig.tell("--for", "8", "--set", "motor.identify_timeout_s=1.5")
    assert done.returncode == 69
    assert "did not identify itself" in done.stderr
    assert "1.5 s" in done.stderr
    frames = WireReader().feed(b"".join(heard))
    assert len(frames) > 5
    assert {frame.kind for frame in frames} == {"HELLO"}


def test_a_board_that_boots_for_seconds_is_waited_for(tmp_path: Path, studio: Path) -> None:
    """And said nothing but HELLO meanwhile."""
    with GroundRig(tmp_path, Scene(None, studio / "steady.toml", 640, 480)) as rig:
        rig.order("mute on")
        rig.start()
        rig.wait_until(lambda: bool(rig.events("policy_ready")), "policy")
        hellos = 15 if IS_LONG else 8  # one every 200 ms
        rig.wait_until(lambda: len(rig.read_wire()) >= hellos, "HELLO")
        assert {timed.kind for timed in rig.read_wire()} == {"HELLO"}
        rig.order("mute off")
        rig.wait_for("VELOCITY")
