"""The simulated robot: driven over the wire, seen by its camera, and as a process of its own at a real pty."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.robot import Exposure, SimulatedRobot
from mvla_daemon.sim.room import Room
from mvla_daemon.sim.world import Outcome
from tests.rights import fifo_is_granted
from tests.wire import WireReader, decode_stream, encode

if TYPE_CHECKING:
    from collections.abc import Iterator

MS = 1_000_000
SECOND = 1_000_000_000
ROOM: Room = make_room(1)
SESSION = 0x1234
ARMED, STOPPED, TRIPPED = 1, 3, 4
USAGE, UNAVAILABLE, INTERNAL, NO_PERMISSION = 64, 69, 70, 77


class Driver:
    """A daemon's end without a daemon: sends what it is told to, and moves the robot on in steps of a millisecond."""

    def __init__(self, fps: float = 50) -> None:
        self.robot = SimulatedRobot(ROOM, None, fps, 0)
        self.now_ms = 0
        self.exposures: list[Exposure] = []
        self._reader = WireReader()
        self._seq = 0
        self.statuses: list[dict[str, int | bytes]] = []

    def run(self, milliseconds: int, every_ms: int = 1) -> None:
        for _ in range(milliseconds // every_ms):
            self.now_ms += every_ms
            said, exposure = self.robot.advance(self.now_ms * MS)
            self._hear(said)
            self.exposures += [] if exposure is None else [exposure]

    def send(self, kind: str, **fields: int) -> None:
        self._seq += 1
        self._hear(self.robot.receive(encode(kind, SESSION, self._seq, **fields), self.now_ms * MS))

    def arm(self) -> None:
        self.run(1)
        self.send("HELLO", nonce=7)
        self.send("ARM", watchdog_ms=500)

    def drive(self, vx: int, milliseconds: int) -> None:
        """A VELOCITY every 20 ms, in micrometres a second."""
        for _ in range(milliseconds // 20):
            self.send("VELOCITY", cycle=0, ttl_ms=60, vx=vx, vy=0, wz=0)
            self.run(20)

    def _hear(self, said: bytes) -> None:
        self.statuses += [frame.fields for frame in self._reader.feed(said) if frame.kind == "STATUS"]


@pytest.fixture
def driver() -> Driver:
    return Driver()


def test_it_rests_at_its_start_and_its_camera_exposes_at_its_rate(driver: Driver) -> None:
    driver.run(200)
    assert [exposure.number for exposure in driver.exposures] == list(range(11))
    assert [exposure.captured_ns for exposure in driver.exposures] == [i * 20 * MS for i in range(11)]
    assert {exposure.pose for exposure in driver.exposures} == {ROOM.start}
    assert driver.robot.world.began_ns is None


def test_a_rate_that_is_no_whole_number_of_nanoseconds_does_not_drift() -> None:
    driver = Driver(fps=30)
    driver.run(10_001)
    assert driver.exposures[-1].number == 300
    assert driver.exposures[-1].captured_ns == 10 * SECOND
    assert {b.captured_ns - a.captured_ns for a, b in pairwise(driver.exposures)} == {33_333_333, 33_333_334}


def test_what_the_wire_says_moves_it_and_it_reports_what_it_does(driver: Driver) -> None:
    driver.arm()
    driver.drive(300_000, 1000)
    began_ns = driver.robot.world.began_ns
    assert began_ns is not None
    assert began_ns <= 10 * MS
    pose = driver.robot.world.pose
    gone_m = ((pose.x_m - ROOM.start.x_m) ** 2 + (pose.y_m - ROOM.start.y_m) ** 2) ** 0.5
    assert gone_m == pytest.approx(0.3, abs=0.05)
    assert (driver.statuses[-1]["state"], driver.statuses[-1]["vx"]) == (ARMED, 300_000)


def test_without_commands_it_stops_by_itself_and_that_is_no_stop_of_the_daemon(driver: Driver) -> None:
    driver.arm()
    driver.drive(300_000, 400)
    driver.run(1500)
    assert (driver.statuses[-1]["state"], driver.statuses[-1]["vx"]) == (TRIPPED, 0)
    assert driver.robot.world.velocity.linear_x_mps == pytest.approx(0.0, abs=1e-6)
    assert driver.robot.stops == []


def test_a_stop_is_remembered_once_with_its_time_its_place_and_its_reason(driver: Driver) -> None:
    driver.arm()
    driver.drive(300_000, 600)
    there = driver.robot.world.pose
    driver.send("STOP", category=1, reason=1)
    driver.send("STOP", category=1, reason=14)  # still the same stop
    driver.run(1000)
    driver.send("STOP", category=1, reason=14)  # at rest
    (stop,) = driver.robot.stops
    assert (stop.at_ns, stop.pose, stop.reason) == (601 * MS, there, "deadline_missed")
    assert driver.statuses[-1]["state"] == STOPPED


def test_a_stop_before_the_drive_and_one_after_its_end_are_no_stops_of_the_drive(driver: Driver) -> None:
    driver.send("STOP", category=1, reason=13)
    driver.arm()
    driver.drive(500_000, 8000)
    assert driver.robot.world.outcome is not Outcome.RUNNING
    driver.send("STOP", category=1, reason=14)
    assert driver.robot.stops == []


def test_a_reason_that_is_unknown_is_told_by_its_number(driver: Driver) -> None:
    driver.arm()
    driver.drive(100_000, 100)
    driver.send("STOP", category=1, reason=99)
    assert [stop.reason for stop in driver.robot.stops] == ["reason 99"]


def test_a_late_look_takes_the_newest_picture_from_where_the_robot_was_then() -> None:
    on_time, late = Driver(), Driver()
    for driver in (on_time, late):
        driver.arm()
        driver.send("VELOCITY", cycle=0, ttl_ms=400, vx=400_000, vy=0, wz=500_000)
    on_time.run(330)
    late.run(330, every_ms=330)
    assert late.exposures[-1] == on_time.exposures[-1]
    assert late.exposures[-1].captured_ns == 320 * MS
    assert late.exposures[-1].pose != late.robot.world.pose


@settings(max_examples=40)
@given(st.lists(st.integers(1, 150), min_size=1, max_size=40))
def test_how_often_it_is_moved_on_changes_nothing_of_the_drive(steps_ms: list[int]) -> None:
    fine, coarse = Driver(), Driver()
    for driver in (fine, coarse):
        driver.arm()
        driver.send("VELOCITY", cycle=0, ttl_ms=1000, vx=400_000, vy=100_000, wz=-700_000)
    for step_ms in steps_ms:
        fine.run(step_ms)
        coarse.run(step_ms, every_ms=step_ms)
    assert coarse.robot.world.pose == fine.robot.world.pose
    assert coarse.robot.world.track == fine.robot.world.track
    assert set(coarse.exposures) <= set(fine.exposures)


def test_it_says_when_it_next_has_something_to_do(driver: Driver) -> None:
    driver.arm()
    driver.send("VELOCITY", cycle=0, ttl_ms=60, vx=200_000, vy=0, wz=0)
    now_ns, said = driver.now_ms * MS, b""
    for _ in range(400):
        next_ns = driver.robot.next_ns(now_ns)
        assert next_ns > now_ns
        nothing, exposure = driver.robot.advance(next_ns - 1)
        assert (nothing, exposure) == (b"", None)
        said += driver.robot.advance(next_ns)[0]
        now_ns = next_ns
    uptimes_ms = [frame.number("uptime_ms") for frame in decode_stream(said)]
    assert {b - a for a, b in pairwise(uptimes_ms)} == {20}


# --- as a process ---


def robot_command(*words: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "mvla_daemon.sim.robot_process", "--seed", "1", *words]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    words = ("--parent-pid", str(os.getpid()), "--fps", "1000")
    pipe = subprocess.PIPE
    with subprocess.Popen(robot_command(*words), stdin=pipe, stdout=pipe, stderr=pipe) as process:
        yield process
        process.kill()


def first_line(process: subprocess.Popen[bytes]) -> list[str]:
    assert process.stdout is not None
    return process.stdout.readline().decode().split()


def test_a_process_that_cannot_paint_as_fast_as_it_is_asked_to_says_so_once(
    process: subprocess.Popen[bytes],
) -> None:
    port, camera = first_line(process)
    assert port.startswith("/dev/pts/")
    assert camera.startswith("@mvla-sim-")
    assert process.stderr is not None
    assert b"cannot keep up" in process.stderr.readline()
    assert not select.select([process.stderr], [], [], 0.3)[0]
    process.send_signal(signal.SIGINT)  # a terminal's, which is for the daemon to handle
    assert not select.select([process.stdout], [], [], 0.1)[0]
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors) == (0, b"")


def priorities(pid: int) -> list[int]:
    """The real-time priorities of a process's threads, highest first; 0 for an ordinary one."""
    threads = [int(task.name) for task in Path(f"/proc/{pid}/task").iterdir()]
    return sorted((os.sched_getparam(thread).sched_priority for thread in threads), reverse=True)


@pytest.mark.skipif(not fifo_is_granted(), reason="needs the right to real-time scheduling")
@pytest.mark.parametrize(("fps", "camera"), [("10", 29), ("1000", 0)])
def test_controller_and_camera_are_real_time_but_not_a_camera_that_cannot_keep_up(fps: str, camera: int) -> None:
    pipe = subprocess.PIPE
    with subprocess.Popen(
        robot_command("--fps", fps, "--priority", "30"), stdin=pipe, stdout=pipe, stderr=pipe
    ) as process:
        first_line(process)
        if not camera:
            assert process.stderr is not None
            assert b"cannot keep up" in process.stderr.readline()
        end_s = time.monotonic() + 5
        while priorities(process.pid)[:2] != [30, camera]:
            assert time.monotonic() < end_s, priorities(process.pid)
            time.sleep(0.01)
        process.communicate(timeout=20)
    assert process.returncode == 0


STARTER = """
import subprocess, sys, os, time
robot = subprocess.Popen([*sys.argv[1:], "--parent-pid", str(os.getpid())], stdout=subprocess.PIPE)
robot.stdout.readline()
print(robot.pid, flush=True)
time.sleep(60)
"""


def test_it_dies_with_its_parent() -> None:
    # Its standard input is ours and stays open, so that only the parent's death can end it.
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, *robot_command()], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as starter:
        robot = os.pidfd_open(int(first_line(starter)[0]))
        assert select.select([robot], [], [], 0)[0] == []
        starter.kill()
        starter.wait()
        assert select.select([robot], [], [], 5)[0] == [robot]
    os.close(robot)


