"""A reporter as a real process, with the ends of it that the gate and the policy process would hold."""

from __future__ import annotations

import fcntl
import json
import os
import select
import signal
import socket
import subprocess
import sys
import termios
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

from mvla_daemon.ops.drops import DropBoard, create_drop_board
from mvla_daemon.ops.telemetry import GateCycle, PolicyCycle, Telemetry

MS = 1_000_000
SECOND = 1_000_000_000
WAITED, PREPARED, TO_DEVICE, COMPUTED, FROM_DEVICE, AFTER, SENT, CHECKED = 3, 2, 0.25, 5, 0.5, 0.125, 1, 0.0625
"""What the stages of `halves` take in ms, in order."""


def halves(
    cycle: int, *, compute_ms: float = COMPUTED, at_ns: int | None = None, hold: bool = False, written: bool = True
) -> tuple[GateCycle, PolicyCycle]:
    """A cycle as both processes tell it; by default one every 20 ms."""
    edges = [10 * SECOND + cycle * 20 * MS if at_ns is None else at_ns]
    for spent_ms in (WAITED, PREPARED, TO_DEVICE, compute_ms, FROM_DEVICE, AFTER, SENT, CHECKED):
        edges.append(edges[-1] + round(spent_ms * MS))
    captured, begun, h2d, compute, d2h, post, sent, received, out = edges
    gate = GateCycle(1, cycle, begun, begun + 20 * MS, received, out if written else 0, captured)
    return gate, PolicyCycle(
        1, cycle, hold, cycle + 7, captured, captured + 1, begun, begun, h2d, compute, d2h, post, sent
    )


@dataclass
class Room:
    """A reporter process and the ends that the gate and the policy process would hold."""

    process: subprocess.Popen[bytes]
    gate: Telemetry
    gate_socket: socket.socket
    policy: Telemetry
    policy_socket: socket.socket
    output_fd: int

    def cycles(self, count: int, **fields: Any) -> None:
        for cycle in range(count):
            gate, policy = halves(cycle, **fields)
            self.policy.cycle(policy)
            self.gate.cycle(gate)

    def leave(self) -> None:
        """As the gate's end, however it came."""
        self.gate_socket.close()
        self.policy_socket.close()
        if self.output_fd >= 0:
            os.close(self.output_fd)
            self.output_fd = -1

    def settle(self) -> None:
        """Until the reporter has taken from the sockets what was sent."""
        unread = [self.gate_socket, self.policy_socket]
        self.wait_until(lambda: not any(fcntl.ioctl(sock, termios.TIOCOUTQ, bytes(4)) != bytes(4) for sock in unread))

    def wait_until(self, holds: Callable[[], bool]) -> None:
        end_s = time.monotonic() + 20
        while not holds():
            assert time.monotonic() < end_s
            time.sleep(0.002)

    def lost(self, sink: str) -> int:
        """So many records, as the gate would tell an operator."""
        return int(self.gate.losses()["dropped_records_by_sink"][sink])

    def stand_still(self) -> None:
        """The reporter takes nothing any more."""
        self.gate.event("x", "ready")
        self.wait_for("ready")
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED | os.WNOWAIT)

    def go_on(self) -> None:
        self.process.send_signal(signal.SIGCONT)

    def last_words(self) -> tuple[str, str]:
        """All of its stdout and stderr, once the gate has ended in good order."""
        self.gate.event("end", "")
        self.leave()
        out, err = self.process.communicate(timeout=20)
        assert self.process.returncode == 0
        return out.decode(), err.decode()

    def events(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.last_words()[1].splitlines()]

    def wait_for(self, text: str) -> None:
        """Until its stderr has said this."""
        assert self.process.stderr is not None
        said = b""
        while text.encode() not in said:
            assert select.select([self.process.stderr], [], [], 20)[0], f"never said {text!r}"
            piece = os.read(self.process.stderr.fileno(), 65536)
            assert piece, f"ended without saying {text!r}, but {said!r}"
            said += piece


Enter: TypeAlias = Callable[..., Room]


def start_reporter(
    *words: str,
    style: str = "json",
    level: str = "info",
    env: dict[str, str] | None = None,
    stderr: int = subprocess.PIPE,
) -> Room:
    ours, gate = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    theirs, policy = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    output, output_fd = os.pipe()
    board = create_drop_board()
    fds = (gate.fileno(), policy.fileno(), output, board)
    process = subprocess.Popen(
        [
            sys.executable,
            "-m",
            "mvla_daemon.ops.reporter",
            *map(str, fds),
            "--format",
            style,
            "--level",
            level,
            *words,
        ],
        pass_fds=fds,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=stderr,
        env={**os.environ, "COLUMNS": "200", **(env or {})},
    )
    gate.close()
    policy.close()
    os.close(output)
    room = Room(process, Telemetry(ours, DropBoard(board)), ours, Telemetry(theirs), theirs, output_fd)
    os.close(board)
    return room
