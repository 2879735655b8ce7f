"""The whole daemon in simulated time: the same bytes each time, the same stops as in real time, and no way back."""

from __future__ import annotations

import math
import re
import socket
import subprocess
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvla_daemon.config_load import load_config
from mvla_daemon.core.messages import Velocity
from mvla_daemon.engines.base import EngineError
from mvla_daemon.errors import DaemonError
from mvla_daemon.ops.telemetry import Telemetry, unpack_record
from mvla_daemon.sim.expert import expert
from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.lockstep import Lockstep
from mvla_daemon.sim.lockstep_run import run_lockstep
from mvla_daemon.sim.room import Side
from mvla_daemon.sim.timeline import Timeline
from mvla_daemon.sim.world import Outcome
from tests.rig import ROOT, command, environment
from tests.wire import WireFrame, WireReader

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from mvla_daemon.cameras.slot import Frame
    from mvla_daemon.config import Config

SECOND = 1_000_000_000
NOT_FINITE, LIMIT_VIOLATED, POLICY_ERROR, SHUTDOWN = 5, 6, 8, 14
STOPPING, STOPPED = 2, 3
OK, TRY_AGAIN, NO_PERMISSION = 0, 75, 77
TOLD = "go to the cup, pass the box on its left"
SEED = 16
"""A short way: 8 s."""
BOX_AHEAD = 179
"""Here the box is straight ahead."""
CALM = """\
[control]
rate_hz = 10
deadline_ms = 100
max_frame_age_ms = 500
[camera]
source = "sim://"
fps = 10
[policy]
manifest = "bundled:cup"
instruction = "go to the cup, pass the box on its left"
[motor]
port = "sim://"
watchdog_ms = 500
[safety]
arm = "auto"
recover_cycles = 5
[sim]
seed = 16
[log]
format = "json"
"""
"""Ten pictures a second: what is painted is what takes time here."""


@pytest.fixture
def config(tmp_path: Path) -> Config:
    path = tmp_path / "config.toml"
    path.write_text(CALM)
    return load_config(path)


def with_values(config: Config, *overrides: str) -> Config:
    return load_config(config.path, overrides)


def expert_drive(config: Config, seed: int = SEED, side: Side = Side.LEFT) -> Lockstep:
    room = make_room(seed)
    drive = Lockstep(config, room, side, lambda _: expert(room, drive.robot.world.pose, side))
    return drive


def drive_by(config: Config, think: Callable[[int], Velocity], seed: int = SEED) -> Lockstep:
    """A drive by what `think` says of the number of thoughts before."""
    thoughts: list[Frame] = []

    def count(frame: Frame) -> Velocity:
        thoughts.append(frame)
        return think(len(thoughts) - 1)

    return Lockstep(config, make_room(seed), None, count)


def decoded(data: bytes | bytearray) -> list[WireFrame]:
    reader = WireReader()
    frames = reader.feed(bytes(data))
    assert reader.undecodable == []
    return frames


def kinds(drive: Lockstep) -> list[str]:
    """What the gate said, repetitions and KEEPALIVE left out."""
    said = [frame.kind for frame in decoded(drive.port.written) if frame.kind != "KEEPALIVE"]
    return [kind for i, kind in enumerate(said) if i == 0 or kind != said[i - 1]]


def stop_reasons(drive: Lockstep) -> list[int]:
    return [frame.number("reason") for frame in decoded(drive.port.written) if frame.kind == "STOP"]


# --- simulated time ---


