"""The unit's life and deaths under a real systemd: whatever dies, the robot stands, and every start is disarmed."""

from __future__ import annotations

import time

import pytest

from tests.os.container_service import CONFIG, DAEMON, OPERATOR, UNIT, Service

DROP_IN = f"/run/systemd/system/{UNIT}.service.d"
A_WHILE_S = 1.5
"""Several cycles, in which something could move that must not."""


def test_stop_stops_the_robot_and_then_ends_the_daemon(driving: Service) -> None:
    driving.systemctl("stop", UNIT)
    assert driving.stop_reasons() == [14]
    assert driving.kinds()[-1] == "STOP"
    driving.wait_for_state(3)
    assert driving.show("ExecMainStatus") == "0"
    assert driving.show("Result") == "success"
    assert driving.show("ActiveState") == "inactive"
    assert driving.container.run("sh", "-c", "ls /run/mvla-daemon || true").stdout == ""


def test_a_restart_is_disarmed(driving: Service) -> None:
    driving.systemctl("restart", UNIT)
    assert driving.stop_reasons()[0] == 14
    comes_back_disarmed(driving)


@pytest.mark.parametrize("name", ["KILL", "SEGV"])
def test_a_gate_that_dies_leaves_the_controller_to_stop_and_comes_back_disarmed(driving: Service, name: str) -> None:
    gate, policy = driving.main_pid(), driving.policy_pid()
    driving.systemctl("kill", f"--signal={name}", "--kill-whom=main", UNIT)
    driving.wait_for_state(4)
    driving.wait_until(lambda: not alive(driving, policy), "end of the policy process")
    driving.wait_for_restart(gate)
    assert until_hello(driving) <= {"VELOCITY"}
    assert driving.show("NRestarts") == "1"
    comes_back_disarmed(driving)


def test_a_gate_that_hangs_is_stopped_by_the_controller_and_replaced_by_systemd(driving: Service) -> None:
    gate = driving.main_pid()
    driving.systemctl("kill", "--signal=STOP", "--kill-whom=main", UNIT)
    driving.wait_for_state(4)
    assert driving.main_pid() == gate  # the controller was first
    driving.wait_for_restart(gate)
    assert until_hello(driving) <= {"VELOCITY"}
    assert any("Watchdog timeout" in record["MESSAGE"] for record in driving.records())
    comes_back_disarmed(driving)


def test_a_policy_process_that_hangs_stops_the_robot_and_no_unit(driving: Service) -> None:
    gate = driving.main_pid()
    driving.kill("STOP", driving.policy_pid())
    driving.wait_for("STOP", after=driving.begin)
    assert driving.stop_reasons()[0] == 1
    driving.wait_for_state(3)
    driving.wait_until(lambda: driving.status()["state"] == "latched", "latched state")
    assert driving.status()["reason"] == "policy_lost"
    stays(driving, gate)


@pytest.mark.parametrize("name", ["KILL", "SEGV"])
def test_a_policy_process_that_dies_stops_the_robot_and_is_replaced(driving: Service, name: str) -> None:
    gate, policy = driving.main_pid(), driving.policy_pid()
    driving.kill(name, policy)
    driving.wait_for("STOP", after=driving.begin)
    assert driving.stop_reasons()[0] in {1, 7}
    driving.wait_for_state(3)
    driving.wait_until(lambda: driving.status()["state"] == "latched", "latched state")
    stays(driving, gate)
    driving.wait_until(lambda: driving.container.run_as(OPERATOR, *DAEMON, "arm").returncode == 0, "arming")
    driving.wait_for("VELOCITY", after=len(driving.read_wire()), count=3)
    assert driving.main_pid() == gate
    assert driving.policy_pid() != policy


def test_policy_processes_that_keep_dying_end_the_gate_which_comes_back_disarmed(driving: Service) -> None:
    gate = driving.main_pid()

    def gate_is_gone() -> bool:
        driving.container.run("sh", "-c", f"kill -s KILL {' '.join(map(str, driving.policy_pids()))}", check=False)
        return driving.main_pid() != gate

    driving.wait_until(gate_is_gone, "end of the gate")
    driving.wait_for_restart(gate)
    assert any("status=70" in record["MESSAGE"] for record in driving.records())
    driving.wait_for_state(3)
    moved = [i for i, timed in enumerate(driving.read_wire()) if timed.kind == "VELOCITY"][-1]
    assert "STOP" in {timed.kind for timed in driving.wire[moved:]}
    assert driving.status()["state"] == "disarmed"


def test_a_wrong_configuration_is_told_and_not_started_again(service: Service) -> None:
    service.systemctl("stop", UNIT)
    service.container.write(CONFIG, service.container.read(CONFIG).replace("rate_hz", "rate_herz"))
    service.mark()
    assert service.systemctl("start", UNIT, check=False).returncode != 0
    time.sleep(2 * seconds(service.show("RestartUSec")))
    assert service.show("ExecMainStatus") == "78"
    assert service.show("NRestarts") == "0"
    assert service.show("ActiveState") == "failed"
    said = [record["MESSAGE"] for record in service.records()]
    assert any("rate_herz" in line and "rate_hz" in line for line in said)
    assert not any("Traceback" in line for line in said)
    assert service.read_wire()[service.begin :] == []


