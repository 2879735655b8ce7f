"""The serial port on real ptys: who may open it, what it leaves as it was, and what it says when the device is gone."""

from __future__ import annotations

import fcntl
import os
import select
import subprocess
import sys
import termios
import time
import tty
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from mvla_daemon.errors import DaemonError
from mvla_daemon.motors.motor_port import MotorPort
from mvla_daemon.motors.serial_port import PortLostError, SerialPort
from tests.nobody import NOBODY, as_nobody
from tests.rights import fifo_is_granted

BAUD = 921_600
MS = 1_000_000
TIOCGEXCL = 0x80045440
FRAME = b"\x11" * 36 + b"\0"
OPEN = """
import sys
from mvla_daemon.errors import DaemonError
from mvla_daemon.motors.serial_port import SerialPort
try:
    SerialPort(sys.argv[1], 921600)
except DaemonError as error:
    print(error)
    sys.exit(error.exit_code)
"""


@dataclass
class Pty:
    """A pty whose other end nobody has open yet."""

    master: int
    path: str

    def read(self, within_s: float = 5.0) -> bytes:
        assert select.select([self.master], [], [], within_s)[0], "nothing arrived"
        return os.read(self.master, 65536)

    def read_all(self) -> bytes:
        data = b""
        while select.select([self.master], [], [], 0.05)[0]:
            data += os.read(self.master, 65536)
        return data


@pytest.fixture
def pty() -> Iterator[Pty]:
    master, slave = os.openpty()
    tty.setraw(slave)
    path = os.ttyname(slave)
    os.close(slave)
    yield Pty(master, path)
    os.close(master)


@pytest.fixture
def port(pty: Pty) -> Iterator[SerialPort]:
    port = SerialPort(pty.path, BAUD)
    yield port
    port.close()


def refusal(path: str) -> DaemonError:
    with pytest.raises(DaemonError) as caught:
        SerialPort(path, BAUD)
    return caught.value


