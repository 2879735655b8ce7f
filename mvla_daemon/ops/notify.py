"""What systemd is told of this process (sd_notify(3)): a datagram that is sent at once, or dropped."""

from __future__ import annotations

import os
import socket
from collections.abc import MutableMapping

_VARIABLES = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")


class Notifier:
    """Tells the service manager at `address`, a path or `@` and an abstract name; without one it does nothing.

    `watchdog_ns` is how long the manager waits between two signs of life before it takes this process for dead, 0 where
    it waits for none.
    """

    def __init__(self, address: str, watchdog_ns: int = 0) -> None:
        self._address = "\0" + address[1:] if address.startswith("@") else address
        self._socket: socket.socket | None = None
        self.watchdog_ns = watchdog_ns
        if address[:1] in {"/", "@"}:
            try:
                self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
            except OSError:
                self._socket = None

    @classmethod
    def from_environment(cls, variables: MutableMapping[str, str]) -> Notifier:
        """What the manager asks of this process; taken out of `variables`, since it asks nobody else for it."""
        address, watchdog_us, watchdog_pid = (variables.pop(name, "") for name in _VARIABLES)
        # Set for another process, these have been inherited by mistake (sd_watchdog_enabled(3)).
        is_for_us = watchdog_us.isdecimal() and watchdog_pid in {"", str(os.getpid())}
        return cls(address, int(watchdog_us) * 1000 if is_for_us else 0)

    @property
    def is_listened_to(self) -> bool:
        """Whether there is a service manager."""
        return self._socket is not None

    def tell(self, *assignments: str) -> bool:
        """Send these (`READY=1`, `STATUS=...`); whether they were taken."""
        if self._socket is None:
            return False
        lines = (assignment.replace("\n", " ") for assignment in assignments)
        try:
            self._socket.sendto("\n".join(lines).encode("utf-8", "replace"), self._address)
        except (OSError, ValueError):  # a path too long is one of both, by Python's version
            return False
        return True

    def close(self) -> None:
        """Say nothing more."""
        if self._socket is not None:
            self._socket.close()
            self._socket = None