@given(
    events=st.lists(st.integers(-5, 2_000_000), max_size=30),
    waits=st.lists(st.integers(-5, 2_000_000), min_size=1, max_size=30),
)
def test_time_never_goes_back_and_nothing_happens_early_or_out_of_turn(events: list[int], waits: list[int]) -> None:
    timeline = Timeline()
    timeline.watch(3, lambda: False)
    happened: list[tuple[int, int]] = []
    for number, at_ns in enumerate(events):
        timeline.at(at_ns, lambda number=number: happened.append((number, timeline.now_ns())))
    times = [timeline.now_ns()]
    for until_ns in waits:
        assert timeline.wait([3], until_ns) == set()
        times.append(timeline.now_ns())
        assert times[-1] >= until_ns
        assert {number for number, _ in happened} == {i for i, at_ns in enumerate(events) if at_ns <= times[-1]}
    assert all(after > before for before, after in pairwise(times))
    assert [number for number, _ in happened] == sorted(
        (number for number, _ in happened), key=lambda number: (events[number], number)
    )
    assert all(at_ns >= events[number] for number, at_ns in happened)
    assert all(after[1] >= before[1] for before, after in pairwise(happened))


def test_a_wait_ends_with_the_first_event_that_makes_something_readable() -> None:
    timeline = Timeline()
    heard: list[int] = []
    timeline.watch(4, lambda: len(heard) > 1)
    timeline.watch(5, lambda: False)
    for at_ns in (1000, 2000, 3000):
        timeline.at(at_ns, lambda at_ns=at_ns: heard.append(at_ns))
    assert timeline.wait([4, 5], 10_000) == {4}
    assert (timeline.now_ns(), heard) == (2000, [1000, 2000])
    assert timeline.suspended_ns() == 0


# --- drives ---


def test_a_drive_ends_at_the_cup_at_a_standstill(config: Config) -> None:
    drive = expert_drive(config)
    assert drive.run() is Outcome.REACHED
    exit_code, sentence = drive.ending
    assert exit_code == OK
    assert re.fullmatch(r"The simulated robot reached the cup after \d+\.\d s\.", sentence)
    assert drive.robot.stops == []
    assert kinds(drive) == ["HELLO", "ARM", "VELOCITY", "STOP"]
    assert set(stop_reasons(drive)) == {SHUTDOWN}
    last = [frame for frame in decoded(drive.port.answered) if frame.kind == "STATUS"][-1]
    assert last.number("state") == STOPPED
    assert [last.number(axis) for axis in ("vx", "vy", "wz")] == [0, 0, 0]
    sequence = [frame.seq for frame in decoded(drive.port.written)]
    assert sequence == sorted(set(sequence))


def test_two_runs_of_a_seed_are_the_same_to_the_byte_and_another_seed_is_another_drive(config: Config) -> None:
    drives = [expert_drive(config, seed) for seed in (SEED, SEED, SEED + 1)]
    for drive in drives:
        drive.run()
    one, again, other = drives
    assert one.port.written == again.port.written
    assert one.port.answered == again.port.answered
    assert one.robot.world.track == again.robot.world.track
    assert one.timeline.now_ns() == again.timeline.now_ns()
    assert other.port.written != one.port.written
    assert make_room(SEED) == one.robot.world.room


