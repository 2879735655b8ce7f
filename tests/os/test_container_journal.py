"""What the journal of a real systemd knows of the daemon, and what a journal that is gone costs: nothing."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest

from tests.os.container_service import DAEMON, OPERATOR, RATE_HZ, Service

JOURNAL_UNITS = (
    "systemd-journald.socket",
    "systemd-journald-dev-log.socket",
    "systemd-journald-audit.socket",
    "systemd-journald.service",
)
# Ten requests are told in a second, one by one, and all together are more records than the journal's socket holds.
ASK_TEN_TIMES = """
import glob, socket
for _ in range(10):
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect(glob.glob("/run/mvla-daemon/*.sock")[0])
    client.send(b"arm")
    client.recv(8192)
"""
SILENCE_S = 6
TRIES = 3
Silence = Callable[[Service], AbstractContextManager[None]]


@contextmanager
def stopped_journal(service: Service) -> Iterator[None]:
    service.systemctl("stop", *JOURNAL_UNITS)
    try:
        yield
    finally:
        service.systemctl("start", *JOURNAL_UNITS)


@contextmanager
def hung_journal(service: Service) -> Iterator[None]:
    pid = int(service.systemctl("show", "--property=MainPID", "--value", "systemd-journald").stdout)
    service.kill("STOP", pid)
    try:
        yield
    finally:
        service.kill("CONT", pid)


def test_each_stop_is_one_record_that_can_be_asked_for(driving: Service) -> None:
    driving.container.run_as(OPERATOR, *DAEMON, "stop")
    driving.wait_for_state(3)
    driving.arm()
    driving.wait_for("VELOCITY", after=len(driving.read_wire()), count=3)
    driving.kill("STOP", driving.policy_pid())
    driving.wait_until(lambda: driving.status()["state"] == "latched", "latched state")
    driving.wait_until(lambda: len(driving.records("MVLA_EVENT=stop")) >= 2, "two stops")
    asked_for, frozen = driving.records("MVLA_EVENT=stop")
    assert driving.stop_reasons()[:2] == [13, 1]
    assert asked_for["MVLA_REASON"] == "operator"
    assert frozen["MVLA_REASON"] == "deadline_missed"
    assert frozen["MVLA_STAGE"] in {"wait_frame", "preprocess", "h2d", "compute", "d2h", "postprocess", "send"}
    assert int(frozen["MVLA_CYCLE"]) > 0
    assert int(frozen["MVLA_DURATION_US"]) > 0
    assert frozen["PRIORITY"] == "3"
    assert frozen["MESSAGE"].startswith("STOP deadline_missed: cycle")
    for record in (asked_for, frozen):
        assert record["_SYSTEMD_UNIT"] == "mvla-daemon.service"
        assert record["SYSLOG_IDENTIFIER"] == "mvla-daemon"
        assert len(record["MESSAGE_ID"]) == 32
    assert driving.records(f"MESSAGE_ID={frozen['MESSAGE_ID']}") == [asked_for, frozen]
    assert driving.records("MVLA_REASON=deadline_missed", "MVLA_EVENT=stop") == [frozen]


@pytest.mark.parametrize("silence", [stopped_journal, hung_journal])
def test_a_journal_that_is_away_costs_no_deadline(installed: Service, silence: Silence) -> None:
    """A record that waits for the journal would stop the robot each time, a busy machine now and then."""
    assert any(drives_through(installed, silence) for _ in range(TRIES)), installed.said()
    before = len(installed.records("MVLA_EVENT=stop"))
    installed.container.run_as(OPERATOR, *DAEMON, "stop")
    installed.wait_until(
        lambda: len(installed.records("MVLA_EVENT=stop")) > before, "record in the journal that is back"
    )


def drives_through(service: Service, silence: Silence) -> bool:
    """Whether nothing but commands was on the wire for `SILENCE_S`, in which there was much to tell."""
    service.drive()
    with silence(service):
        for _ in range(SILENCE_S):
            service.container.run("python3", "-c", ASK_TEN_TIMES)
            time.sleep(1)
    wire = service.read_wire()[service.begin :]
    return {timed.kind for timed in wire} == {"VELOCITY"} and len(wire) >= 0.8 * RATE_HZ * SILENCE_S
