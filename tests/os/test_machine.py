"""Faults of real devices: a camera of the kernel's own making, a USB serial adapter, a UART; judged by bytes.

The machine is slow, so nothing here is about milliseconds: what is written, in what order, and what follows.
"""

from __future__ import annotations

import itertools
import os
import threading
import tty
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING

import pytest

from tests.os.machine import UART, Machine
from tests.os.machine_daemon import (
    BUSY,
    CAMERA_LOST,
    FRAME_FROZEN,
    FRAME_STALE,
    PORT_LOST,
    SHUTDOWN,
    MachineRig,
    machine_with_daemon,
    repair_camera,
    unplug_camera,
)
from tests.rig import reasons
from tests.wire import WireReader, decode_stream

if TYPE_CHECKING:
    from collections.abc import Iterator
    from pathlib import Path

UNAVAILABLE = 69
WATCHDOG_TRIPPED = 4
ADAPTER = "motors"
SENTENCE = b"$GPGGA,123519,4807.038,N,01131.000,E,1,08,0.9,545.4,M,46.9,M,,*47\r\n"


@pytest.fixture(scope="module")
def machine(tmp_path_factory: pytest.TempPathFactory, studio: Path) -> Iterator[Machine]:
    with machine_with_daemon(tmp_path_factory.mktemp("machine"), studio / "steady.toml") as machine:
        yield machine


@pytest.fixture(scope="module")
def daemon(machine: Machine, tmp_path_factory: pytest.TempPathFactory) -> Iterator[MachineRig]:
    """One daemon for all faults of camera and adapter, as it would have to live through them."""
    with MachineRig(tmp_path_factory.mktemp("usb"), machine, machine.by_id(ADAPTER), "steady.toml") as rig:
        machine.plug_in(ADAPTER, rig.terminal)
        rig.wait_until(lambda: machine.run(f"test -e {rig.port}", may_fail=True)[0] == 0, "serial adapter")
        rig.start_driving()
        yield rig


@pytest.fixture
def driving(daemon: MachineRig) -> Iterator[MachineRig]:
    repair_camera(daemon.machine)
    daemon.arm()
    yield daemon
    daemon.judge()


def told(rig: MachineRig, kind: str) -> int:
    return len(rig.events(kind))


def control(rig: MachineRig, setting: str) -> None:
    rig.machine.run(f"v4l2-ctl -d /dev/v4l/by-path/platform-vivid.0-video-index0 -c {setting}")


def test_a_streaming_error_is_a_lost_camera_that_is_opened_again(driving: MachineRig) -> None:
    """The driver gives up in the middle of the stream; it can be opened again at once, which may be soon enough."""
    before, lost, back = len(driving.read_wire()), told(driving, "camera_lost"), told(driving, "camera_back")
    control(driving, "inject_fatal_streaming_error=1")
    driving.wait_until(lambda: told(driving, "camera_lost") > lost, "loss of the camera")
    driving.wait_until(lambda: told(driving, "camera_back") > back, "camera")
    assert set(reasons(driving, before)) <= BUSY
    driving.arm()


def test_a_read_that_blocks_for_ten_seconds_is_stale_then_lost_and_holds_up_nobody(driving: MachineRig) -> None:
    lost, back = told(driving, "camera_lost"), told(driving, "camera_back")
    driving.provoke(lambda: control(driving, "percentage_of_dropped_buffers=100"), FRAME_STALE, CAMERA_LOST)
    assert driving.latched() == "camera_lost"
    assert told(driving, "camera_lost") == lost  # the read has not returned, and all the same operators are answered
    assert not driving.ask("disarm")["ok"]
    driving.wait_until(lambda: told(driving, "camera_lost") > lost, "end of the read")
    repair_camera(driving.machine)
    driving.wait_until(lambda: told(driving, "camera_back") > back, "camera")
    driving.arm()


