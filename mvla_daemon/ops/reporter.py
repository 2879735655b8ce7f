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
from typing import IO, Any

from mvla_daemon.core.messages import MS, SECOND
from mvla_daemon.ops.blame import Blame
from mvla_daemon.ops.log import Log, chosen_format
from mvla_daemon.ops.statistics import Matched, Statistics, percentile
from mvla_daemon.ops.telemetry import MAX_RECORD_BYTES, unpack_record

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
TRACE_COLUMNS = (
    "epoch,cycle,hold,frame,captured_ns,arrived_ns,started_ns,preprocess_ns,h2d_ns,compute_ns,d2h_ns,"
    "postprocess_ns,sent_ns,received_ns,deadline_ns,written_ns"
)


class Reporter:
    """Reads all records and tells people what they say."""

    def __init__(self, log: Log, trace: IO[str] | None, *, live: bool) -> None:
        self._log = log
        self._trace = trace
        self._live = live
        self._overwrite = sys.stdout.isatty()
        self._next_live_ns = 0
        self._next_summary_ns = time.monotonic_ns() + SUMMARY_EVERY_NS
        self._state = "disarmed"
        self.statistics = Statistics()
        self._blame = Blame(self.statistics)
        self.farewell: dict[str, Any] | None = None
        if trace is not None:
            trace.write(TRACE_COLUMNS + "\n")

    def take(self, data: bytes) -> None:
        """One record."""
        try:
            record = unpack_record(data)
        except ValueError:
            self._event({"event": "odd_record", "level": "warning", "message": f"{len(data)} bytes of no known record"})
            return
        if isinstance(record, dict):
            self._event(record)
            return
        matched = self.statistics.add(record)
        if matched is not None and self._trace is not None:
            try:
                self._trace.write(_trace_line(matched))
            except OSError as error:
                self._end_trace(error)

    def _end_trace(self, error: OSError) -> None:
        """Said once: a trace with a hole in it would be worse than a short one."""
        trace, self._trace = self._trace, None
        with suppress(OSError):
            trace.close() if trace is not None else None
        self._event({"event": "trace", "level": "error", "message": f"the trace ends here: {error.strerror}"})

    def output(self, text: str) -> None:
        """A line that something inside the policy process printed."""
        self._event({"event": "policy_output", "level": "warning", "message": f"policy process: {text}"})

    def _event(self, record: dict[str, Any]) -> None:
        kind = record["event"]
        if kind == "state":
            self._state = str(record.get("state"))
        elif kind == "stop":
            self.statistics.stops[str(record.get("reason"))] += 1
        elif kind == "end":
            self.farewell = record
            return
        self._blame.complete(record)
        self._clear_live()
        self._log.write(record)

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
            self._event({"event": "summary", "level": "info", "message": self._headline(), **self._figures()})

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
        return f"{s.commands} commands ({s.holds} of them holds); stops: {stopped}"

    def _figures(self) -> dict[str, Any]:
        recent = self.statistics.stage_ms("frame_to_wire")
        return {
            "commands": self.statistics.commands,
            "holds": self.statistics.holds,
            "stops": dict(Counter(self.statistics.stops)),
            "frame_to_wire_p50_ms": round(percentile(recent, 50), 3),
            "frame_to_wire_p99_ms": round(percentile(recent, 99), 3),
        }

    def finish(self) -> None:
        """The last words: the summary, and that the gate is gone if it did not say so itself."""
        self._clear_live()
        if self.farewell is None:
            gone = "the gate ended without a word; the controller's own watchdog stops the robot"
            self._log.write({"event": "gate_gone", "level": "error", "message": gone})
        if self._live and self.statistics.commands:
            with suppress(OSError, UnicodeError):
                sys.stdout.write("\n".join(["", self._headline(), *self.statistics.table(), ""]))
                sys.stdout.flush()
        else:
            self._log.write({"event": "summary", "level": "info", "message": self._headline(), **self._figures()})
        if self._trace is not None:
            with suppress(OSError):
                self._trace.close()


def _trace_line(cycle: Matched) -> str:
    p, g = cycle.policy, cycle.gate
    values = (
        *(p.epoch, p.cycle, int(p.hold), p.frame, p.captured_ns, p.arrived_ns, p.started_ns, p.preprocess_ns),
        *(p.h2d_ns, p.compute_ns, p.d2h_ns, p.postprocess_ns, p.sent_ns, g.received_ns, g.deadline_ns, g.written_ns),
    )
    return ",".join(map(str, values)) + "\n"


def serve(reporter: Reporter, gate: socket.socket, policy: socket.socket, output_fd: int) -> None:
    """Read until the gate's end closes, then what the policy process had still to say."""
    pending = b""
    watched: list[Any] = [gate, policy, output_fd]
    while gate in watched:
        readable = select.select(watched, [], [], LIVE_EVERY_NS / SECOND)[0]
        for sock in (gate, policy):
            if sock in readable and not _take_all(reporter, sock):
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


def _take_all(reporter: Reporter, sock: socket.socket) -> bool:
    """The records that are there, up to a bound; whether there may be more later on."""
    with suppress(BlockingIOError):
        for _ in range(MAX_AT_ONCE):
            data = sock.recv(MAX_RECORD_BYTES, socket.MSG_DONTWAIT)
            if not data:
                return False
            reporter.take(data)
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
            reporter.take(data)
    with suppress(OSError):
        pending += os.read(output_fd, PIPE_BYTES)
    for line in pending.splitlines():
        reporter.output(line.decode("utf-8", "replace"))


def main() -> None:
    """Entry point of the process: descriptors of both sockets and of the policy process's output, then the format."""
    parser = argparse.ArgumentParser()
    parser.add_argument("fds", type=int, nargs=3)
    parser.add_argument("--format", required=True)
    parser.add_argument("--level", required=True)
    parser.add_argument("--trace", type=Path)
    parser.add_argument("--live", action="store_true")
    arguments = parser.parse_args()
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)  # it ends with the gate, not before
    trace = arguments.trace.open("w", encoding="ascii") if arguments.trace else None
    log = Log(chosen_format(arguments.format), arguments.level)
    gate, policy, output_fd = arguments.fds
    reporter = Reporter(log, trace, live=arguments.live)
    serve(reporter, socket.socket(fileno=gate), socket.socket(fileno=policy), output_fd)
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError):
            stream.flush()
    os._exit(0)  # at its own end the interpreter would complain of a reader that is gone


if __name__ == "__main__":
    main()
