"""The faults of the command line: what they are, and what they do to a real process at their time."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mvla_daemon.errors import DaemonError
from mvla_daemon.sim.fault import Fault

if TYPE_CHECKING:
    from collections.abc import Iterator

SECOND = 1_000_000_000
USAGE = 64
NO_PROCESS = 2**22 + 1
"""One more than Linux ever gives, proc(5)."""


@pytest.fixture
def victim() -> Iterator[subprocess.Popen[bytes]]:
    with subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(60)"]) as victim:
        yield victim
        victim.kill()


def is_frozen(process: subprocess.Popen[bytes]) -> bool:
    """Whether it has been stopped, as soon as a stop that was sent has arrived."""
    status = Path(f"/proc/{process.pid}/status").read_text()
    pending = int(status.split("ShdPnd:")[1].split()[0], 16) >> (signal.SIGSTOP - 1) & 1
    return bool(pending) or status.split("State:")[1].split()[0] == "T"


@pytest.mark.parametrize(
    ("text", "number", "at_ns"),
    [
        ("SIGSTOP@4s", signal.SIGSTOP, 4 * SECOND),
        ("SIGKILL@0s", signal.SIGKILL, 0),
        ("SIGSTOP@0.25s", signal.SIGSTOP, SECOND // 4),
    ],
)
def test_a_fault_is_a_signal_and_a_time(text: str, number: int, at_ns: int) -> None:
    fault = Fault.parse(text)
    assert (fault.number, fault.at_ns) == (number, at_ns)


@pytest.mark.parametrize(
    "text",
    [
        *("", "SIGSTOP", "SIGSTOP@", "SIGSTOP@4", "SIGSTOP@s", "SIGSTOP@4s ", " SIGSTOP@4s", "SIGSTOP@4s\n"),
        *("SIGTERM@4s", "sigstop@4s", "19@4s", "SIGSTOP@-1s", "SIGSTOP@1e3s", "SIGSTOP@.5s", "SIGSTOP@nans"),
        *("SIGSTOP@4ms", "SIGSTOP@٤s", "SIGSTOP@4s,SIGKILL@5s", f"SIGSTOP@{'9' * 400}s"),
    ],
)
def test_anything_else_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(DaemonError, match="SIGSTOP@4s") as caught:
        Fault.parse(text)
    assert caught.value.exit_code == USAGE


def test_a_process_is_frozen_at_its_time_for_half_a_second_and_only_once(victim: subprocess.Popen[bytes]) -> None:
    fault = Fault.parse("SIGSTOP@2s")
    fault.inject(2 * SECOND - 1, victim.pid)
    assert not is_frozen(victim)
    fault.inject(2 * SECOND, victim.pid)
    os.waitid(os.P_PID, victim.pid, os.WSTOPPED)
    fault.inject(5 * SECOND // 2 - 1, victim.pid)
    assert is_frozen(victim)
    fault.inject(5 * SECOND // 2, victim.pid)
    os.waitid(os.P_PID, victim.pid, os.WCONTINUED)
    fault.inject(9 * SECOND, victim.pid)
    assert not is_frozen(victim)


def test_it_is_the_frozen_process_that_goes_on_and_not_the_one_after_it(victim: subprocess.Popen[bytes]) -> None:
    fault = Fault.parse("SIGSTOP@0s")
    fault.inject(0, victim.pid)
    os.waitid(os.P_PID, victim.pid, os.WSTOPPED)
    fault.inject(2 * SECOND, os.getpid())
    os.waitid(os.P_PID, victim.pid, os.WCONTINUED)


def test_a_process_is_killed(victim: subprocess.Popen[bytes]) -> None:
    fault = Fault.parse("SIGKILL@1.5s")
    fault.inject(SECOND, victim.pid)
    assert victim.poll() is None
    fault.inject(2 * SECOND, victim.pid)
    assert victim.wait(5) == -signal.SIGKILL


def test_without_a_process_it_waits_for_one(victim: subprocess.Popen[bytes]) -> None:
    fault = Fault.parse("SIGKILL@0s")
    fault.inject(SECOND, None)
    fault.inject(2 * SECOND, victim.pid)
    assert victim.wait(5) == -signal.SIGKILL


@pytest.mark.parametrize("text", ["SIGSTOP@0s", "SIGKILL@0s"])
def test_a_process_that_has_ended_is_let_be(text: str) -> None:
    fault = Fault.parse(text)
    for at_s in (1, 3):
        fault.inject(at_s * SECOND, NO_PROCESS)
