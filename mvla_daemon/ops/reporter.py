"""The process that talks to people: log records, the live line, the cycle trace, the summary.

It may be slow, blocked or gone; the gate and the policy process send without waiting and count what was dropped. It
ends when the gate's socket does, however the gate ended, so the last thing that happened is always told.
"""

from __future__ import annotations

import argparse
import os
import select
import signal
import socket
import sys
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

from mvla_daemon.core.messages import MS, SECOND
from mvla_daemon.ops.blame import Blame
from mvla_daemon.ops.drops import Allowance, DropBoard
from mvla_daemon.ops.journal import SOCKET
from mvla_daemon.ops.log import Log, chosen_format
from mvla_daemon.ops.statistics import Statistics, percentile
from mvla_daemon.ops.telemetry import MAX_RECORD_BYTES, Dropped, unpack_record
from mvla_daemon.ops.trace import Trace

SUMMARY_EVERY_NS = 60 * SECOND
LIVE_EVERY_NS = 200 * MS
BATCH_S = 0.01
"""Records are taken together: a wake for each one would cost the policy's processor more than all the rest of it. Its
socket holds a quarter of a second at 1000 Hz."""
MAX_AT_ONCE = 100
"""Of one socket's records before the other's turn."""
MAX_LINE_BYTES = 4096
MAX_LAST_RECORDS = 1000
PIPE_BYTES = 65536
LIVE_LINE_EVERY_NS = 1 * SECOND
"""How often the live line is written where it cannot be overwritten: into a file or a pipe."""


class Reporter:
    """Reads all records and tells people what they say."""

    def __init__(self, log: Log, trace: Trace | None, board: DropBoard, *, live: bool) -> None:
        self._log = log
        self._trace = trace
        self._board = board
        self._live = live
        self._overwrite = sys.stdout.isatty()
        self._next_live_ns = 0
        self._next_summary_ns = time.monotonic_ns() + SUMMARY_EVERY_NS
        self._state = "disarmed"
        self._session: object = None
        self._allowance = Allowance(time.monotonic_ns())
        self.statistics = Statistics()
        self._blame = Blame(self.statistics)
        self.farewell: dict[str, Any] | None = None

    def take(self, data: bytes, sender: str) -> None:
        """One record of the gate's or of the policy process's."""
        try:
            record = unpack_record(data)
        except ValueError:
            text = f"{len(data)} bytes of no known record"
            record = {"event": "odd_record", "level": "warning", "message": text}
        if isinstance(record, Dropped):
            self._board.add(sender, record.count)
        elif not isinstance(record, dict):
            matched = self.statistics.add(record)
            ended = self._trace.add(matched) if matched is not None and self._trace is not None else ""
            if ended:
                self._event({"event": "trace", "level": "error", "message": f"the trace ends here: {ended}"})
        elif sender == "gate":
            self._gate_event(record)
        else:
            self._policy_event(record)

    def output(self, text: str) -> None:
        """A line that something inside the policy process printed."""
        self._policy_event({"event": "policy_output", "level": "warning", "message": f"policy process: {text}"})

    def _gate_event(self, record: dict[str, Any]) -> None:
        kind = record["event"]
        self._session = record.get("session") or self._session
        if kind == "state":
            self._state = str(record.get("state"))
        elif kind == "stop":
            self.statistics.stops[str(record.get("reason"))] += 1
        elif kind == "end":
            self.farewell = record
            return
        self._event(record)

    def _policy_event(self, record: dict[str, Any]) -> None:
        """One that talks without end is cut short, so that the gate's records are still taken."""
        if self._allowance.allows(time.monotonic_ns()):
            self._event(record)
        else:
            self._board.add("policy", 1)

    def _event(self, record: dict[str, Any]) -> None:
        record["session"] = self._session
        self._blame.complete(record)
        self._clear_live()
        self._log.write(record)
        self._board.put("log", self._log.dropped)

    def tick(self, now_ns: int) -> None:
        """What is due by the clock: the live line, the summary of the minute."""
        if self._live and now_ns >= self._next_live_ns:
            self._next_live_ns = now_ns + (LIVE_EVERY_NS if self._overwrite else LIVE_LINE_EVERY_NS)
            line = self._live_line(now_ns)
            with suppress(OSError, UnicodeError):
                sys.stdout.write(f"\r\x1b[2K{line}" if self._overwrite else line + "\n")
                sys.stdout.flush()
        if now_ns >= self._next_summary_ns:
            self._next_summary_ns = now_ns + SUMMARY_EVERY_NS
            self._event(self._summary())

    def _live_line(self, now_ns: int) -> str:
        recent = self.statistics.stage_ms("frame_to_wire", 500)
        stops = self.statistics.stops
        return (
            f"{self._state:<9} {self.statistics.rate_hz(now_ns):5.1f} Hz   frame to wire p50 "
            f"{percentile(recent, 50):5.2f} ms, p99 {percentile(recent, 99):5.2f} ms   "
            f"missed deadlines {stops['deadline_missed']}   stops {stops.total()}"
        )

    def _clear_live(self) -> None:
        if self._live and self._overwrite:
            with suppress(OSError, UnicodeError):
                sys.stdout.write("\r\x1b[2K")
                sys.stdout.flush()

    def _headline(self) -> str:
        s = self.statistics
        stopped = ", ".join(f"{name} {count}" for name, count in s.stops.items()) or "none"
        lost = ", ".join(f"{sink} {count}" for sink, count in self._board.totals().items() if count)
        told = f"{s.commands} commands ({s.holds} of them holds); stops: {stopped}"
        return f"{told}; RECORDS LOST: {lost}" if lost else told

    def _summary(self) -> dict[str, Any]:
        recent = self.statistics.stage_ms("frame_to_wire")
        return {
            "event": "summary",
            "level": "info",
            "message": self._headline(),
            "commands": self.statistics.commands,
            "holds": self.statistics.holds,
            "stops": dict(Counter(self.statistics.stops)),
            "frame_to_wire_p50_ms": round(percentile(recent, 50), 3),
            "frame_to_wire_p99_ms": round(percentile(recent, 99), 3),
            **{f"dropped_records_{sink}": count for sink, count in self._board.totals().items()},
        }

    def finish(self) -> None:
        """The last words: the summary, and that the gate is gone if it did not say so itself."""
        self._clear_live()
        if self.farewell is None:
            gone = "the gate ended without a word; the controller's own watchdog stops the robot"
            self._event({"event": "gate_gone", "level": "error", "message": gone})
        if self._live and self.statistics.commands:
            with suppress(OSError, UnicodeError):
                sys.stdout.write("\n".join(["", self._headline(), *self.statistics.table(), ""]))
                sys.stdout.flush()
        else:
            self._event(self._summary())
        if self._trace is not None:
            self._trace.close()