WITHOUT_MATPLOTLIB = "sys.modules['matplotlib'] = None"
WITHOUT_OPENCV = "sys.modules['cv2'] = None"
PAINTER_THAT_BREAKS = """
from mvla_daemon.sim.picture import Painter
Painter.paint = lambda *_: 1 / 0
"""


@pytest.mark.parametrize(
    ("before", "words", "code", "sentence"),
    [
        (WITHOUT_MATPLOTLIB, ["--picture", "drive.png"], UNAVAILABLE, b"pip install 'mvla-daemon[sim]'"),
        ("", ["--picture", "/proc/drive.png"], NO_PERMISSION, b"/proc/drive.png cannot be written"),
        (WITHOUT_OPENCV, [], UNAVAILABLE, b"OpenCV cannot be imported"),
        (PAINTER_THAT_BREAKS, [], INTERNAL, b"ZeroDivisionError"),
        ("", ["--parent-pid", "1"], UNAVAILABLE, b"not the parent"),
        ("", ["--fault", "SIGSTOP"], USAGE, b"SIGSTOP@4s"),
    ],
    ids=[
        "no matplotlib",
        "no place",
        "no OpenCV",
        "a painter that breaks",
        "another parent",
        "a fault of no form",
    ],
)
def test_what_goes_wrong_is_said_in_one_sentence(
    before: str, words: list[str], code: int, sentence: bytes, tmp_path: Path
) -> None:
    script = f"import sys\n{before}\nfrom mvla_daemon.sim.robot_process import main\nsys.exit(main(sys.argv[1:]))"
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [sys.executable, "-c", script, "--seed", "1", *words], cwd=tmp_path, stdin=pipe, stdout=pipe, stderr=pipe
    ) as process:
        first_line(process)
        if before == PAINTER_THAT_BREAKS:
            process.wait(20)  # by itself
        _, errors = process.communicate(timeout=20)
    assert (process.returncode, errors.count(b"\n")) == (code, 1)
    assert errors.startswith(b"mvla-daemon: ")
    assert sentence in errors
    assert list(tmp_path.iterdir()) == []
