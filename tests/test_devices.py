"""find-port and find-cameras: what is there is told, who may use it, and nothing is opened but what a person names."""

from __future__ import annotations

import ctypes
import json
import os
import struct
import subprocess
import sys
import tty
from typing import TYPE_CHECKING

import pytest

from mvla_daemon.devices.access import access, holders
from mvla_daemon.devices.cameras import CameraFound, find_cameras
from mvla_daemon.devices.command import camera_lines, list_cameras, list_ports
from mvla_daemon.devices.machine import Machine
from mvla_daemon.devices.ports import find_ports
from mvla_daemon.devices.v4l2 import Mode
from tests.machine_tree import Tree, orin, usb_port
from tests.nobody import as_nobody
from tests.rig import PATIENCE_S, ROOT, Rig, Scene, environment
from tests.wire import WireReader

if TYPE_CHECKING:
    from pathlib import Path

USAGE, UNAVAILABLE = 64, 69
IN_OPEN = 0x20
BY_ID = "/dev/serial/by-id/usb-FTDI_FT232R_USB_UART_A50285BI-if00-port0"
FTDI = {
    "idVendor": "0403",
    "idProduct": "6001",
    "manufacturer": "FTDI",
    "product": "FT232R USB UART",
    "serial": "A50285BI",
}


def told(folder: Path, *words: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    """The command line without --config; `path` has modules that hide those of the same name."""
    hidden = {} if path is None else {"PYTHONPATH": str(path)}
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "mvla_daemon", *words],
        cwd=ROOT,
        env=environment(folder) | hidden,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )


# --- the command line ---


@pytest.mark.parametrize("word", ["find-cameras", "find-port"])
def test_whatever_is_plugged_into_this_machine_is_told(tmp_path: Path, word: str) -> None:
    shown = told(tmp_path, word)
    assert (shown.returncode, shown.stderr) == (0, "")
    assert shown.stdout
    facts = json.loads(told(tmp_path, word, "--json").stdout)
    assert isinstance(facts["cameras" if word == "find-cameras" else "ports"], list)


@pytest.mark.parametrize("word", ["run", "check", "stop", "status"])
def test_every_other_command_needs_its_configuration(tmp_path: Path, word: str) -> None:
    done = told(tmp_path, word)
    assert done.returncode == USAGE
    assert "--config" in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize("words", [("find-port", "--baud", "115200"), ("find-port", "--ask", "x", "--baud", "5")])
def test_words_that_make_no_sense(tmp_path: Path, words: tuple[str, ...]) -> None:
    done = told(tmp_path, *words)
    assert done.returncode == USAGE
    assert "--baud" in done.stderr
    assert done.stderr.count("\n") == 1


# --- ports ---


