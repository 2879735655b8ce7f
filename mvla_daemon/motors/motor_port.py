"""The motor controller's port, whether it is there or not: opened at the start, lost, looked for again."""

from __future__ import annotations

from typing import Protocol

from mvla_daemon.core.messages import MS
from mvla_daemon.errors import DaemonError
from mvla_daemon.motors.serial_port import PortLostError, SerialPort

REOPEN_EVERY_NS = 500 * MS


class Port(Protocol):
    """What the gate knows of a port; `sim/lockstep.py` has one without a device."""

    path: str
    baud: int
    was_lost: bool
    reopen_ns: int

    @property
    def fd(self) -> int | None:
        """What the gate has to watch; None while the port is gone."""

    def read(self) -> bytes:
        """What has arrived; raises PortLostError."""

    def write(self, packets: bytes) -> bool:
        """Write whole packets; False when they did not fit or the port is gone; raises PortLostError."""

    def queued_bytes(self) -> int:
        """Bytes that were written and are not yet on the wire; raises PortLostError."""

    def drop(self, now_ns: int) -> None:
        """Let go of a port that was lost."""

    def reopen(self, now_ns: int) -> bool:
        """Look for it again when that is due; whether it is back."""


class MotorPort:
    """Opens at once and raises DaemonError when that fails; afterwards `fd` is None while the port is gone."""

    def __init__(self, path: str, baud: int) -> None:
        self.path = path
        self.baud = baud
        self.was_lost = False
        self.reopen_ns = 0
        self.failed_reopenings = 0
        self._serial: SerialPort | None = SerialPort(path, baud)
        self.fd: int | None = self._serial.fd
        """For select(); None while the port is gone."""

    def read(self) -> bytes:
        """What has arrived; raises PortLostError."""
        return b"" if self._serial is None else self._serial.read()

    def write(self, packets: bytes) -> bool:
        """Write whole packets; False when they did not fit or the port is gone; raises PortLostError."""
        return self._serial is not None and self._serial.write(packets)

    def queued_bytes(self) -> int:
        """Bytes that wait in the driver; raises PortLostError."""
        return 0 if self._serial is None else self._serial.queued_bytes()

    def drop(self, now_ns: int) -> None:
        """Let go of a port that was lost."""
        self.close()
        self.was_lost = True
        self.reopen_ns = now_ns + REOPEN_EVERY_NS

    def reopen(self, now_ns: int) -> bool:
        """Look for it again when that is due; whether it is back."""
        if now_ns < self.reopen_ns:
            return False
        self.reopen_ns = now_ns + REOPEN_EVERY_NS
        try:
            self._serial = SerialPort(self.path, self.baud)
            self.fd = self._serial.fd
        except (DaemonError, PortLostError):
            self.failed_reopenings += 1
            return False
        return True

    def close(self) -> None:
        """Let go of the port."""
        if self._serial is not None:
            self._serial.close()
            self._serial = self.fd = None
