"""The simulated controller as a process at a real pty: it serves, it survives its daemon, it dies with its parent."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
import time
import tty
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import pytest

from tests import wire

if TYPE_CHECKING:
    from collections.abc import Iterator

ARMED, TRIPPED = 1, 4
SESSION = 0x1234
TTL_RAN_OUT = 0b10_0000


@dataclass
class Port:
    """A daemon's end of the real pty."""

    fd: int
    reader: wire.WireReader = field(default_factory=wire.WireReader)

    def send(self, kind: str, session: int, seq: int, **fields: int) -> None:
        assert select.select([], [self.fd], [], 5)[1], "the controller does not read"
        os.write(self.fd, wire.encode(kind, session, seq, **fields))

    def wait_for(self, kind: str, within_s: float = 5.0, **wanted: int) -> wire.WireFrame:
        ends = time.monotonic() + within_s
        while (left := ends - time.monotonic()) > 0:
            if select.select([self.fd], [], [], left)[0]:
                for frame in self.reader.feed(os.read(self.fd, 4096)):
                    if frame.kind == kind and wanted.items() <= frame.fields.items():
                        return frame
        raise AssertionError(f"no {kind} with {wanted} in {within_s} s")


def controller_command(parent_pid: int, *options: str) -> list[str]:
    module = "mvla_daemon.sim.controller_process"
    return [sys.executable, "-m", module, "--parent-pid", str(parent_pid), *options]


@pytest.fixture
def process() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen(
        controller_command(os.getpid()), stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    ) as process:
        yield process
        process.kill()


def path_told(process: subprocess.Popen[bytes]) -> str:
    assert process.stdout is not None
    return process.stdout.readline().decode().rstrip("\n")


def open_port(path: str) -> Port:
    return Port(os.open(path, os.O_RDWR | os.O_NOCTTY))


def test_the_process_serves_a_daemon_that_comes_goes_and_dies(process: subprocess.Popen[bytes]) -> None:
    path = path_told(process)
    port = open_port(path)
    port.send("HELLO", 0, 1, nonce=77)
    assert port.wait_for("IDENTITY").fields["nonce"] == 77
    port.send("ARM", SESSION, 2, watchdog_ms=500)
    armed = port.wait_for("STATUS", state=ARMED)
    assert (armed.session, armed.fields["watchdog_ms"], armed.fields["host_seq"]) == (SESSION, 500, 2)
    port.send("VELOCITY", SESSION, 3, cycle=0, ttl_ms=500, vx=100_000, vy=0, wz=0)
    port.wait_for("STATUS", host_seq=3, vx=100_000)
    tripped = port.wait_for("STATUS", state=TRIPPED)
    assert (tripped.fields["faults"], tripped.fields["vx"]) == (TTL_RAN_OUT, 0)

    os.close(port.fd)
    process.send_signal(signal.SIGINT)
    port = open_port(path)
    port.send("HELLO", 0, 1, nonce=78)
    port.wait_for("IDENTITY", nonce=78)
    os.close(port.fd)
    process.communicate(timeout=5)
    assert process.returncode == 0


def test_sigterm_ends_the_process_and_what_found_no_room_is_told(process: subprocess.Popen[bytes]) -> None:
    port = open_port(path_told(process))
    for seq in range(1, 3001):  # 3,000 answers of 40 bytes that nobody reads: more than a pty holds
        port.send("STOP", 0, seq, category=1, reason=13)
    port.wait_for("STATUS", host_seq=3000)  # the first answer past those that were lost
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=5)
    os.close(port.fd)
    assert process.returncode == 0
    assert b"bytes of the simulated controller found no room" in errors


def test_the_process_serves_a_port_that_is_there_and_says_when_it_goes() -> None:
    ours, theirs = os.openpty()
    tty.setraw(ours)
    with subprocess.Popen(
        controller_command(os.getpid(), "--port", os.ttyname(theirs)),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    ) as process:
        assert path_told(process) == os.ttyname(theirs)
        os.close(theirs)
        port = Port(ours)
        port.send("HELLO", 0, 1, nonce=5)
        port.wait_for("IDENTITY", nonce=5)
        os.close(ours)
        assert process.wait(timeout=5) == 69
        assert process.stderr is not None
        assert b"port is gone" in process.stderr.read()


@pytest.mark.parametrize(
    ("options", "sentence"), [(["--port", "/dev/null"], b"/dev/null"), (["--parent-pid", "1"], b"not the parent")]
)
def test_what_cannot_be_served_is_said_in_one_sentence(options: list[str], sentence: bytes) -> None:
    result = subprocess.run(
        controller_command(os.getpid(), *options), stdin=subprocess.PIPE, capture_output=True, timeout=10, check=False
    )
    assert result.returncode == 69
    assert sentence in result.stderr
    assert result.stderr.count(b"\n") == 1


STARTER = """
import subprocess, sys, os, time
double = subprocess.Popen([*sys.argv[1:], "--parent-pid", str(os.getpid())], stdout=subprocess.PIPE)
double.stdout.readline()
print(double.pid, flush=True)
time.sleep(60)
"""


def test_the_process_dies_with_its_parent() -> None:
    # Its standard input is ours and stays open, so that only the parent's death can end it.
    command = [sys.executable, "-m", "mvla_daemon.sim.controller_process"]
    with subprocess.Popen(
        [sys.executable, "-c", STARTER, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as starter:
        double = os.pidfd_open(int(path_told(starter)))
        assert select.select([double], [], [], 0)[0] == []
        starter.kill()
        starter.wait()
        assert select.select([double], [], [], 5)[0] == [double]
    os.close(double)
