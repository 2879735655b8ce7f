"""The other end of the wire, as a process of its own: a controller on a pty that writes down every byte and when.

Each chunk that arrives is appended to the log file as `<qI` (CLOCK_MONOTONIC ns, length) and the bytes themselves.
What the controller says goes to a second file, of the same name but `.said`, and needs no times: until a reset, its
uptime is CLOCK_MONOTONIC in ms. Words on standard input change how it behaves; the first line on standard output is the
path of the daemon's end.
"""

from __future__ import annotations

import os
import select
import struct
import sys
import time
import tty
from contextlib import suppress
from pathlib import Path

from mvla_daemon.sim.controller import Controller

CHUNK = struct.Struct("<qI")


class FarEnd:
    def __init__(self, log_path: str) -> None:
        self.fd, self.daemon_fd = os.openpty()
        tty.setraw(self.fd)
        tty.setraw(self.daemon_fd)
        os.set_blocking(self.fd, False)
        self.log = os.open(log_path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.said = os.open(Path(log_path).with_suffix(".said"), os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.controller = Controller()
        self.mute = False

    def obey(self, words: list[str]) -> None:
        now_ns = time.monotonic_ns()
        match words:
            case ["mute", flag]:
                self.mute = flag == "on"
            case ["reset"]:
                self.controller.reset(now_ns)
            case ["fault", bit, flag]:
                self.controller.set_fault(int(bit), flag == "on")
            case ["say", hexadecimal]:
                os.write(self.fd, bytes.fromhex(hexadecimal))

    def hear(self) -> bytes:
        return os.read(self.fd, 65536)

    def serve(self) -> None:
        pending = b""
        while True:
            now_ns = time.monotonic_ns()
            wait_s = max(0, self.controller.next_tick_ns(now_ns) - now_ns) / 1e9
            readable = select.select([sys.stdin.fileno(), self.fd], [], [], wait_s)[0]
            answer = b""
            if self.fd in readable:
                data = self.hear()
                now_ns = time.monotonic_ns()
                os.write(self.log, CHUNK.pack(now_ns, len(data)) + data)
                answer = self.controller.receive(data, now_ns)
            if sys.stdin.fileno() in readable:
                words = os.read(sys.stdin.fileno(), 4096)
                if not words:
                    return
                *lines, pending = (pending + words).split(b"\n")
                for line in lines:
                    self.obey(line.decode().split())
            answer += self.controller.tick(time.monotonic_ns())
            if answer:
                os.write(self.said, answer)
                if not self.mute:
                    with suppress(BlockingIOError):
                        os.write(self.fd, answer)


if __name__ == "__main__":
    with suppress(PermissionError):
        # What is measured here is the daemon: this end should not be the one that is late.
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(60))
    far_end = FarEnd(sys.argv[1])
    print(os.ttyname(far_end.daemon_fd), flush=True)
    far_end.serve()
