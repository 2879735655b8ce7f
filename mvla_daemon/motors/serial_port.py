"""The serial port, opened so that it is ours alone and that opening or closing it resets no board.

pyserial configures the line; reading and writing are single non-blocking system calls, because the gate must know at
once what did not fit.
"""

from __future__ import annotations

import errno
import fcntl
import os
import termios
from array import array
from contextlib import suppress
from pathlib import Path

import serial

from mvla_daemon.errors import DaemonError, ExitCode

READ_BYTES = 4096
"""More than a second of STATUS frames; a wake of the gate reads no more than this."""


class PortLostError(Exception):
    """The device is gone: unplugged, or its driver failed."""


class _ExclusiveSerial(serial.Serial):  # type: ignore[misc]
    """A Serial that takes its locks before it changes any setting: two daemons must never share a motor controller.

    pyserial offers the advisory lock only; TIOCEXCL keeps out those who take none (though not root).
    """

    def _reconfigure_port(self, force_update: bool = False) -> None:
        fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        fcntl.ioctl(self.fd, termios.TIOCEXCL)
        super()._reconfigure_port(force_update)


class SerialPort:
    """An open port; `fd` is for select(). Raises DaemonError when it can't be opened, PortLostError later on."""

    def __init__(self, path: str, baud: int) -> None:
        self.path = path
        self._broken = False
        self._waiting, self._queued = array("i", [0]), array("i", [0])
        try:
            self._serial = _ExclusiveSerial(path, baud, timeout=0, write_timeout=0)
            self.fd: int = self._serial.fileno()
            self._set_up()
        except (OSError, ValueError, termios.error) as error:  # also a device that vanishes between two of these steps
            raise _refusal(path, baud, error) from error

    def _set_up(self) -> None:
        try:
            self._keep_lines_up()
            with suppress(OSError, ValueError):
                self._serial.set_low_latency_mode(True)  # FTDI's driver holds input back 16 ms otherwise; others refuse
            self._serial.reset_input_buffer()
        except BaseException:
            self.close()
            raise

    def _keep_lines_up(self) -> None:
        """Clear hang-up-on-close: a dropped DTR resets many boards, in motion too.

        And with a least number of 1, a read of nothing is EAGAIN, and 0 bytes mean a hung-up line and nothing else.
        """
        attributes = termios.tcgetattr(self.fd)
        attributes[2] &= ~termios.HUPCL
        attributes[6][termios.VMIN] = 1
        termios.tcsetattr(self.fd, termios.TCSANOW, attributes)

    def read(self) -> bytes:
        """What has arrived, at most `READ_BYTES`; empty when nothing has.

        It asks before it reads: to find nothing, read(2) and poll(2) of a terminal wait for the kernel's ordinary
        thread that hands its bytes over, O_NONBLOCK or not (`tty_buffer_flush_work` in n_tty.c). Measured while a
        real-time program kept that thread from its processor: up to 124 ms, and 0.1 ms when asked before.
        """
        try:
            fcntl.ioctl(self.fd, termios.FIONREAD, self._waiting)
            if not self._waiting[0]:
                return b""
            data = os.read(self.fd, READ_BYTES)
        except (BlockingIOError, InterruptedError):
            return b""
        except OSError as error:
            raise PortLostError(f"{self.path}: the other end is gone ({error.strerror})") from error
        if not data:
            raise PortLostError(f"{self.path}: the other end is gone")
        return data

    def write(self, packet: bytes) -> bool:
        """Write a packet whole, or say that it did not fit; what a broken one left behind is flushed by a zero."""
        data = b"\0" + packet if self._broken else packet
        try:
            written = os.write(self.fd, data)
        except (BlockingIOError, InterruptedError):
            return False
        except OSError as error:
            raise PortLostError(f"{self.path}: {error.strerror}") from error
        self._broken = written < len(data)
        return not self._broken

    def queued_bytes(self) -> int:
        """Bytes written but not yet on the wire, as far as the driver knows (a pty always says 0)."""
        try:
            fcntl.ioctl(self.fd, termios.TIOCOUTQ, self._queued)
        except OSError as error:
            raise PortLostError(f"{self.path}: {error.strerror}") from error
        return self._queued[0]

    def close(self) -> None:
        """Let go of the port; closing a port that is gone already is no error."""
        if not self._serial.is_open:  # the number may be another file's by now
            return
        with suppress(OSError, termios.error):
            fcntl.ioctl(self.fd, termios.TIOCNXCL)
        with suppress(OSError, termios.error):
            self._serial.close()


def _refusal(path: str, baud: int, error: Exception) -> DaemonError:
    """The sentence for a port that can't be opened."""
    number = error.args[0] if isinstance(error, termios.error) else getattr(error, "errno", None)
    if isinstance(error, BlockingIOError) or number in {errno.EBUSY, errno.EAGAIN}:
        return DaemonError(
            f"{path} is in use by another program; stop that one first (`fuser {path}` names it).",
            ExitCode.UNAVAILABLE,
        )
    if number == errno.EACCES:
        return DaemonError(
            f"No permission to open {path}; add this user to its group (ls -l {path}; usually: "
            f"sudo usermod -aG dialout $USER) and log in again.",
            ExitCode.NO_PERMISSION,
        )
    if number in {errno.ENOENT, errno.ENXIO, errno.ENODEV, errno.EIO}:
        there = sorted(str(p) for p in Path("/dev/serial/by-id").glob("*")) or ["none"]
        return DaemonError(
            f"{path} does not exist; plug the motor controller in or correct motor.port "
            f"(serial devices here: {', '.join(there)}).",
            ExitCode.UNAVAILABLE,
        )
    if number == errno.ENOTTY or isinstance(error, (termios.error, ValueError)):
        return DaemonError(
            f"{path} is no serial port that can do {baud} baud; correct motor.port.", ExitCode.UNAVAILABLE
        )
    return DaemonError(f"{path} cannot be opened: {error}; correct motor.port.", ExitCode.UNAVAILABLE)