def test_a_usb_adapter_is_told_with_all_that_tells_it_from_others(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    usb_port(tree, "ttyUSB0", **FTDI)
    tree.link(BY_ID, "/dev/ttyUSB0")
    (port,) = find_ports(tree.machine)
    assert (port.path, port.lasting, port.driver) == ("/dev/ttyUSB0", BY_ID, "ftdi_sio")
    assert (port.vendor_id, port.product_id, port.serial_number) == ("0403", "6001", "A50285BI")
    assert port.name == "FTDI FT232R USB UART"
    assert port.lines() == ["[motor]", f'port = "{BY_ID}"']
    assert port.latency_timer_ms == 16
    assert port.latency_fix == "echo 1 | sudo tee /sys/bus/usb-serial/devices/ttyUSB0/latency_timer"


def test_ports_that_are_only_numbers_are_left_out(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    placeholder = "/sys/devices/platform/serial8250/serial8250:0"
    for number, kind in ((0, None), (1, 0), (2, 4)):  # who is not root may not see the kind
        tree.write(f"{placeholder}.{number}/uevent")
        tree.link(f"/sys/class/tty/ttyS{number}/device", f"{placeholder}.{number}")
        if kind is not None:
            tree.write(f"/sys/class/tty/ttyS{number}/type", kind)
    real = "/sys/devices/pnp0/00:05/00:05:0/00:05:0.0"
    tree.write(f"{real}/uevent")
    tree.link("/sys/class/tty/ttyS4/device", real)
    tree.write("/sys/class/tty/tty7/dev", "4:7")
    tree.write("/sys/class/tty/ttyGS0/device/uevent")
    assert [port.path for port in find_ports(tree.machine)] == ["/dev/ttyS2", "/dev/ttyS4"]


def test_a_jetsons_own_port_and_a_board_come_with_the_board_first(tmp_path: Path) -> None:
    tree = orin(tmp_path)
    uart = "/sys/devices/platform/bus@0/3100000.serial"
    tree.write(f"{uart}/uevent")
    tree.link("/sys/class/tty/ttyTHS1/device", uart)
    tree.link(f"{uart}/driver", "/sys/bus/platform/drivers/serial-tegra")
    tree.write("/sys/bus/platform/drivers/serial-tegra/bind")
    tree.write("/sys/class/tty/console/active", "ttyTHS1")
    tree.write("/dev/ttyTHS1")
    usb_port(tree, "ttyACM0", driver="cdc_acm", latency_ms=None, idVendor="2e8a", idProduct="0005")
    board, own = find_ports(tree.machine)
    assert (board.path, board.name, board.latency_fix) == ("/dev/ttyACM0", "2e8a:0005", "")
    assert (own.path, own.name, own.is_console) == ("/dev/ttyTHS1", "built in (serial-tegra)", True)
    assert not board.is_console


def test_a_port_that_this_user_may_not_open_says_what_to_type(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = Tree(tmp_path)
    usb_port(tree, "ttyUSB0", **FTDI)
    node = tree.write("/dev/ttyUSB0")
    node.chmod(0o600)
    if os.geteuid() == 0:
        os.chown(node, 0, 20)  # dialout's number in Debian
    for folder in [tmp_path, *tmp_path.parents][:3]:
        folder.chmod(0o755)
    with as_nobody():
        (port,) = find_ports(tree.machine)
        list_ports(tree.machine, as_json=False)
    if os.geteuid() == 0:
        assert port.fix == "sudo chgrp dialout /dev/ttyUSB0 && sudo chmod 660 /dev/ttyUSB0"
        assert "you may not" in capsys.readouterr().out
    node.chmod(0o660)
    with as_nobody():
        (port,) = find_ports(tree.machine)
    if os.geteuid() == 0:
        assert port.fix.startswith("sudo usermod -aG")
    (port,) = find_ports(tree.machine)
    assert port.fix == ""


def test_who_has_a_device_open_is_seen_under_any_of_its_names(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    path = os.ttyname(theirs)
    link = tmp_path / "motors"
    link.symlink_to(path)
    code = f"import os, sys; fd = os.open({path!r}, os.O_RDWR | os.O_NOCTTY); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as holder:
        assert holder.stdout is not None
        holder.stdout.readline()
        found = holders(Machine(), link).found
        assert [one.pid for one in found] == [holder.pid]
        assert str(found[0]).endswith(f"(process {holder.pid})")
        holder.communicate("")
    assert list(holders(Machine(), link).found) == []
    os.close(ours)
    os.close(theirs)
    assert list(holders(Machine(), link).found) == []


def test_what_is_gone_has_neither_rights_nor_holders(tmp_path: Path) -> None:
    assert access(tmp_path / "nothing") is None
    assert list(holders(Machine(), tmp_path / "nothing").found) == []


# --- asking a port ---


class Watch:
    """Counts how often a file was opened, by anybody (inotify(7))."""

    def __init__(self, path: str) -> None:
        libc = ctypes.CDLL(None, use_errno=True)
        self.fd = libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        assert libc.inotify_add_watch(self.fd, path.encode(), IN_OPEN) >= 0

    def openings(self) -> int:
        try:
            data = os.read(self.fd, 65536)
        except BlockingIOError:
            return 0
        return len(data) // struct.calcsize("iIII")

    def close(self) -> None:
        os.close(self.fd)


def test_only_the_port_that_is_named_is_opened_and_only_hello_is_written(tmp_path: Path) -> None:
    with Rig(tmp_path, Scene(None, "bundled:cup")) as rig:
        watch = Watch(rig.port)
        assert rig.tell("find-port").returncode == 0
        assert rig.tell("doctor", "--json").returncode == 0
        assert watch.openings() == 0
        done = told(tmp_path, "find-port", "--ask", rig.port, "--baud", "921600")
        assert done.returncode == 0, done.stderr
        assert "'mvla-double'" in done.stdout
        assert f'port = "{rig.port}"\nbaud = 921600' in done.stdout
        assert watch.openings() == 1
        facts = json.loads(told(tmp_path, "find-port", "--ask", rig.port, "--json").stdout)
        assert (facts["name"], facts["baud"], facts["watchdog_min_ms"]) == ("mvla-double", 921_600, 20)
        assert {timed.kind for timed in rig.wait_for("HELLO", count=2)} == {"HELLO"}
        assert {timed.kind for timed in rig.read_wire()} == {"HELLO"}
        watch.close()


def test_a_port_that_the_daemon_has_is_left_alone(tmp_path: Path) -> None:
    with Rig(tmp_path, Scene(None, "bundled:cup")) as rig:
        holder = os.open(rig.port, os.O_RDWR | os.O_NOCTTY)
        code = "import fcntl, sys; fcntl.flock(0, fcntl.LOCK_EX); print(flush=True); sys.stdin.read()"
        with subprocess.Popen([sys.executable, "-c", code], stdin=holder, stdout=subprocess.PIPE) as process:
            assert process.stdout is not None
            process.stdout.readline()
            done = told(tmp_path, "find-port", "--ask", rig.port)
            process.kill()
        os.close(holder)
        assert done.returncode == UNAVAILABLE
        assert "in use by another program" in done.stderr
        assert rig.read_wire() == []


@pytest.mark.meanwhile
def test_a_port_where_something_else_talks_says_so(tmp_path: Path) -> None:
    ours, theirs = os.openpty()
    tty.setraw(theirs)
    command = [sys.executable, "-m", "mvla_daemon", "find-port", "--ask", os.ttyname(theirs), "--baud", "115200"]
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(tmp_path), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as asking:
        heard = os.read(ours, 4096)  # it has opened the port and thrown away what was in it
        os.write(ours, b"$GPGGA,123519,4807.038,N\r\n")
        _, said = asking.communicate(timeout=PATIENCE_S)
        heard += os.read(ours, 65536)
    assert asking.returncode == UNAVAILABLE
    assert "26 bytes at 115200 baud" in said
    assert said.count("\n") == 1
    reader = WireReader()
    kinds = [frame.kind for frame in reader.feed(heard)]
    assert set(kinds) == {"HELLO"}
    assert 20 <= len(kinds) <= 26  # one each 200 ms of the 5 s that a board may take to boot
    assert reader.undecodable == []
    os.close(ours)
    os.close(theirs)


@pytest.mark.parametrize("path", ["/dev/null", "/nothing"])
def test_what_is_no_port_is_said_in_one_sentence(tmp_path: Path, path: str) -> None:
    done = told(tmp_path, "find-port", "--ask", path)
    assert done.returncode == UNAVAILABLE
    assert path in done.stderr
    assert done.stderr.count("\n") == 1


# --- cameras ---


def test_a_node_that_answers_no_ioctl_is_a_problem_with_a_fix(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = Tree(tmp_path)
    tree.write("/dev/video0")
    tree.write("/sys/class/video4linux/video0/name", "HD Pro Webcam C920")
    tree.link("/dev/v4l/by-id/usb-046d_C920-video-index0", "/dev/video0")
    (camera,) = find_cameras(tree.machine).cameras
    assert (camera.path, camera.name) == ("/dev/video0", "HD Pro Webcam C920")
    assert camera.lasting == "/dev/v4l/by-id/usb-046d_C920-video-index0"
    assert "does not answer" in camera.problem
    assert camera.fix
    list_cameras(tree.machine, as_json=False)
    assert f"fix: {camera.fix}" in capsys.readouterr().out


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can take rights away from itself for a moment")
def test_a_node_that_this_user_may_not_open_says_what_to_type(tmp_path: Path) -> None:
    tree = Tree(tmp_path)
    node = tree.write("/dev/video0")
    node.chmod(0o660)
    os.chown(node, 0, 44)  # video's number in Debian
    for folder in [tmp_path, *tmp_path.parents][:3]:
        folder.chmod(0o755)
    with as_nobody():
        (camera,) = find_cameras(tree.machine).cameras
    assert "may not be opened by this user" in camera.problem
    assert "mode 660" in camera.problem
    assert camera.fix.startswith("sudo usermod -aG")


def test_no_camera_says_what_to_check_and_sensors_without_a_node_are_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tree = orin(tmp_path)
    tree.write("/proc/device-tree/tegra-camera-platform/modules/module0/badge", "imx219_bottom_liyoba\0")
    list_cameras(tree.machine, as_json=False)
    said = capsys.readouterr().out
    assert "imx219_bottom_liyoba" in said
    assert "ribbon cable" in said
    assert "No camera here gives pictures" in said
    list_cameras(tree.machine, as_json=True)
    assert json.loads(capsys.readouterr().out) == {"cameras": [], "sensors": ["imx219_bottom_liyoba"]}


def test_formats_with_the_same_sizes_and_rates_are_told_together() -> None:
    letters = [f"FM{number:02}" for number in range(30)]
    listed = [Mode(name, 640, 480, (30.0, 15.0)) for name in letters]
    lines = list(camera_lines(camera(*listed, Mode("MJPG", 640, 480, (60.0,)))))
    text = "\n".join(lines)
    assert text.count("640x480 at 30, 15 fps") == text.count("640x480 at 60 fps") == 1
    assert text.split("640x480")[0].split() == letters
    assert all(len(line) <= 80 for line in text.splitlines())


def camera(*listed: Mode, source: str = "/dev/video0") -> CameraFound:
    return CameraFound("/dev/video0", "a camera", "uvcvideo", "/dev/video0", source, listed)


@pytest.mark.parametrize(
    ("listed", "suggested"),
    [
        ([Mode("YUYV", 1280, 720, (10.0,)), Mode("YUYV", 640, 480, (30.0, 15.0))], (640, 480, 30.0)),
        ([Mode("YUYV", 640, 480, (30.0,)), Mode("MJPG", 640, 480, (60.0,))], (640, 480, 60.0)),
        ([Mode("YUYV", 1920, 1080, (30.0,)), Mode("YUYV", 800, 600, (25.0,))], (800, 600, 25.0)),
        ([Mode("NV12", 32, 16, (120.0, 1.0), any_rate=True, to_width=4096, to_height=4096)], (640, 480, 120.0)),
        ([Mode("H264", 640, 480, (60.0,)), Mode("YUYV", 320, 240, (30.0,))], (320, 240, 30.0)),
        ([Mode("RG10", 3280, 2464, (21.0,))], None),
        ([Mode("YUYV", 640, 480, ())], None),
    ],
)
def test_the_mode_to_begin_with(listed: list[Mode], suggested: tuple[int, int, float] | None) -> None:
    found = camera(*listed)
    assert found.suggestion == suggested
    lines = found.lines()
    assert lines[:2] == ["[camera]", 'source = "/dev/video0"']
    assert len(lines) == (2 if suggested is None else 5)


def test_a_sensor_behind_the_image_processor_may_have_any_format() -> None:
    found = camera(Mode("RG10", 3280, 2464, (21.0,)), Mode("RG10", 1280, 720, (60.0,)), source="csi://0")
    assert found.lines() == ["[camera]", 'source = "csi://0"', "width = 1280", "height = 720", "fps = 60"]
