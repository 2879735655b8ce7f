"""What the journal of a real systemd knows of the daemon, and what a journal that is gone costs: nothing."""

from __future__ import annotations

import time

from tests.os.container_service import DAEMON, OPERATOR, RATE_HZ, Service

JOURNAL_UNITS = (
    "systemd-journald.socket",
    "systemd-journald-dev-log.socket",
    "systemd-journald-audit.socket",
    "systemd-journald.service",
)
# Ten are told in a second, the others are counted.
ASK_TEN_TIMES = """
import glob, socket
for _ in range(10):
    client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    client.connect(glob.glob("/run/mvla-daemon/*.sock")[0])
    client.send(b"arm")
    client.recv(8192)
"""
SILENCE_S = 5.0


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


def test_a_journal_that_is_stopped_costs_no_deadline(driving: Service) -> None:
    driving.systemctl("stop", *JOURNAL_UNITS)
    try:
        drives_for(driving, SILENCE_S)
    finally:
        driving.systemctl("start", *JOURNAL_UNITS)
    drives_for(driving, 1.0)
    driving.container.run_as(OPERATOR, *DAEMON, "stop")
    driving.wait_until(lambda: len(driving.records("MVLA_EVENT=stop")) == 1, "record in the journal that is back")


def test_a_journal_that_hangs_costs_no_deadline(driving: Service) -> None:
    """A hundred refused requests are more records than its socket holds."""
    pid = int(driving.systemctl("show", "--property=MainPID", "--value", "systemd-journald").stdout)
    driving.kill("STOP", pid)
    try:
        for _ in range(10):
            driving.container.run("python3", "-c", ASK_TEN_TIMES)
            drives_for(driving, 1.0)
    finally:
        driving.kill("CONT", pid)
    drives_for(driving, 1.0)


def drives_for(service: Service, seconds: float) -> None:
    """Commands go on for so long, and nothing else has been on the wire since the mark."""
    before = len(service.read_wire())
    time.sleep(seconds)
    wire = service.read_wire()
    assert {timed.kind for timed in wire[service.begin :]} == {"VELOCITY"}, service.said()
    assert len(wire) - before >= 0.8 * RATE_HZ * seconds
