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

from mvla_daemon.config_load import load_config
from mvla_daemon.core.messages import Velocity
from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.lockstep import Lockstep, Unheard
from tests.forgiving import STARVED, TRIES
from tests.proving import (
    CONTROLLER_FAULT,
    CONTROLLER_LOST,
    CONTROLLER_RESET,
    DEADLINE_MISSED,
    FRAME_STALE,
    IS_LONG,
    LONG,
    OPERATOR,
    PORT_LOST,
    Proving,
    drives_on,
    latched,
    provoke,
    stop_record,
    tried,
    until_armed,
)
from tests.rig import ROOT, GroundRig, Rig, Scene, Timed, freeze, reasons, thaw
from tests.wire import WireReader, decode_stream, encode

WATCHDOG_TRIPPED, STOPPED = 4, 3
WATCHDOGS = ("0", "299", "65535") if IS_LONG else ("0",)
FULL_SPEED = "wish 0.4 0 0 1000000"


def drive_fast(rig: GroundRig) -> None:
    rig.sabotage(FULL_SPEED)
    before = len(rig.read_wire())
    rig.wait_until(
        lambda: any(t.kind == "VELOCITY" and t.frame.number("vx") > 390_000 for t in rig.read_wire()[before:]), "speed"
    )


def stops(rig: Rig, after: int) -> list[Timed]:
    return [timed for timed in rig.read_wire()[after:] if timed.kind == "STOP"]


def arm_until(rig: Rig, done: str, is_done: partial[bool]) -> None:
    """Ask for it until this has come of it: on a busy machine an arming can be given up."""
    rig.wait_until(lambda: is_done() or (rig.ask("arm")["ok"] and False), done)


# --- what the controller says ---


