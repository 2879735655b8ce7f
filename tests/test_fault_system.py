"""Faults of the machine around the daemon: its clocks, its readers, its users, its end; judged at the far end."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import struct
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from mvla_daemon.config_load import load_config
from mvla_daemon.core.messages import Velocity
from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.lockstep import Lockstep, Unheard
from tests.proving import FRAME_STALE, INTERNAL, SHUTDOWN, SUSPENDED, drives_on
from tests.rig import REAL, ROOT, GroundRig, Rig, Scene, freeze, reasons, thaw
from tests.wire import decode_stream

SECOND = 1_000_000_000
YEAR = 365 * 24 * 3600 * SECOND

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
        self.environment = {"PYTHONPATH": f"{folder / 'boundary'}", "MVLA_TEST_CLOCKS": str(self._file)}

    def set(self, *, boot_ns: int = 0, wall_ns: int = 0) -> None:
        with self._file.open("r+b") as file:
            file.write(struct.pack("<qq", boot_ns, wall_ns))


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, scene: Scene) -> Iterator[tuple[Rig, Clocks]]:
    """A daemon that drives on a machine whose clocks a test may set; the tests of it share it."""
    folder = tmp_path_factory.mktemp("machine")
    clocks = Clocks(folder)
    with Rig(folder, scene) as rig:
        rig.environment = clocks.environment
        rig.start_driving()
        yield rig, clocks


def test_a_wall_clock_that_jumps_by_a_year_changes_nothing(machine: tuple[Rig, Clocks]) -> None:
    rig, clocks = machine
    rig.arm()
    before = len(rig.read_wire())
    for jump_ns in (YEAR, -YEAR, 0):
        clocks.set(wall_ns=jump_ns)
        rig.wait_for("VELOCITY", after=len(rig.read_wire()), count=3)
    assert {timed.kind for timed in rig.read_wire()[before:]} == {"VELOCITY"}


def test_after_a_suspension_nothing_is_written_before_the_stop(machine: tuple[Rig, Clocks]) -> None:
    rig, clocks = machine
    rig.arm()
    freeze(rig.pid)  # asleep, with the policy process
    freeze(rig.policy_pid())
    before = len(rig.read_wire())
    clocks.set(boot_ns=3600 * SECOND)
    thaw(rig.policy_pid())
    time.sleep(0.05)
    before = len(rig.read_wire())
    thaw(rig.pid)
    rig.wait_for("STOP", after=before)
    assert rig.read_wire()[before].kind == "STOP"
    assert rig.read_wire()[before].frame.number("reason") == SUSPENDED
    rig.wait_until(lambda: rig.ask("status")["state"] == "latched", "latch")
    assert reasons(rig, before) == [SUSPENDED]


def test_nobody_who_reads_is_needed_and_what_nobody_reads_is_counted(machine: tuple[Rig, Clocks]) -> None:
    """The reporter frozen, then gone with everybody who read from it; and a client that never reads its answer."""
    rig, clocks = machine
    clocks.set(boot_ns=3600 * SECOND)
    rig.arm()
    reporter = next(pid for pid in children(rig.pid) if "ops.reporter" in Path(f"/proc/{pid}/cmdline").read_text())
    freeze(reporter)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as mute:
        mute.connect(str(next((rig.folder / "run").glob("*.sock"))))
        mute.send(b"status")
        drives_on(rig)
    dropped = rig.ask("status")["dropped_records"]
    os.kill(reporter, signal.SIGKILL)
    drives_on(rig)
    assert rig.ask("status")["dropped_records"] > dropped
    before = len(rig.read_wire())
    os.kill(rig.pid, signal.SIGTERM)
    assert rig.wait() == 0
    assert reasons(rig, before) == [SHUTDOWN]


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def test_fifty_clients_at_once_are_answered_or_refused_and_the_drive_goes_on(ground: GroundRig) -> None:
    path = str(next((ground.folder / "run").glob("*.sock")))
    before = len(ground.read_wire())
    answered = turned_away = 0
    for _ in range(4):
        with ExitStack() as stack:
            clients = [stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) for _ in range(50)]
            asked = []
            for number, client in enumerate(clients):
                client.setblocking(False)
                try:
                    client.connect(path)
                    if number % 5:  # the others are half open: they never ask
                        client.send(b"arm" if number % 2 else b"status")
                        asked.append(client)
                except OSError:
                    turned_away += 1
            for client in asked[::2]:  # and these never read
                client.settimeout(2)
                try:
                    answer: dict[str, Any] = json.loads(client.recv(8192) or b"null")
                except (OSError, ValueError):
                    answer = {}
                answered += bool(answer)
                turned_away += not answer
                if answer and "state" in answer and not answer["ok"]:
                    assert "already" in answer["text"]
    assert answered > 4
    assert answered + turned_away > 50
    ground.wait_until(lambda: ground.ask("status")["ok"], "free desk")
    assert reasons(ground, before) == []
    drives_on(ground)


def test_a_camera_that_slows_down_in_the_dark_is_stopped_for_as_stale(tmp_path: Path, studio: Path) -> None:
    """7.5 pictures a second where 50 were asked for: each is held until it is too old, and never longer."""
    scene = Scene(None, studio / "steady.toml", 640, 480)
    with GroundRig(tmp_path, scene, pace=REAL, real_fps=7.5) as rig:
        rig.start_driving("--set", "safety.recover_cycles=3")
        stops = rig.wait_for("STOP")
        assert stops[0].frame.number("reason") == FRAME_STALE
        rig.wait_until(lambda: bool(rig.events("stop")), "record")
        assert rig.events("stop")[0]["reason"] == "frame_stale"
        kinds = [kind for kind, _ in itertools.groupby(timed.kind for timed in rig.read_wire())]
        assert kinds[kinds.index("ARM") :][:4] in (
            ["ARM", "VELOCITY", "STOP"],
            ["ARM", "VELOCITY", "STOP", "HELLO"],
            ["ARM", "KEEPALIVE", "VELOCITY", "STOP"],
        )


class Broken(Unheard):
    """Telemetry that fails as the end is told of."""

    def event(self, name: str, message: str, level: str = "info", /, **fields: Any) -> None:
        super().event(name, message, level, **fields)
        if fields.get("reason") == "shutdown":
            raise RuntimeError("the log is broken")


def test_an_error_during_the_shutdown_comes_after_the_stop_and_still_waits_for_standstill() -> None:
    config = load_config(ROOT / "config.toml", ())
    room = make_room(3)
    drive = Lockstep(config, room, None, lambda _: Velocity(0.3), telemetry=Broken(), longest_ns=2 * SECOND)
    with pytest.raises(RuntimeError, match="the log is broken"):
        drive.run()
    wire = decode_stream(bytes(drive.port.written))
    kinds = [kind for kind, _ in itertools.groupby(frame.kind for frame in wire)]
    assert kinds[-2:] == ["VELOCITY", "STOP"]
    said = [frame.number("reason") for frame in wire if frame.kind == "STOP"]
    assert [reason for reason, _ in itertools.groupby(said)] == [SHUTDOWN, INTERNAL]
    assert drive.robot.controller.velocity == Velocity()