def serve(reporter: Reporter, gate: socket.socket, policy: socket.socket, output_fd: int) -> None:
    """Read until the gate's end closes, then what the policy process had still to say."""
    pending = b""
    watched: list[Any] = [gate, policy, output_fd]
    while gate in watched:
        readable = select.select(watched, [], [], LIVE_EVERY_NS / SECOND)[0]
        for sock, sender in ((gate, "gate"), (policy, "policy")):
            if sock in readable and not _take_all(reporter, sock, sender):
                watched.remove(sock)
        if output_fd in readable:
            data = os.read(output_fd, 4096)
            if not data:
                watched.remove(output_fd)
            *lines, pending = (pending + data).split(b"\n")
            if len(pending) > MAX_LINE_BYTES:  # a progress bar never ends its line
                lines, pending = [*lines, pending], b""
            for line in lines:
                reporter.output(line.decode("utf-8", "replace"))
        reporter.tick(time.monotonic_ns())
        time.sleep(BATCH_S)
    _drain(reporter, policy, output_fd, pending)
    reporter.finish()


def _take_all(reporter: Reporter, sock: socket.socket, sender: str) -> bool:
    """The records that are there, up to a bound; whether there may be more later on."""
    with suppress(BlockingIOError):
        for _ in range(MAX_AT_ONCE):
            data = sock.recv(MAX_RECORD_BYTES, socket.MSG_DONTWAIT)
            if not data:
                return False
            reporter.take(data, sender)
    return True


def _drain(reporter: Reporter, policy: socket.socket, output_fd: int, pending: bytes) -> None:
    """What was on its way when the gate ended; a policy process that goes on talking is not listened to for ever."""
    policy.setblocking(False)
    os.set_blocking(output_fd, False)
    with suppress(OSError):
        for _ in range(MAX_LAST_RECORDS):
            data = policy.recv(MAX_RECORD_BYTES)
            if not data:
                break
            reporter.take(data, "policy")
    with suppress(OSError):
        pending += os.read(output_fd, PIPE_BYTES)
    for line in pending.splitlines():
        reporter.output(line.decode("utf-8", "replace"))


def main() -> None:
    """Entry point of the process: descriptors of both sockets, of the policy process's output and of the drop board."""
    parser = argparse.ArgumentParser()
    parser.add_argument("fds", type=int, nargs=4)
    parser.add_argument("--format", required=True)
    parser.add_argument("--level", required=True)
    parser.add_argument("--journal", default=SOCKET)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--live", action="store_true")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the gate, not before
    trace = Trace(arguments.trace.open("w", encoding="ascii")) if arguments.trace else None
    log = Log(chosen_format(arguments.format), arguments.level, arguments.journal)
    gate, policy, output_fd, board_fd = arguments.fds
    reporter = Reporter(log, trace, DropBoard(board_fd), live=arguments.live)
    serve(reporter, socket.socket(fileno=gate), socket.socket(fileno=policy), output_fd)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(0)  # at its own end the interpreter would complain of a reader that is gone


if __name__ == "__main__":
    main()