def test_a_crash_loop_ends_and_moves_nothing(service: Service) -> None:
    """As often as the unit allows; faster than it would by itself, so that the test takes seconds."""
    allowed = int(service.show("StartLimitBurst"))
    service.systemctl("stop", UNIT)
    service.systemctl("reset-failed", UNIT, check=False)
    service.container.write(f"{DROP_IN}/test.conf", "[Service]\nRestartSec=100ms\n")
    service.systemctl("daemon-reload")
    service.configure(motor__port='"/dev/ttyNONE"')
    service.mark()
    try:
        service.systemctl("start", UNIT, check=False)
        service.wait_until(lambda: service.show("ActiveState") == "failed", "end of the loop")
        assert service.show("ExecMainStatus") == "69"
        assert int(service.show("NRestarts")) == allowed
        assert any("repeated too quickly" in record["MESSAGE"] for record in service.records())
        assert service.systemctl("start", UNIT, check=False).returncode != 0
        assert service.read_wire()[service.begin :] == []
    finally:
        service.container.run("rm", "-r", DROP_IN)
        service.systemctl("daemon-reload")


def test_limits_of_the_unit_grant_real_time_to_the_gate(service: Service) -> None:
    limits = service.container.read(f"/proc/{service.main_pid()}/limits")
    asked_for = (service.show("LimitRTPRIO"), service.show("LimitMEMLOCK"), service.show("OOMScoreAdjust"))
    assert asked_for == ("99", "infinity", "-1000")
    if limit(limits, "Max realtime priority") != "99":
        pytest.skip("root may not raise limits here (no CAP_SYS_RESOURCE), so the container's may not either")
    judge_real_time(service)


def test_nothing_that_the_unit_forbids_stands_between_the_gate_and_real_time(service: Service) -> None:
    """Granted here by capabilities, which every machine can give; the unit itself grants it by limits."""
    capabilities = "CAP_SYS_NICE CAP_IPC_LOCK"
    drop_in = f"[Service]\nCapabilityBoundingSet={capabilities}\nAmbientCapabilities={capabilities}\n"
    service.container.write(f"{DROP_IN}/test.conf", drop_in)
    service.systemctl("daemon-reload")
    service.systemctl("restart", UNIT)
    try:
        judge_real_time(service)
    finally:
        service.container.run("rm", "-r", DROP_IN)
        service.systemctl("daemon-reload")


def judge_real_time(service: Service) -> None:
    """The gate is SCHED_FIFO at the configured priority and has its memory locked; proc(5) says where that is told."""
    pid = service.main_pid()
    fields = service.container.read(f"/proc/{pid}/stat").rpartition(")")[2].split()
    real_time_priority, scheduler = int(fields[40 - 3]), int(fields[41 - 3])
    assert (scheduler, real_time_priority) == (1, 80)
    status = dict(line.split(":", 1) for line in service.container.read(f"/proc/{pid}/status").splitlines())
    locked_kib = int(status["VmLck"].split()[0])
    assert locked_kib > 0.5 * int(status["VmSize"].split()[0])
    policy = service.container.read(f"/proc/{service.policy_pid()}/stat").rpartition(")")[2].split()
    assert int(policy[40 - 3]) < real_time_priority


def until_hello(service: Service) -> set[str]:
    """The kinds of frames from the mark to where another process asks who the controller is."""
    kinds = service.kinds()
    return set(kinds[: kinds.index("HELLO")])


def comes_back_disarmed(service: Service) -> None:
    """It runs again and asks who the controller is, and moves nothing until it is armed; then it drives."""
    service.wait_until(lambda: service.show("ActiveState") == "active", "start")
    assert service.status()["state"] == "disarmed"
    time.sleep(A_WHILE_S)
    kinds = service.kinds()
    back = kinds[kinds.index("HELLO") :]
    assert not {"ARM", "VELOCITY"} & set(back), back
    service.arm()
    service.wait_for("VELOCITY", after=len(service.read_wire()), count=3)


def stays(service: Service, gate: int) -> None:
    """The main process is the same, and nothing moves."""
    before = len(service.read_wire())
    time.sleep(A_WHILE_S)
    assert (service.main_pid(), service.show("NRestarts")) == (gate, "0")
    assert "VELOCITY" not in {timed.kind for timed in service.read_wire()[before:]}


def alive(service: Service, pid: int) -> bool:
    return service.container.run("test", "-d", f"/proc/{pid}", check=False).returncode == 0


def limit(text: str, name: str) -> str:
    return next(line for line in text.splitlines() if line.startswith(name)).removeprefix(name).split()[0]


def seconds(shown: str) -> float:
    """A time as systemctl shows it."""
    unit = {"ms": 0.001, "s": 1.0}["ms" if shown.endswith("ms") else "s"]
    return float(shown.rstrip("ms")) * unit