def open_elsewhere(path: str) -> tuple[int, str]:
    """Exit code and sentence of another process that opens the port."""
    done = subprocess.run([sys.executable, "-c", OPEN, path], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return done.returncode, done.stdout


def test_frames_go_both_ways_unchanged(pty: Pty, port: SerialPort) -> None:
    everything = bytes(range(256))
    assert port.write(everything)
    assert pty.read() == everything
    os.write(pty.master, everything)
    select.select([port.fd], [], [], 5)
    assert port.read() == everything
    assert port.queued_bytes() == 0


def test_a_read_takes_a_bounded_piece(pty: Pty, port: SerialPort) -> None:
    os.set_blocking(pty.master, False)
    sent = os.write(pty.master, b"\x55" * 4096)
    sent += os.write(pty.master, b"\x55" * 4096) if select.select([], [pty.master], [], 0.1)[1] else 0
    got = 0
    while got < sent:
        assert select.select([port.fd], [], [], 5)[0]
        piece = port.read()
        assert 0 < len(piece) <= 4096
        got += len(piece)
    assert got == sent


def test_a_read_of_nothing_is_empty_and_not_the_end(pty: Pty, port: SerialPort) -> None:
    assert port.read() == b""
    os.write(pty.master, b"something")
    assert select.select([port.fd], [], [], 5)[0]
    assert port.read() == b"something"
    assert port.read() == b""


def test_what_was_there_before_the_opening_is_discarded(pty: Pty) -> None:
    slave = os.open(pty.path, os.O_RDWR | os.O_NOCTTY)
    os.write(pty.master, b"of yesterday")
    assert select.select([slave], [], [], 5)[0]
    port = SerialPort(pty.path, BAUD)
    os.write(pty.master, b"today")
    assert select.select([port.fd], [], [], 5)[0]
    assert port.read() == b"today"
    port.close()
    os.close(slave)


# --- opening ---


def test_an_absent_port_says_what_to_do(tmp_path: Path) -> None:
    error = refusal(str(tmp_path / "ttyUSB7"))
    assert error.exit_code == 69
    assert "does not exist; plug the motor controller in or correct motor.port" in str(error)


def test_a_dangling_name_is_an_absent_port(tmp_path: Path) -> None:
    (tmp_path / "by-id").symlink_to(tmp_path / "ttyUSB0")
    assert refusal(str(tmp_path / "by-id")).exit_code == 69


def test_a_port_whose_other_end_is_gone_is_an_absent_port() -> None:
    master, slave = os.openpty()
    path = os.ttyname(slave)
    os.close(master)
    try:
        assert refusal(path).exit_code == 69
    finally:
        os.close(slave)


def before_call(real: Callable[..., Any], number: int, act: Callable[[], None]) -> Callable[..., Any]:
    """The real function, before whose so-manieth call something else happens."""
    calls = iter(range(1, 1000))

    def call(*arguments: Any) -> Any:
        if next(calls) == number:
            act()
        return real(*arguments)

    return call


@pytest.mark.parametrize(
    ("function", "number"), [("tcgetattr", 1), ("tcsetattr", 1), ("tcgetattr", 2), ("tcsetattr", 2), ("tcflush", 2)]
)
def test_a_device_that_vanishes_while_it_is_opened_is_an_absent_port(
    monkeypatch: pytest.MonkeyPatch, function: str, number: int
) -> None:
    """First pyserial's calls, then our own; what fails is the real call on a line that has just hung up."""
    before = len(list(Path("/proc/self/fd").iterdir()))
    master, slave = os.openpty()
    path = os.ttyname(slave)
    os.close(slave)
    vanish = before_call(getattr(termios, function), number, lambda: os.close(master))
    monkeypatch.setattr(termios, function, vanish)
    error = refusal(path)
    assert error.exit_code == 69
    assert "correct motor.port" in str(error)
    assert "no serial port" not in str(error)
    assert len(list(Path("/proc/self/fd").iterdir())) == before


@pytest.mark.parametrize("kind", ["file", "null", "fifo", "folder"])
def test_what_is_no_serial_port_is_refused_by_name(kind: str, tmp_path: Path) -> None:
    path = tmp_path / "thing"
    if kind == "file":
        path.write_bytes(b"precious")
    elif kind == "fifo":
        os.mkfifo(path)
    elif kind == "folder":
        path.mkdir()
    else:
        path.symlink_to("/dev/null")
    error = refusal(str(path))
    assert error.exit_code == 69
    assert str(path) in str(error)
    assert "correct motor.port" in str(error)
    if kind == "file":
        assert path.read_bytes() == b"precious"


def test_no_permission_is_its_own_exit_code(pty: Pty) -> None:
    Path(pty.path).chmod(0)
    with as_nobody():
        error = refusal(pty.path)
    assert error.exit_code == 77
    assert "usermod -aG dialout" in str(error)


def test_a_second_opener_is_refused(pty: Pty, port: SerialPort) -> None:
    error = refusal(pty.path)
    assert error.exit_code == 69
    assert "in use by another program" in str(error)
    assert port.write(FRAME)
    assert pty.read() == FRAME


def test_a_second_opener_in_another_process_is_refused_and_writes_nothing(pty: Pty, port: SerialPort) -> None:
    attributes = termios.tcgetattr(port.fd)
    code, sentence = open_elsewhere(pty.path)
    assert code == 69
    assert "in use by another program" in sentence
    assert termios.tcgetattr(port.fd) == attributes
    assert not select.select([pty.master], [], [], 0)[0]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can become another user; root itself is not kept out")
def test_another_program_without_our_lock_is_kept_out_too(pty: Pty, port: SerialPort) -> None:
    Path(pty.path).chmod(0o666)
    opened = subprocess.run(
        [sys.executable, "-c", f"import os; os.setuid({NOBODY}); os.open({pty.path!r}, os.O_RDWR | os.O_NOCTTY)"],
        capture_output=True,
        text=True,
        check=False,
    )
    assert "Errno 16" in opened.stderr  # EBUSY
    assert port.write(FRAME)


def test_a_freed_port_can_be_opened_again(pty: Pty) -> None:
    for _ in range(3):
        SerialPort(pty.path, BAUD).close()
    keeper = os.open(pty.path, os.O_RDWR | os.O_NOCTTY)
    SerialPort(pty.path, BAUD).close()
    assert not is_exclusive(keeper)
    assert open_elsewhere(pty.path) == (0, "")
    os.close(keeper)


def is_exclusive(fd: int) -> bool:
    return fcntl.ioctl(fd, TIOCGEXCL, b"\0\0\0\0") != b"\0\0\0\0"


def test_the_line_is_ours_alone_raw_and_does_not_hang_up(pty: Pty) -> None:
    before = os.open(pty.path, os.O_RDWR | os.O_NOCTTY)
    attributes = termios.tcgetattr(before)
    attributes[0] |= termios.IXON | termios.IXOFF | termios.ICRNL
    attributes[1] |= termios.OPOST
    attributes[2] |= termios.HUPCL | termios.PARENB | termios.CSTOPB
    attributes[3] |= termios.ICANON | termios.ECHO | termios.ISIG
    termios.tcsetattr(before, termios.TCSANOW, attributes)
    port = SerialPort(pty.path, BAUD)
    iflag, oflag, cflag, lflag, ispeed, ospeed, _ = termios.tcgetattr(port.fd)
    assert is_exclusive(port.fd)
    assert not cflag & termios.HUPCL
    assert cflag & termios.CLOCAL
    assert (cflag & termios.CSIZE, cflag & (termios.PARENB | termios.CSTOPB)) == (termios.CS8, 0)
    assert (ispeed, ospeed) == (termios.B921600, termios.B921600)
    assert not lflag & (termios.ICANON | termios.ECHO | termios.ISIG)
    assert not iflag & (termios.IXON | termios.IXOFF | termios.ICRNL)
    assert not oflag & termios.OPOST
    port.close()
    os.close(before)


def test_the_descriptor_is_not_inherited_and_never_blocks(port: SerialPort) -> None:
    assert not os.get_inheritable(port.fd)
    assert not os.get_blocking(port.fd)


# --- writing onto a full buffer ---


def fill(port: SerialPort) -> int:
    """Write frames until one does not fit; how many did."""
    for count in range(100_000):
        if not port.write(FRAME):
            return count
    raise AssertionError("the buffer never became full")


def test_a_full_buffer_drops_frames_and_breaks_none(pty: Pty, port: SerialPort) -> None:
    """Whatever was cut off is closed by a zero, so that the next frame is whole."""
    kept = fill(port)
    assert not port.write(FRAME)
    data = pty.read_all()
    whole, cut = divmod(len(data), len(FRAME))
    assert whole == kept
    assert cut, "this pty's buffer holds a whole number of frames; the test needs another frame length"
    news = b"\x22" * 20 + b"\0"
    assert port.write(news)
    assert pty.read() == b"\0" + news
    assert port.write(news)
    assert pty.read() == news


def test_every_frame_after_any_number_of_jams_is_whole_or_dropped(pty: Pty, port: SerialPort) -> None:
    received = b""
    taken = 0
    for _ in range(4):
        taken += fill(port)
        for _ in range(3):
            taken += port.write(FRAME)
        received += pty.read_all()
        taken += port.write(FRAME)
    received += pty.read_all()
    runs = [run for run in received.split(b"\0") if run]
    assert sum(run == FRAME[:-1] for run in runs) == taken
    assert all(run == FRAME[:-1][: len(run)] for run in runs)


# --- the device goes away ---


@pytest.fixture
def orphan() -> Iterator[SerialPort]:
    """A port whose device is gone."""
    master, slave = os.openpty()
    port = SerialPort(os.ttyname(slave), BAUD)
    os.close(slave)
    os.close(master)
    yield port
    port.close()


def test_a_port_that_is_gone_says_so_however_it_is_used(orphan: SerialPort) -> None:
    assert select.select([orphan.fd], [], [], 0)[0], "a gone port has to wake the gate"
    for use in (orphan.read, lambda: orphan.write(FRAME), orphan.queued_bytes):
        with pytest.raises(PortLostError, match=orphan.path):
            use()


def test_a_closed_port_is_a_lost_one(port: SerialPort) -> None:
    port.close()
    for use in (port.read, lambda: port.write(FRAME), port.queued_bytes):
        with pytest.raises(PortLostError, match="Bad file descriptor"):
            use()


def test_closing_is_allowed_twice_and_after_the_end(orphan: SerialPort) -> None:
    orphan.close()
    orphan.close()


def test_closing_twice_leaves_the_next_port_alone(pty: Pty, port: SerialPort) -> None:
    port.close()
    following = SerialPort(pty.path, BAUD)
    assert following.fd == port.fd
    port.close()
    assert is_exclusive(following.fd)
    assert following.write(FRAME)
    following.close()


def test_a_port_that_came_back_under_its_name_can_be_opened(tmp_path: Path) -> None:
    name = tmp_path / "usb-controller"
    for _ in range(2):
        master, slave = os.openpty()
        name.unlink(missing_ok=True)
        name.symlink_to(os.ttyname(slave))
        os.close(slave)
        port = SerialPort(str(name), BAUD)
        assert port.write(FRAME)
        assert os.read(master, 100) == FRAME
        os.close(master)
        with pytest.raises(PortLostError):
            port.write(FRAME)
        port.close()


# --- there or not ---


def test_a_port_that_was_lost_is_looked_for_every_500_ms_and_silent_until_it_is_back(tmp_path: Path) -> None:
    name = tmp_path / "usb-controller"
    master, slave = os.openpty()
    name.symlink_to(os.ttyname(slave))
    port = MotorPort(str(name), BAUD)
    assert (port.path, port.baud, port.was_lost, port.reopen_ns) == (str(name), BAUD, False, 0)
    assert port.fd is not None
    assert port.write(FRAME)
    assert os.read(master, 100) == FRAME
    os.write(master, FRAME)
    assert select.select([port.fd], [], [], 5)[0]
    assert (port.read(), port.queued_bytes()) == (FRAME, 0)

    name.unlink()
    port.drop(1_000 * MS)
    assert (port.fd, port.was_lost, port.reopen_ns) == (None, True, 1_500 * MS)
    assert (port.read(), port.write(FRAME), port.queued_bytes()) == (b"", False, 0)
    assert not port.reopen(1_499 * MS)
    assert port.failed_reopenings == 0
    assert not port.reopen(1_500 * MS)
    assert (port.failed_reopenings, port.reopen_ns) == (1, 2_000 * MS)

    name.symlink_to(os.ttyname(slave))
    assert port.reopen(2_100 * MS)
    assert (port.failed_reopenings, port.reopen_ns) == (1, 2_600 * MS)
    assert port.write(FRAME)
    port.close()
    port.close()
    os.close(slave)
    os.close(master)


def test_a_port_that_cannot_be_opened_at_the_start_says_so(tmp_path: Path) -> None:
    with pytest.raises(DaemonError, match="does not exist"):
        MotorPort(str(tmp_path / "usb-controller"), BAUD)


# --- the kernel's thread that hands bytes over ---

HOG = """
import os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
print("ready", flush=True)
sys.stdin.readline()
os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
end_s = time.monotonic() + float(sys.argv[2])
while time.monotonic() < end_s:
    pass
"""
HOGGED_S = 0.2


@pytest.fixture
def hogs() -> Iterator[list[subprocess.Popen[bytes]]]:
    """A program for each processor that takes it from everything ordinary, the kernel's threads too, once told."""
    with ExitStack() as stack:
        hogs = []
        for core in os.sched_getaffinity(0):
            words = [sys.executable, "-c", HOG, str(core), str(HOGGED_S)]
            hogs.append(stack.enter_context(subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)))
        for hog in hogs:
            assert hog.stdout is not None
            assert hog.stdout.readline() == b"ready\n"
        yield hogs


@pytest.mark.alone
@pytest.mark.skipif(not fifo_is_granted(), reason="needs the right to real-time scheduling")
def test_a_read_does_not_wait_for_the_kernels_ordinary_threads(hogs: list[subprocess.Popen[bytes]]) -> None:
    far_fd, near_fd = os.openpty()
    tty.setraw(far_fd)
    try:
        with closing(SerialPort(os.ttyname(near_fd), 115_200)) as port:
            os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(60))  # as the gate is: before the hogs
            try:
                for hog in hogs:
                    assert hog.stdin is not None
                    hog.stdin.write(b"\n")
                    hog.stdin.flush()
                time.sleep(HOGGED_S / 10)
                os.write(far_fd, b"hello")
                began_s = time.monotonic()
                port.read()
                took_s = time.monotonic() - began_s
            finally:
                os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
            assert took_s < HOGGED_S / 4
            end_s = time.monotonic() + 10
            while not (heard := port.read()):
                assert time.monotonic() < end_s
            assert heard == b"hello"
    finally:
        os.close(far_fd)
        os.close(near_fd)