def test_a_driver_that_gives_the_same_picture_for_ever_is_frozen(driving: MachineRig) -> None:
    driving.provoke(lambda: control(driving, "test_pattern=0"), FRAME_FROZEN)
    assert driving.latched() == "frame_frozen"
    control(driving, "test_pattern=21")
    driving.arm()


def test_a_camera_that_is_unplugged_is_stale_then_lost_and_found_under_another_number(driving: MachineRig) -> None:
    """Reads fail first while the node is still there, then it is gone; somebody else keeps its number taken."""
    machine, back = driving.machine, told(driving, "camera_back")
    before = len(driving.read_wire())
    node = machine.run("realpath /dev/v4l/by-path/platform-vivid.0-video-index0")[1].strip()
    pid = machine.run(f"sleep 1000 <{node} >/dev/null 2>&1 & echo $!")[1].strip()
    driving.provoke(lambda: control(driving, "disconnect=1"), FRAME_STALE, CAMERA_LOST)
    assert driving.latched() == "camera_lost"
    unplug_camera(machine)
    assert machine.run(f"test -e {node}", may_fail=True)[0] != 0
    repair_camera(machine)
    assert machine.run("realpath /dev/v4l/by-path/platform-vivid.0-video-index0")[1].strip() != node
    driving.wait_until(lambda: told(driving, "camera_back") > back, "camera")
    assert reasons(driving, before)[-1] == CAMERA_LOST
    machine.run(f"kill {pid}")
    code, said = driving.run("arm")
    assert (code, said) == (0, "armed\n")


def test_a_second_daemon_at_the_same_port_ends_and_writes_nothing(driving: MachineRig, tmp_path: Path) -> None:
    node = driving.machine.run(f"realpath {driving.port}")[1].strip()
    before = len(driving.read_wire())
    for port in (driving.port, node):
        with MachineRig(tmp_path, driving.machine, port, "steady.toml", name="second") as second:
            code, said = second.run()
        assert code == UNAVAILABLE
        assert "in use by another program" in said
    # A second one would begin with a HELLO, and has numbers of its own.
    wire = driving.read_wire()[before:]
    assert {timed.kind for timed in wire} <= {"VELOCITY", "STOP", "ARM", "KEEPALIVE"}
    assert all(b.frame.seq == a.frame.seq + 1 for a, b in itertools.pairwise(wire))


def test_an_adapter_that_is_unplugged_is_found_by_its_name_and_asked_who_it_is(driving: MachineRig) -> None:
    """Its number belongs to somebody else when it comes back."""
    machine = driving.machine
    node = machine.run(f"realpath {driving.port}")[1].strip()
    before = len(driving.read_wire())
    with something_else() as (terminal, heard):
        machine.unplug(ADAPTER)
        assert driving.latched() == "port_lost"
        assert set(reasons(driving, before)) <= BUSY  # nobody was there to hear of the port
        driving.wait_until(lambda: driving.statuses()[-1].number("state") == WATCHDOG_TRIPPED, "trip of the watchdog")
        assert machine.run(f"test -e {node}", may_fail=True)[0] != 0
        machine.plug_in("gps", terminal)
        driving.wait_until(lambda: machine.run(f"test -e {node}", may_fail=True)[0] == 0, "other adapter")
        before = len(driving.read_wire())
        machine.plug_in(ADAPTER, driving.terminal)
        driving.wait_for("STOP", after=before)
        assert machine.run(f"realpath {driving.port}")[1].strip() != node
        assert kinds(driving, before)[:2] == ["HELLO", "STOP"]
        assert reasons(driving, before) == [PORT_LOST]
        driving.arm()
        assert heard == []
        machine.unplug("gps")