def test_what_is_seen_and_thought_goes_forward_in_time(config: Config) -> None:
    room = make_room(SEED)
    exposed: list[tuple[int, int, int]] = []
    thought: list[tuple[int, int]] = []

    def think(frame: Frame) -> Velocity:
        assert frame.pixels.shape == (480, 640, 3)
        thought.append((frame.captured_ns, drive.timeline.now_ns()))
        return Velocity(0.2)

    drive = Lockstep(
        with_values(config, "camera.fps=25"),
        room,
        None,
        think,
        look=lambda exposure, pixels: exposed.append(
            (exposure.number, exposure.captured_ns, drive.timeline.now_ns() if pixels.any() else -1)
        ),
        longest_ns=3 * SECOND,
    )
    drive.run()
    assert [number for number, _, _ in exposed] == list(range(len(exposed)))
    assert len(exposed) >= 75
    assert {b[1] - a[1] for a, b in pairwise(exposed)} == {SECOND // 25}
    assert all(seen_ns > captured_ns for _, captured_ns, seen_ns in exposed)
    assert len(thought) > 50
    assert all(b[0] > a[0] and b[1] > a[1] for a, b in pairwise(thought))
    assert all(now_ns > captured_ns for captured_ns, now_ns in thought)


def test_the_policy_forgets_at_every_order(config: Config) -> None:
    resets: list[int] = []
    drive = Lockstep(
        config,
        make_room(SEED),
        None,
        lambda _: Velocity(0.1),
        reset=lambda: resets.append(drive.timeline.now_ns()),
        longest_ns=2 * SECOND,
    )
    drive.run()
    velocities = [frame for frame in decoded(drive.port.written) if frame.kind == "VELOCITY"]
    assert velocities
    assert len(resets) >= 3  # told to rest, to rehearse, to drive


# --- policies that go wrong ---


def nan_after_20(number: int) -> Velocity:
    return Velocity(0.2, math.nan if number >= 20 else 0.0)


def infinite_after_20(number: int) -> Velocity:
    return Velocity(0.2, 0.0, -math.inf if number >= 20 else 0.0)


def outrageous_after_20(number: int) -> Velocity:
    return Velocity(5.1 if number >= 20 else 0.2)


def failing_after_20(number: int) -> Velocity:
    if number >= 20:
        raise EngineError("out of memory")
    return Velocity(0.2)


@pytest.mark.parametrize(
    ("think", "reason", "label"),
    [
        (nan_after_20, NOT_FINITE, "not_finite"),
        (infinite_after_20, NOT_FINITE, "not_finite"),
        (outrageous_after_20, LIMIT_VIOLATED, "limit_violated"),
        (failing_after_20, POLICY_ERROR, "policy_error"),
    ],
)
def test_a_policy_that_goes_wrong_is_stopped_for_good(
    config: Config, think: Callable[[int], Velocity], reason: int, label: str
) -> None:
    drive = drive_by(config, think)
    assert drive.run() is Outcome.RUNNING
    assert kinds(drive) == ["HELLO", "ARM", "VELOCITY", "STOP"]
    assert stop_reasons(drive)[0] == reason
    assert [stop.reason for stop in drive.robot.stops] == [label]
    velocities = [frame for frame in decoded(drive.port.written) if frame.kind == "VELOCITY"]
    assert 10 <= len(velocities) <= 20
    assert max(abs(frame.number(axis)) for frame in velocities for axis in ("vx", "vy", "wz")) == 200_000
    assert drive.robot.controller.velocity == Velocity()
    code, farewell = drive.ending
    assert code == TRY_AGAIN
    assert label in farewell
    assert drive.timeline.now_ns() < 6 * SECOND


def test_a_policy_past_its_limits_is_held_to_them_and_its_drive_is_judged(config: Config) -> None:
    drive = drive_by(config, lambda _: Velocity(2.0, 0.0, 0.0), BOX_AHEAD)
    assert drive.run() is Outcome.TOUCHED_BOX
    code, farewell = drive.ending
    assert code == TRY_AGAIN
    assert "touched the box after" in farewell
    speeds = [frame.number("vx") for frame in decoded(drive.port.written) if frame.kind == "VELOCITY"]
    assert max(speeds) == 500_000
    assert max(b - a for a, b in pairwise([0, *speeds])) <= 200_000  # 1 m/s² for the 0.1 s of a cycle, and 0.1 s more


def test_a_policy_that_is_wrong_from_the_first_is_never_armed(config: Config) -> None:
    drive = Lockstep(config, make_room(SEED), None, lambda _: Velocity(math.nan, 0.0, 0.0), longest_ns=7 * SECOND)
    assert drive.run() is Outcome.RUNNING
    assert kinds(drive) == ["HELLO", "STOP"]
    assert set(stop_reasons(drive)) == {SHUTDOWN}
    assert drive.ending == (TRY_AGAIN, "The simulated drive came to no end; the log says why.")
    assert 7 * SECOND <= drive.timeline.now_ns() < 8 * SECOND


def test_nobody_arms_a_simulated_robot_by_hand_and_it_does_not_wait_for_ever(config: Config) -> None:
    room = make_room(SEED)
    drive = Lockstep(
        with_values(config, "safety.arm=manual"), room, None, lambda _: Velocity(0.2), longest_ns=2 * SECOND
    )
    assert drive.run() is Outcome.RUNNING
    assert drive.ending[0] == TRY_AGAIN
    assert drive.robot.world.pose == room.start


def test_an_engine_that_fails_while_it_rehearses_is_replaced_a_second_later(config: Config) -> None:
    thought_ns: list[int] = []

    def think(_: Frame) -> Velocity:
        thought_ns.append(drive.timeline.now_ns())
        if len(thought_ns) == 1:
            raise EngineError("not this time")
        return Velocity(0.2)

    drive = Lockstep(config, make_room(SEED), None, think, longest_ns=4 * SECOND)
    drive.run()
    assert drive.gate.operate("status", 0, 0)["policy_restarts"] == 1
    assert thought_ns[1] - thought_ns[0] > SECOND
    assert kinds(drive) == ["HELLO", "ARM", "VELOCITY", "STOP"]


def test_an_error_in_the_policy_itself_stops_the_robot_before_it_is_raised(config: Config) -> None:
    def think(number: int) -> Velocity:
        return Velocity(0.2) if number < 20 else Velocity(1 / 0)

    drive = drive_by(config, think)
    with pytest.raises(ZeroDivisionError):
        drive.run()
    assert kinds(drive)[-1] == "STOP"
    assert drive.robot.controller.state in {STOPPING, STOPPED}


# --- with the policy that a configuration names ---


def hear(ours: socket.socket) -> list[dict[str, Any]]:
    """The events that were told."""
    records = []
    with suppress(BlockingIOError):
        while True:
            records.append(unpack_record(ours.recv(8192)))
    return [record for record in records if isinstance(record, dict)]


def test_the_bundled_policy_drives_the_same_in_every_process(config: Config, tmp_path: Path) -> None:
    by_hand = subprocess.Popen(
        command(config.path, "--lockstep", "--wire", str(tmp_path / "wire.bin"), "--set", "sim.picture=drive.png"),
        cwd=ROOT,
        env=environment(tmp_path),
        stderr=subprocess.PIPE,
    )
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs, by_hand:
        ours.setblocking(False)
        nowhere = with_values(config, "sim.picture=/proc/drive.png")
        assert run_lockstep(nowhere, Telemetry(theirs), tmp_path / "again.bin")[0] == OK
        events = {event["event"]: event["message"] for event in hear(ours)}
        _, said = by_hand.communicate(timeout=60)
    assert "/proc/drive.png cannot be written" in events["picture"]
    assert "'cup'" in events["policy_ready"]
    assert by_hand.returncode == OK, said
    assert said.count(b"mvla-daemon: The simulated robot reached the cup") == said.count(b"mvla-daemon: ") == 1
    assert (tmp_path / "again.bin").read_bytes() == (tmp_path / "wire.bin").read_bytes()
    assert [frame.kind for frame in decoded((tmp_path / "wire.bin").read_bytes())].count("VELOCITY") > 50
    assert (tmp_path / "drive.png").read_bytes()[:4] == b"\x89PNG"


def test_a_wire_that_cannot_be_written_is_told_before_the_drive(config: Config, tmp_path: Path) -> None:
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with ours, theirs:
        ours.setblocking(False)
        with pytest.raises(DaemonError, match=r"nowhere/wire\.bin cannot be written") as caught:
            run_lockstep(config, Telemetry(theirs), tmp_path / "nowhere/wire.bin")
        assert caught.value.exit_code == NO_PERMISSION
        assert hear(ours) == []
