"""`tests.far_end` for a daemon's end that others open and close, with a real port's manners at the last close.

A pty whose daemon's end nobody has open answers EIO, and what TIOCEXCL forbade stays forbidden when the one who asked
for it was killed; a real port forgets that, so this one is told to.
"""

from __future__ import annotations

import fcntl
import os
import sys
import termios
import time
from contextlib import suppress

from tests.far_end import FarEnd

CLOSED_WAIT_S = 0.002


class FarLine(FarEnd):
    def __init__(self, log_path: str) -> None:
        super().__init__(log_path)
        self.path = os.ttyname(self.daemon_fd)
        self._free = True
        os.close(self.daemon_fd)

    def hear(self) -> bytes:
        try:
            data = os.read(self.fd, 65536)
        except OSError:  # nobody has it open
            if not self._free:
                self._forget()
            self._free = self.mute = True
            time.sleep(CLOSED_WAIT_S)
            return b""
        self._free = self.mute = False
        return data

    def _forget(self) -> None:
        daemon_fd = os.open(self.path, os.O_RDWR | os.O_NOCTTY)
        fcntl.ioctl(daemon_fd, termios.TIOCNXCL)
        os.close(daemon_fd)


if __name__ == "__main__":
    with suppress(PermissionError):
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(60))
    far_line = FarLine(sys.argv[1])
    print(far_line.path, flush=True)
    far_line.serve()
