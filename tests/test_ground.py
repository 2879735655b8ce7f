"""The self-test's proving ground: each order has its effect at a real pty and a real camera socket."""

from __future__ import annotations

import os
import select
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mvla_daemon.selftest import ground as ground_module
from mvla_daemon.selftest.ground import Ground, UnknownOrderError, Way
from mvla_daemon.sim.camera_link import CameraClient, News
from tests import wire
from tests.rig import PATIENCE_S, Rig, Scene, command, environment
from tests.test_purity import ALLOWED_FOR_SIMULATION, reaches_out, unseeded

if TYPE_CHECKING:
    from collections.abc import Iterator

    from numpy.typing import NDArray

MS = 1_000_000
CHUNK = struct.Struct("<qI")
NEWS = struct.Struct("<IIq")
DISARMED, ARMED, TRIPPED = 0, 1, 4
USAGE, NO_PERMISSION = 64, 77
TOLD = "go to the cup, pass the box on its left"


class Yard:
    """The ground's process, seen from the daemon's end of its port and from its orders."""

    def __init__(self, folder: Path, fps: int = 50) -> None:
        self.log = folder / "wire.log"
        self.process = subprocess.Popen(
            [
                *(sys.executable, "-W", "error", "-m", "mvla_daemon.selftest.ground_process"),
                *("--log", str(self.log), "--fps", str(fps), "--parent-pid", str(os.getpid())),
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self.process.stdout is not None
        path, camera = self.process.stdout.readline().split()
        self.camera = Path(camera)
        self.session = 0
        self._seq = 0
        self.connect(path)

    def connect(self, path: str) -> None:
        self.path = path
        self.fd = os.open(path, os.O_RDWR | os.O_NOCTTY | os.O_NONBLOCK)
        self.reader = wire.WireReader()

    def answer(self, order: str) -> list[str]:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(order + "\n")
        self.process.stdin.flush()
        return self.process.stdout.readline().split()

    def order(self, order: str) -> int:
        """When it took effect; what was said before is forgotten."""
        before_ns = time.monotonic_ns()
        word, at_ns = self.answer(order)
        assert word == "done"
        assert before_ns <= int(at_ns) <= time.monotonic_ns()
        self.drain()
        return int(at_ns)

    def close(self) -> int:
        os.close(self.fd)
        self.process.communicate(timeout=PATIENCE_S)
        return self.process.returncode

    # --- the port ---

    def send(self, kind: str, **fields: int) -> int:
        self._seq += 1
        os.write(self.fd, wire.encode(kind, self.session, self._seq, **fields))
        return self._seq

    def read(self) -> bytes:
        try:
            return os.read(self.fd, 65536)
        except BlockingIOError:
            return b""

    def drain(self) -> None:
        """Forget what has been said so far; a frame of which half is here already comes whole later."""
        self.reader.feed(self.read())

    def wait_for(self, kind: str, **wanted: int) -> wire.WireFrame:
        end = time.monotonic() + PATIENCE_S
        while (left := end - time.monotonic()) > 0:
            if select.select([self.fd], [], [], left)[0]:
                for frame in self.reader.feed(self.read()):
                    if frame.kind == kind and wanted.items() <= frame.fields.items():
                        return frame
        raise AssertionError(f"no {kind} with {wanted}")

    def greet(self) -> None:
        self.send("HELLO", nonce=self._seq)
        self.wait_for("IDENTITY", nonce=self._seq - 1)

    def arm(self) -> None:
        self.greet()
        self.session += 1
        self.wait_for("STATUS", host_seq=self.send("ARM", watchdog_ms=1000), state=ARMED)

    def drive(self, vx: int) -> int:
        return self.send("VELOCITY", cycle=0, ttl_ms=1000, vx=vx, vy=0, wz=0)

    def rest(self) -> None:
        self.send("STOP", category=0, reason=13)
        self.wait_for("STATUS", state=3, host_seq=self._seq)

    # --- the files ---

    def said(self) -> list[wire.WireFrame]:
        return wire.decode_stream(self.log.with_suffix(".said").read_bytes())

    def reported(self) -> list[wire.WireFrame]:
        return [frame for frame in self.said() if frame.kind == "STATUS"]

    def let_speak(self, statuses: int = 5) -> None:
        """Until the controller has said so much more."""
        enough = len(self.reported()) + statuses
        end = time.monotonic() + PATIENCE_S
        while len(self.reported()) < enough:
            assert time.monotonic() < end
            time.sleep(0.01)

    def heard(self) -> list[tuple[int, bytes]]:
        data = self.log.read_bytes()
        chunks, at = [], 0
        while at < len(data):
            at_ns, length = CHUNK.unpack_from(data, at)
            at += CHUNK.size
            chunks.append((at_ns, data[at : at + length]))
            at += length
        return chunks


@pytest.fixture(scope="module", autouse=True)
def driving(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Rig, Yard]]:
    """A daemon on a ground of its own; it gets going while the other tests run."""
    folder = tmp_path_factory.mktemp("driving")
    yard = Yard(folder, fps=10)
    with Rig(folder, Scene(None, "bundled:cup", 640, 480, 10, TOLD), port="sim://") as rig:
        os.close(yard.fd)
        rig.start("--ground", yard.path, str(yard.camera), str(folder / "sabotage"))
        yield rig, yard
    yard.fd = os.open("/dev/null", os.O_RDONLY)
    assert yard.close() == 0


@pytest.fixture(scope="module")
def shared_yard(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Yard]:
    yard = Yard(tmp_path_factory.mktemp("ground"))
    yield yard
    assert yard.close() == 0


@pytest.fixture
def yard(shared_yard: Yard) -> Iterator[Yard]:
    """One that leaves nothing of a failed test to the next."""
    yield shared_yard
    for order in ("mute off", "deaf off", "corrupt 0 0", "lose 0 0", "delay 0", "measure true", "reset"):
        assert shared_yard.answer(order)[0] == "done"
    for order in ("freeze off", "black off", "back", "silent off", "skew 0", "backwards off", "repeat off"):
        assert shared_yard.answer(f"camera {order}")[0] == "done"


# --- the port ---


def test_what_comes_is_written_down_with_its_time_and_what_is_said_too(yard: Yard) -> None:
    before_ns = time.monotonic_ns()
    yard.send("HELLO", nonce=4711)
    answer = yard.wait_for("IDENTITY", nonce=4711)
    at_ns, data = yard.heard()[-1]
    assert before_ns <= at_ns <= time.monotonic_ns()
    (hello,) = wire.decode_stream(data)
    assert (hello.kind, hello.fields) == ("HELLO", {"nonce": 4711})
    assert answer.seq in {frame.seq for frame in yard.said() if frame.kind == "IDENTITY"}


def test_a_mute_controller_says_nothing_though_it_would(yard: Yard) -> None:
    yard.order("mute on")
    yard.let_speak()
    assert yard.read() == b""
    yard.order("mute off")
    yard.wait_for("STATUS")


def test_a_deaf_controller_reads_nothing_until_it_hears_again(yard: Yard) -> None:
    yard.order("deaf on")
    heard = len(yard.heard())
    yard.send("HELLO", nonce=1)
    yard.let_speak()
    assert len(yard.heard()) == heard
    assert yard.answer("deaf off")[0] == "done"
    yard.wait_for("IDENTITY", nonce=1)


def test_a_reset_forgets_the_session_and_counts_anew(yard: Yard) -> None:
    yard.arm()
    yard.let_speak()
    before = yard.reported()[-1]
    yard.order("reset")
    yard.wait_for("STATUS", state=DISARMED)
    after = next(frame for frame in yard.reported()[::-1] if frame.seq == 1)
    assert after.offset_start > before.offset_start
    assert (before.session, after.session) == (yard.session, 0)
    assert after.number("uptime_ms") < before.number("uptime_ms")


@pytest.mark.parametrize("bit", [0, 4, 5, 7])
def test_a_fault_is_reported_until_it_is_over(yard: Yard, bit: int) -> None:
    yard.order(f"fault {bit} on")
    yard.wait_for("STATUS", faults=1 << bit)
    yard.order(f"fault {bit} off")
    yard.wait_for("STATUS", faults=0)


def test_what_it_reports_can_be_wrong(yard: Yard) -> None:
    yard.order("reset")
    for order in ("state 2", "watchdog 77", "session 4242"):
        yard.order(order)
    assert yard.wait_for("STATUS", state=2, watchdog_ms=77).session == 4242
    yard.greet()
    for order in ("state -", "watchdog -", "session -"):
        yard.order(order)
    assert yard.wait_for("STATUS", state=DISARMED, watchdog_ms=0).session == 0


def test_bytes_are_said_as_they_are(yard: Yard) -> None:
    yard.order("mute on")
    assert yard.answer("say 00ff0a0d1103")[0] == "done"
    assert select.select([yard.fd], [], [], PATIENCE_S)[0]
    assert yard.read() == bytes.fromhex("00ff0a0d1103")
    yard.order("mute off")
    yard.send("HELLO", nonce=5)
    yard.wait_for("IDENTITY", nonce=5)


def test_a_corrupted_line_delivers_nothing_right_in_either_direction(yard: Yard) -> None:
    yard.wait_for("STATUS")
    yard.order("corrupt 1 7")
    yard.reader = wire.WireReader()
    yard.let_speak(1)
    told = yard.reported()[-1].number("host_seq")
    yard.send("HELLO", nonce=6)
    yard.let_speak()
    assert yard.reader.feed(yard.read()) == []
    assert len(yard.reader.undecodable) >= 4
    assert {frame.number("host_seq") for frame in yard.reported()[-3:]} == {told}
    yard.order("corrupt 0 0")
    yard.reader = wire.WireReader()
    os.write(yard.fd, b"\0")  # whatever half a frame is left at the controller ends here
    yard.greet()


def test_a_line_that_loses_everything_is_silent_in_both_directions(yard: Yard) -> None:
    yard.order("lose 1 7")
    yard.let_speak(1)
    told = yard.reported()[-1].number("host_seq")
    heard = len(yard.heard())
    yard.send("HELLO", nonce=7)
    yard.let_speak()
    assert yard.read() == b""
    assert len(yard.heard()) == heard + 1
    assert yard.reported()[-1].number("host_seq") == told
    yard.order("lose 0 0")
    yard.greet()


def test_a_delay_is_there_and_back(yard: Yard) -> None:
    yard.order("delay 60")
    before_ns = time.monotonic_ns()
    yard.greet()
    assert time.monotonic_ns() - before_ns >= 120 * MS
    yard.order("delay 0")
    yard.greet()


@pytest.mark.parametrize(("how", "vx"), [("stuck", 0), ("reversed", -100_000), ("runaway", 600_000), ("true", 100_000)])
def test_the_wheels_turn_otherwise_than_told(yard: Yard, how: str, vx: int) -> None:
    yard.arm()
    yard.order(f"measure {how}")
    told = yard.drive(100_000)
    yard.wait_for("STATUS", host_seq=told, vx=vx, state=ARMED)
    if how == "stuck":
        yard.let_speak(3)
        assert {frame.number("vx") for frame in yard.reported()[-3:]} == {0}
    yard.order("measure true")
    yard.rest()


def test_a_watchdog_trips_though_it_was_fed(yard: Yard) -> None:
    yard.order("trip")
    assert yard.wait_for("STATUS").number("state") != TRIPPED  # it does not run
    yard.arm()
    yard.drive(100_000)
    yard.order("trip")
    yard.wait_for("STATUS", state=TRIPPED, faults=0, vx=0)


def test_a_port_that_hangs_up_is_gone_until_another_is_plugged_in(yard: Yard) -> None:
    assert yard.answer("hang_up")[0] == "done"
    with pytest.raises(OSError, match="Input/output error"):
        os.write(yard.fd, b"\0")
    assert not Path(yard.path).exists()
    os.close(yard.fd)
    assert yard.answer("hang_up")[0] == "unknown"
    yard.let_speak()
    word, _, path = yard.answer("plug_in")
    assert word == "done"
    yard.connect(path)
    yard.greet()
    assert yard.answer("plug_in")[0] == "unknown"


@pytest.mark.parametrize(
    "order",
    [
        *("", "dance", "mute", "mute maybe", "fault on", "fault 8 on", "fault -1 on", "state 256", "state x"),
        *("session 65536", "watchdog -1", "say 0", "corrupt 1.1 1", "corrupt nan 1", "lose 1", "delay inf", "delay x"),
        *("measure wrongly", "camera", "camera dance", "camera skew inf", "camera skew x", "camera black"),
        *("camera fps 0", "camera fps nan", "camera fps x"),
    ],
)
def test_what_is_no_order_is_said_to_be_none(yard: Yard, order: str) -> None:
    assert yard.answer(order) == ["unknown", *order.split()]


def test_a_log_that_cannot_be_written_is_said(tmp_path: Path) -> None:
    refused = subprocess.run(
        [sys.executable, "-m", "mvla_daemon.selftest.ground_process", "--log", str(tmp_path / "no" / "log")],
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert refused.returncode == NO_PERMISSION
    assert "cannot be written" in refused.stderr
    assert refused.stderr.count("\n") == 1


# --- the camera ---


@pytest.fixture
def viewer(yard: Yard) -> Iterator[CameraClient]:
    client = CameraClient(yard.camera)
    yield client
    client.close()


def see(client: CameraClient, after_ns: int | None = None) -> tuple[News, NDArray[np.uint8]]:
    """The next picture; or one that says it was taken after that time."""
    pixels = np.empty((480, 640, 3), np.uint8)
    while True:
        news = client.wait()
        assert news is not None
        if client.copy(news, pixels) and (after_ns is None or news.captured_ns > after_ns):
            return news, pixels


def test_pictures_differ_by_noise_only(viewer: CameraClient) -> None:
    (first, one), (second, other) = see(viewer), see(viewer)
    assert first.number < second.number
    assert first.captured_ns < second.captured_ns <= time.monotonic_ns()
    changes = one.astype(int) - other
    assert 0.5 < np.abs(changes).mean() < 8
    assert one.std() > 10


def test_a_frozen_camera_repeats_its_picture_under_new_times(yard: Yard, viewer: CameraClient) -> None:
    at_ns = yard.order("camera freeze on")
    first, one = see(viewer, at_ns)
    second, other = see(viewer)
    assert second.captured_ns > first.captured_ns
    assert (one == other).all()
    at_ns = yard.order("camera freeze off")
    see(viewer, at_ns)
    assert (see(viewer)[1] != one).any()


def test_a_covered_lens_sees_black(yard: Yard, viewer: CameraClient) -> None:
    assert see(viewer, yard.order("camera black on"))[1].max() == 0
    assert see(viewer, yard.order("camera black off"))[1].max() > 16


def test_a_camera_that_is_gone_hangs_up_and_answers_nobody_until_it_is_back(yard: Yard, viewer: CameraClient) -> None:
    yard.order("camera gone")
    while viewer.wait() is not None:
        pass
    with pytest.raises(ConnectionRefusedError):
        CameraClient(yard.camera)
    yard.order("camera back")
    again = CameraClient(yard.camera)
    see(again)
    again.close()


def test_a_silent_camera_keeps_the_door_open_and_shows_nothing(yard: Yard) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as viewer:
        viewer.connect(str(yard.camera).replace("@", "\0", 1))
        assert viewer.recv(16) == b"camera"
        yard.order("camera silent on")
        while select.select([viewer], [], [], 0)[0]:
            assert len(viewer.recv(64)) == NEWS.size
        yard.let_speak(6)  # 120 ms, six pictures
        assert not select.select([viewer], [], [], 0)[0]
        yard.order("camera silent off")
        assert select.select([viewer], [], [], PATIENCE_S)[0]


@pytest.mark.parametrize("skew_ms", [3_600_000, -3_600_000])
def test_a_skewed_clock_tells_other_times(yard: Yard, viewer: CameraClient, skew_ms: int) -> None:
    yard.order(f"camera skew {skew_ms}")
    see(viewer)  # which may be of before
    assert abs(time.monotonic_ns() + skew_ms * MS - see(viewer)[0].captured_ns) < 1_800_000 * MS
    yard.order("camera skew 0")
    see(viewer)
    assert abs(time.monotonic_ns() - see(viewer)[0].captured_ns) < 1_800_000 * MS


def test_pictures_come_as_often_as_ordered(yard: Yard, viewer: CameraClient) -> None:
    yard.order("camera fps 500")
    see(viewer)  # which may be of before
    (first, _), (second, _) = see(viewer), see(viewer)
    assert (second.captured_ns - first.captured_ns) % (2 * MS) == 0  # of several that are due only the newest is shown
    yard.order("camera fps 50")
    see(viewer)
    (first, _), (second, _) = see(viewer), see(viewer)
    assert (second.captured_ns - first.captured_ns) % (20 * MS) == 0


def test_time_can_run_backwards(yard: Yard, viewer: CameraClient) -> None:
    at_ns = yard.order("camera backwards on")
    see(viewer)  # which may be of before
    (first, _), (second, _) = see(viewer), see(viewer)
    yard.order("camera backwards off")
    assert second.captured_ns < first.captured_ns < at_ns
    assert second.number > first.number
    see(viewer, at_ns)


def test_time_can_stand_still(yard: Yard, viewer: CameraClient) -> None:
    yard.order("camera repeat on")
    see(viewer)  # which may be of before
    (first, _), (second, _) = see(viewer), see(viewer)
    at_ns = yard.order("camera repeat off")
    assert second.captured_ns == first.captured_ns
    assert second.number > first.number
    see(viewer, at_ns)


# --- the ground without I/O or clock ---


def test_the_ground_is_a_function_of_what_it_is_told() -> None:
    source = Path(ground_module.__file__).read_text()
    assert reaches_out(source, ALLOWED_FOR_SIMULATION | sim_modules()) == []
    assert unseeded(source) == []


def sim_modules() -> set[str]:
    return {"mvla_daemon.sim.controller", "mvla_daemon.sim.ramp"}


def sent_through(way: Way, chunks: int) -> list[bytes]:
    arrived = []
    for number in range(chunks):
        way.put(number.to_bytes(4, "little"), number)
        arrived.append(way.take(number))
    return arrived


def bits_between(one: bytes, other: bytes) -> int:
    return (int.from_bytes(one, "little") ^ int.from_bytes(other, "little")).bit_count()


def test_the_share_that_is_asked_for_is_damaged_by_one_bit_each() -> None:
    way = Way("there")
    way.corrupt(0.2, 5)
    damage = [bits_between(chunk, i.to_bytes(4, "little")) for i, chunk in enumerate(sent_through(way, 2000))]
    assert set(damage) == {0, 1}
    assert 300 < sum(damage) < 500


def test_the_share_that_is_asked_for_is_lost_and_a_seed_says_which() -> None:
    def lost(name: str, seed: int) -> list[int]:
        way = Way(name)
        way.lose(0.2, seed)
        return [number for number, chunk in enumerate(sent_through(way, 2000)) if not chunk]

    assert 300 < len(lost("there", 5)) < 500
    assert lost("there", 5) == lost("there", 5)
    assert lost("there", 5) != lost("there", 6)
    assert lost("there", 5) != lost("back", 5)


def test_a_shorter_delay_does_not_let_chunks_overtake() -> None:
    way = Way("there")
    way.delay_ns = 100
    way.put(b"first", 0)
    way.delay_ns = 10
    way.put(b"second", 1)
    assert way.next_ns() == 100
    assert (way.take(99), way.take(100), way.next_ns()) == (b"", b"firstsecond", None)


def test_the_ground_wakes_for_what_is_under_way() -> None:
    ground = Ground(0)
    ground.obey(["delay", "3"], 0)
    ground.hear(wire.encode("HELLO", 0, 1, nonce=1), 0)
    assert ground.next_ns(0) == 3 * MS
    said, sent = ground.advance(3 * MS)
    assert [frame.kind for frame in wire.decode_stream(said)] == ["IDENTITY"]
    assert sent == b""
    assert ground.next_ns(3 * MS) == 6 * MS
    assert ground.advance(6 * MS) == (b"", said)


def test_an_order_with_nothing_in_it_is_none() -> None:
    with pytest.raises(UnknownOrderError):
        Ground(0).obey([], 0)


# --- the daemon on it ---


def test_a_daemon_drives_on_the_ground(driving: tuple[Rig, Yard]) -> None:
    rig, yard = driving
    rig.wait_until(lambda: "VELOCITY" in kinds(yard), "VELOCITY")
    assert kinds(yard)[0] == "HELLO"
    assert "mvla-ground" in str(rig.events("controller")[0])
    rig.wait_until(lambda: any(frame.fields["vx"] for frame in yard.reported()), "motion")
    assert (rig.folder / "sabotage").is_socket()


def kinds(yard: Yard) -> list[str]:
    return [frame.kind for frame in wire.decode_stream(b"".join(data for _, data in yard.heard()))]


@pytest.mark.parametrize(
    "words",
    [
        ("--set", "motor.port=/dev/null"),
        ("--set", "camera.source=/dev/video0"),
        ("--fault", "SIGSTOP@1s"),
        ("--lockstep",),
    ],
)
def test_the_ground_is_for_the_simulated_robot_alone(driving: tuple[Rig, Yard], words: tuple[str, ...]) -> None:
    rig, yard = driving
    refused = subprocess.run(
        command(rig.config, "--ground", yard.path, str(yard.camera), str(rig.folder / "never"), *words),
        env=environment(rig.folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert refused.returncode == USAGE
    assert refused.stderr.count("\n") == 1
    assert "--ground" in refused.stderr
    assert not (rig.folder / "never").exists()


def test_the_ground_is_not_for_people() -> None:
    told = subprocess.run(
        [sys.executable, "-m", "mvla_daemon", "--help"], capture_output=True, text=True, check=True, timeout=PATIENCE_S
    )
    assert "--trace" in told.stdout
    assert "--ground" not in told.stdout