@pytest.mark.parametrize(
    ("order", "reason"),
    [
        ("reset", CONTROLLER_RESET),
        ("session 0", CONTROLLER_RESET),
        pytest.param("session 4711", CONTROLLER_RESET, marks=LONG),
        pytest.param("fault 0 on", CONTROLLER_FAULT, marks=LONG),
        ("fault 4 on", CONTROLLER_FAULT),  # the emergency stop's input
        ("fault 5 on", CONTROLLER_FAULT),  # a ttl ran out, though commands go on
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
    ground.order("mute off", "state -", "session -", "fault 5 off")
    assert latched(ground) in {"controller_reset", "controller_fault", "controller_lost"}
    assert set(reasons(ground, len(ground.read_wire()) - 1)) <= {reason, CONTROLLER_FAULT}


@pytest.mark.parametrize("how", [pytest.param("stuck", marks=LONG), "reversed", pytest.param("runaway", marks=LONG)])
@pytest.mark.beside
def test_motion_that_was_not_told_is_a_fault_half_a_second_later(ground: GroundRig, how: str) -> None:
    began_ns = told = 0

    def disobey() -> None:
        nonlocal began_ns, told
        drive_fast(ground)
        told, began_ns = len(ground.events("stop")), time.monotonic_ns()
        ground.order(f"measure {how}")

    def for_its_motion() -> bool:
        return "linear_x" in str(stop_record(ground, told)["event"])

    wire = provoke(ground, disobey, CONTROLLER_FAULT, as_meant=for_its_motion)
    stop = next(timed for timed in wire if timed.kind == "STOP")
    assert stop.at_ns - began_ns >= 500_000_000
    ground.order("measure true")
    assert latched(ground) == "controller_fault"


@pytest.mark.beside
def test_a_watchdog_that_is_not_set_is_never_driven_with(ground: GroundRig) -> None:
    assert ground.ask("stop")["ok"]
    assert latched(ground) == "operator"
    for wrong in WATCHDOGS:
        before, told = len(ground.read_wire()), len(ground.events("stop"))
        ground.order(f"watchdog {wrong}")
        arm_until(ground, "stop", partial(_has_told, ground, told))
        assert latched(ground) == "controller_fault"
        kinds = {timed.kind for timed in ground.read_wire()[before:]}
        assert "ARM" in kinds
        assert "VELOCITY" not in kinds
        assert reasons(ground, before)[-1] == CONTROLLER_FAULT
        assert f"{wrong} ms" in str(ground.events("stop")[-1]["event"])


def _has_told(rig: Rig, stops: int) -> bool:
    return len(rig.events("stop")) > stops


@pytest.mark.beside
def test_a_status_of_an_earlier_session_confirms_nothing(ground: GroundRig) -> None:
    earlier = drives_on(ground)[-1].frame.session
    assert ground.ask("stop")["ok"]
    latched(ground)
    before = len(ground.read_wire())
    ground.order(f"session {earlier}")
    arm_until(ground, "STOP controller_fault", partial(_is_said, ground, before, CONTROLLER_FAULT))
    kinds = [timed.kind for timed in ground.read_wire()[before:]]
    assert "ARM" in kinds
    assert "VELOCITY" not in kinds


def _is_said(rig: Rig, before: int, reason: int) -> bool:
    return reason in reasons(rig, before)


@pytest.mark.beside
def test_a_standstill_that_is_never_reported_removes_the_drive(ground: GroundRig) -> None:
    """stop_timeout_ms is 400 here."""
    wire = provoke(ground, lambda: ground.order("state 2"), CONTROLLER_FAULT)
    before = len(ground.read_wire()) - len(wire)
    ground.wait_until(lambda: any(t.frame.number("category") == 0 for t in stops(ground, before)), "category 0")
    categories = [timed.frame.number("category") for timed in stops(ground, before)]
    assert [category for category, _ in itertools.groupby(categories)] == [1, 0]
    ground.order("state -")
    assert latched(ground) == "controller_fault"


def test_of_two_stops_the_stricter_wins_and_a_recovery_of_the_cause_ends_neither(ground: GroundRig) -> None:
    told = 0

    def stop_twice(before: int) -> int | None:
        """Spoiled where it has armed again before the operator comes."""
        nonlocal told
        told = len(ground.events("stop"))
        pid = ground.policy_pid()
        freeze(pid)
        ground.wait_for("STOP", after=before)
        thaw(pid)  # within a millisecond
        ground.ask("stop")
        assert latched(ground)
        first = reasons(ground, before)[0]
        return None if first == DEADLINE_MISSED and "ARM" not in _kinds(ground, before) else first

    before, _ = tried(ground, stop_twice)
    assert reasons(ground, before) == [DEADLINE_MISSED, OPERATOR]
    assert set(until_armed(ground.read_wire()[before:])) == {"STOP"}
    assert latched(ground) == "operator"
    assert stop_record(ground, told)["reason"] == "deadline_missed"


def _kinds(rig: Rig, before: int) -> set[str]:
    return {timed.kind for timed in rig.read_wire()[before:]}


def test_a_stop_while_arming_ends_the_arming(ground: GroundRig) -> None:
    ground.ask("stop")
    latched(ground)
    for _ in range(TRIES):
        ground.order("mute off")
        ground.wait_until(lambda: not ground.ask("status")["missing"], "standstill")
        before = len(ground.read_wire())
        assert ground.ask("arm")["ok"]
        ground.order("mute on")  # it stops for as long as it reports no standstill, but no longer than stop_timeout_ms
        began_s = time.monotonic()
        assert ground.ask("stop")["ok"]
        refused = ground.ask("arm")
        if not refused["ok"] or time.monotonic() - began_s < 0.4:
            break
        ground.ask("stop")
        latched(ground)
    assert "still stopping" in refused["text"]
    ground.order("mute off")
    latched(ground)
    assert "STOP" in _kinds(ground, before)
    assert "VELOCITY" not in _kinds(ground, before)


# --- the line ---


def test_nothing_is_put_behind_what_nobody_reads(ground: GroundRig) -> None:
    """Neither does it say anything, or it would be first to say that the ttl of the last VELOCITY ran out."""

    def jam(before: int) -> int | None:
        told = len(ground.events("stop"))
        ground.order("mute on", "deaf on")
        stop_record(ground, told)
        ground.order("deaf off", "mute off")
        ground.wait_for("STOP", after=before)
        first = reasons(ground, before)[0]
        return None if first == CONTROLLER_LOST else first

    before, other = tried(ground, jam)
    assert other is None
    held = itertools.takewhile(lambda timed: timed.kind != "STOP", ground.read_wire()[before:])
    assert len([timed for timed in held if timed.kind == "VELOCITY"]) <= 3
    assert latched(ground) in {"controller_lost", "controller_fault"}


def test_nothing_is_put_behind_what_a_driver_has_not_sent_yet(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pty's driver never says that it holds something, so this is at the boundary to it, and in simulated time."""
    drive = Lockstep(
        load_config(ROOT / "config.toml"), make_room(3), None, lambda _: Velocity(0.3), telemetry=Unheard()
    )
    asked = itertools.count()
    monkeypatch.setattr(drive.port, "queued_bytes", lambda: 0 if next(asked) < 10 else 34)
    drive.run()
    wire = [frame for frame in decode_stream(bytes(drive.port.written)) if frame.kind in {"VELOCITY", "STOP"}]
    assert [frame.kind for frame in wire[:11]] == ["VELOCITY"] * 10 + ["STOP"]
    assert {frame.kind for frame in wire[10:]} == {"STOP"}
    assert wire[10].number("reason") == CONTROLLER_LOST


@pytest.mark.beside
def test_over_a_bad_line_no_wrong_frame_is_obeyed_and_a_lost_stop_is_said_again(ground: GroundRig) -> None:
    """The controller is the judge: whatever it accepts was sent; and of the daemon nothing undecodable ever comes."""
    damaged = odd_packets(ground)
    ground.order("corrupt 0.1 7", "lose 0.05 7", "delay 5")
    ground.wait_until(lambda: odd_packets(ground) > damaged, "damage")
    ground.order("corrupt 0.5 8", "lose 0.5 8")
    before = len(ground.read_wire())
    ground.ask("stop")
    ground.wait_until(lambda: ground.statuses()[-1].number("state") != 1, "end of motion")
    ground.wait_for("STOP", after=before, count=4)
    ground.order("corrupt 0 0", "lose 0 0", "delay 0")
    latched(ground)
    taken = {status.number("host_seq") for status in ground.statuses()} - {0}
    assert taken <= {timed.frame.seq for timed in ground.read_wire()}


def odd_packets(rig: Rig) -> int:
    """How many the daemon has counted."""
    counts = rig.ask("status")["link"]
    return sum(count for name, count in counts.items() if name.startswith("odd_"))


def test_a_second_talker_is_noticed(ground: GroundRig) -> None:
    """Somebody else's frame was taken, says the controller: one with a number that we have not come to."""

    def talk(before: int) -> bool:
        newest = ground.statuses()[-1]
        ahead = {
            "host_seq": newest.number("host_seq") + 1_000_000,
            "uptime_ms": newest.number("uptime_ms") + 10 * 20,
        }
        said = encode("STATUS", newest.session, newest.seq + 10, **{**newest.fields, **ahead})
        ground.order(f"say {said.hex()}")
        return "STOP" in _kinds(ground, before)

    def talk_until_noticed() -> None:
        before = len(ground.read_wire())
        ground.wait_until(lambda: talk(before), "STOP")

    provoke(ground, talk_until_noticed, CONTROLLER_FAULT)


def test_what_a_controller_said_long_ago_is_taken_for_a_reset(ground: GroundRig) -> None:
    def say() -> None:
        newest = ground.statuses()[-1]
        ago = {"uptime_ms": newest.number("uptime_ms") - 600}
        ground.order(f"say {encode('STATUS', newest.session, newest.seq - 30, **{**newest.fields, **ago}).hex()}")

    provoke(ground, say, CONTROLLER_RESET)


@pytest.mark.skipif(os.geteuid() != 0, reason="the port is kept from everybody but root")
@pytest.mark.beside
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
    def say_again() -> None:
        newest = ground.statuses()[-1]
        again = encode("STATUS", newest.session, newest.seq, **newest.fields)  # old news, and no harm
        ground.order(*[f"say {byte:02x}" for byte in again])

    drives_on(ground, say_again)


# --- the port ---


@pytest.mark.beside
def test_a_port_that_is_unplugged_is_asked_who_it_is_when_it_comes_back(ground: GroundRig) -> None:
    before = len(ground.read_wire())
    ground.unplug()
    assert latched(ground) == "port_lost"
    assert set(reasons(ground, before)) <= STARVED.keys()  # nobody was there to hear of the port
    ground.wait_until(lambda: ground.statuses()[-1].number("state") == WATCHDOG_TRIPPED, "trip of the watchdog")
    assert [ground.statuses()[-1].number(axis) for axis in ("vx", "vy", "wz")] == [0, 0, 0]
    before = len(ground.read_wire())
    taken = os.openpty()  # the number that the port had
    ground.plug_in()
    for fd in taken:
        os.close(fd)
    ground.wait_for("STOP", after=before)
    wire = ground.read_wire()[before:]
    kinds = [kind for kind, _ in itertools.groupby(timed.kind for timed in wire)]
    assert kinds == ["HELLO", "STOP"]
    assert set(reasons(ground, before)) == {PORT_LOST}


@pytest.mark.parametrize("first", ["camera", pytest.param("port", marks=LONG)])
@pytest.mark.beside
def test_a_hub_that_resets_is_a_lost_port_in_whatever_order_things_come_back(ground: GroundRig, first: str) -> None:
    before = len(ground.read_wire())
    ground.order("camera gone")
    ground.unplug()
    ground.wait_until(lambda: ground.ask("status")["reason"] == "port_lost", "loss of the port")
    assert set(reasons(ground, before)) <= {FRAME_STALE, DEADLINE_MISSED}
    before = len(ground.read_wire())
    if first == "camera":
        ground.order("camera back")
        ground.plug_in()
    else:
        ground.plug_in()
        ground.wait_for("STOP", after=before)
        ground.order("camera back")
    assert latched(ground) == "port_lost"
    ground.wait_until(lambda: reasons(ground, before) != [], "STOP")
    assert reasons(ground, before) == [PORT_LOST]


LIMITS = {"watchdog_min_ms": 20, "watchdog_max_ms": 1000, "decel_mm_s2": 2000, "decel_mrad_s2": 8000}


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
            with suppress(BlockingIOError):  # nobody has opened the other end yet, or nothing was said
                os.write(ours, b"$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47\r\n")
            with suppress(BlockingIOError):
                data = os.read(ours, 4096)
                heard.append(data)
                os.write(ours, b"AT\r\nOK\r\n\0" + data)
                for hello in reader.feed(data):
                    nonce = hello.number("nonce") ^ 1
                    os.write(ours, encode("IDENTITY", 0, 1, nonce=nonce, name=b"x", fw_major=1, fw_minor=0, **LIMITS))

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield os.ttyname(theirs), heard
    finally:
        over.set()
        thread.join()
        with suppress(BlockingIOError):  # what came since it last listened
            heard.append(os.read(ours, 65536))
        os.close(ours)
        os.close(theirs)


@pytest.mark.meanwhile
def test_to_something_else_only_hello_is_said(tmp_path: Path, scene: Scene) -> None:
    with chatter() as (port, heard), Rig(tmp_path, scene, port=port) as rig:
        done = rig.tell("--for", "15", "--set", "motor.identify_timeout_s=1.5")
    assert done.returncode == 69
    assert "did not identify itself" in done.stderr
    assert "1.5 s" in done.stderr
    frames = WireReader().feed(b"".join(heard))
    assert len(frames) > 1
    assert {frame.kind for frame in frames} == {"HELLO"}


def test_a_board_that_boots_is_waited_for(ground: GroundRig, proving: Proving) -> None:
    """The first daemon of the proving ground had to, and said nothing but HELLO, every 200 ms."""
    drives_on(ground)
    assert len(proving.heard_booting) >= 4
    assert {timed.kind for timed in proving.heard_booting} == {"HELLO"}


@LONG
def test_a_board_that_boots_for_three_seconds_is_waited_for(tmp_path: Path, studio: Path) -> None:
    with GroundRig(tmp_path, Scene(None, studio / "steady.toml", 640, 480)) as rig:
        rig.order("mute on")
        rig.start()
        rig.wait_for("HELLO", count=15)
        assert {timed.kind for timed in rig.read_wire()} == {"HELLO"}
        rig.order("mute off")
        rig.wait_for("VELOCITY")