@pytest.mark.parametrize("first", ["camera", "adapter"])
def test_a_hub_that_resets_is_a_lost_port_in_whatever_order_things_come_back(driving: MachineRig, first: str) -> None:
    machine, back = driving.machine, told(driving, "camera_back")
    before = len(driving.read_wire())
    unplug_camera(machine)
    machine.unplug(ADAPTER)
    driving.wait_until(lambda: driving.ask("status")["reason"] == "port_lost", "loss of the port")
    assert set(reasons(driving, before)) <= BUSY
    before = len(driving.read_wire())
    if first == "camera":
        repair_camera(machine)
        driving.wait_until(lambda: told(driving, "camera_back") > back, "camera")
        machine.plug_in(ADAPTER, driving.terminal)
        driving.wait_for("STOP", after=before)
    else:
        machine.plug_in(ADAPTER, driving.terminal)
        driving.wait_for("STOP", after=before)
        repair_camera(machine)
        driving.wait_until(lambda: told(driving, "camera_back") > back, "camera")
    assert driving.latched() == "port_lost"
    assert kinds(driving, before)[:2] == ["HELLO", "STOP"]
    assert reasons(driving, before) == [PORT_LOST]
    driving.arm()


def test_sigterm_ends_it_with_a_stop(driving: MachineRig) -> None:
    before = len(driving.read_wire())
    driving.machine.run(f"kill {driving.pid}")
    assert driving.wait() == 0
    assert reasons(driving, before)[-1] == SHUTDOWN


def test_a_drive_over_a_uart(machine: Machine, tmp_path: Path) -> None:
    with MachineRig(tmp_path, machine, UART, "steady.toml", name="uart") as rig:
        machine.wire_uart(rig.terminal)
        rig.start_driving()
        rig.wait_for("VELOCITY", count=10)
        machine.run(f"kill {rig.pid}")
        assert rig.wait() == 0
        assert reasons(rig)[-1] == SHUTDOWN
        assert kinds(rig, 0)[0] == "HELLO"
        rig.judge()


@pytest.mark.parametrize("port", [UART, "gps"])
def test_to_something_else_only_hello_is_said(machine: Machine, tmp_path: Path, port: str) -> None:
    with something_else() as (terminal, heard):
        if port == UART:
            machine.wire_uart(terminal)
        else:
            machine.plug_in("gps2", terminal)
            port = machine.by_id("gps2")
        with MachineRig(tmp_path, machine, port, "steady.toml", name="lost") as rig:
            rig.wait_until(lambda: machine.run(f"test -e {port}", may_fail=True)[0] == 0, "port")
            code, said = rig.run("--set", "motor.identify_timeout_s=5")
    assert code == UNAVAILABLE
    assert "did not identify itself" in said
    reader = WireReader()
    frames = reader.feed(b"".join(heard))
    assert len(frames) >= 2
    assert {frame.kind for frame in frames} == {"HELLO"}
    assert all(is_echo(run) for run in reader.undecodable)
    assert len(reader.undecodable) <= 1


def is_echo(run: bytes) -> bool:
    """Whether this is the other end's own words, and at most a HELLO behind them.

    A terminal echoes what arrives until its settings are made, and they can't be made before it is open.
    """
    own = [at for at in range(1, len(run) + 1) if set(run[:at]) <= set(SENTENCE)]
    return any(at == len(run) or [f.kind for f in decode_stream(run[at:] + b"\0")] == ["HELLO"] for at in own)


def kinds(rig: MachineRig, after: int) -> list[str]:
    return [kind for kind, _ in itertools.groupby(timed.kind for timed in rig.read_wire()[after:])]


@contextmanager
def something_else() -> Iterator[tuple[str, list[bytes]]]:
    """A terminal where no motor controller is: it talks as a GPS does. What it hears is noted."""
    ours, theirs = os.openpty()
    tty.setraw(ours)
    tty.setraw(theirs)
    os.set_blocking(ours, False)
    heard: list[bytes] = []
    over = threading.Event()

    def talk() -> None:
        while not over.wait(0.1):
            with suppress(BlockingIOError):  # nobody has opened the other end yet
                os.write(ours, SENTENCE)
            with suppress(BlockingIOError):  # nothing was said
                heard.append(os.read(ours, 4096))

    thread = threading.Thread(target=talk)
    thread.start()
    try:
        yield os.ttyname(theirs), heard
    finally:
        over.set()
        thread.join()
        os.close(ours)
        os.close(theirs)
