"""What is asked of the operating system for punctuality: granted or refused, said at start, not left to children."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import tests.rig
from mvla_daemon.ops.child import start_module
from mvla_daemon.ops.grants import Around, how_to_grant, is_service
from tests.rig import Rig, Scene, command

FIELDS = {"fifo", "memory", "affinity", "garbage", "oom", "timer_slack"}
ORDINARY = os.sched_getscheduler(0)
OWN_OOM = int(Path("/proc/self/oom_score_adj").read_text())
CAP_IPC_LOCK, CAP_SYS_NICE, CAP_SYS_RESOURCE = 14, 23, 24
PRIVILEGES = (CAP_IPC_LOCK, CAP_SYS_NICE, CAP_SYS_RESOURCE)


def capabilities() -> int:
    status = Path("/proc/self/status").read_text().splitlines()
    return int(next(line for line in status if line.startswith("CapEff:")).split()[1], 16)


def holds(*numbers: int) -> bool:
    return all(capabilities() >> number & 1 for number in numbers)


# --- in a process of its own ---

SHOW = """
import gc, json, os, re, resource, sys
from pathlib import Path
from mvla_daemon.ops import realtime

class Telemetry:
    def event(self, name, message, level, **fields):
        said.append({"event": name, "message": message, "level": level, **fields})

def prctl(number, value):
    realtime._LIBC.prctl(number, value, 0, 0, 0)

def now():
    status = Path("/proc/self/status").read_text()
    return {
        "policy": os.sched_getscheduler(0), "priority": os.sched_getparam(0).sched_priority,
        "cores": sorted(os.sched_getaffinity(0)), "collects": gc.isenabled(), "frozen": gc.get_freeze_count(),
        "oom": int(Path("/proc/self/oom_score_adj").read_text()),
        "slack": int(Path("/proc/self/timerslack_ns").read_text()),
        "locked_kb": int(re.search(r"VmLck:\\s+(\\d+)", status)[1]),
    }

said, cores = [], os.sched_getaffinity(0)
"""
DROP = """
os.setgroups([])
os.setgid(65534)
os.setuid(65534)
prctl(4, 1)  # PR_SET_DUMPABLE: what an ordinary program of this user is, and what gives it its own /proc
"""
NO_LIMITS = """
for limit in (resource.RLIMIT_RTPRIO, resource.RLIMIT_MEMLOCK):
    resource.setrlimit(limit, (0, 0))
"""


def show(*code: str) -> list[dict[str, Any]]:
    """What the process said and how it is afterwards."""
    lines = "\n".join([SHOW, *code, "print(json.dumps([*said, now()]))"])
    done = subprocess.run([sys.executable, "-W", "error", "-c", lines], capture_output=True, text=True, check=False)
    assert done.stderr == ""
    return list(json.loads(done.stdout))


BECOME_GATE = "realtime.become_gate(cores, 80, lock=True).tell(Telemetry())"
BECOME_POLICY = "realtime.become_policy(cores, 70, gate_has_fifo=True).tell(Telemetry())"
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.mark.skipif(not holds(CAP_SYS_NICE, CAP_IPC_LOCK), reason="needs the right to real-time scheduling")
def test_a_gate_with_privileges_gets_it_all() -> None:
    record, now = show(BECOME_GATE)
    assert (record["event"], record["process"]) == ("realtime", "gate")
    assert set(record) >= FIELDS
    assert {record[field] for field in FIELDS - {"oom", "affinity"}} == {"granted"}
    assert (now["policy"], now["priority"]) == (os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, 80)
    assert now["cores"] == [max(os.sched_getaffinity(0))]
    assert not now["collects"]
    assert now["frozen"] > 0
    assert now["locked_kb"] > 10_000
    assert (now["oom"] == -1000) is (record["oom"] == "granted") is holds(CAP_SYS_RESOURCE)
    assert (record["level"] == "info") is holds(CAP_SYS_RESOURCE)


@as_root
def test_a_gate_without_privileges_says_what_is_lost_and_how_to_grant_it() -> None:
    record, now = show(NO_LIMITS, DROP, BECOME_GATE)
    assert record["level"] == "warning"
    expected = {
        "fifo": ("Operation not permitted", "LimitRTPRIO=99", "sudo prlimit --pid $$ --rtprio=99"),
        "memory": ("Operation not permitted", "LimitMEMLOCK=infinity", "sudo prlimit --pid $$ --memlock=unlimited"),
        "oom": ("Permission denied", "OOMScoreAdjust=-1000", "sudo choom --adjust -1000 --pid $$"),
    }
    for field, (why, unit, shell) in expected.items():
        assert record[field] == f"refused: {why}; to grant it, say `{shell}` in the shell before the start"
        assert shell in record["message"]
        assert unit not in record["message"]
    assert "Stops still come, but less punctually: " in record["message"]
    assert "no real-time scheduling (other programs can hold it up for many milliseconds)" in record["message"]
    assert (record["garbage"], record["timer_slack"]) == ("granted", "granted")
    assert (now["policy"], now["priority"], now["locked_kb"], now["oom"]) == (ORDINARY, 0, 0, OWN_OOM)
    assert (now["collects"], now["slack"]) == (False, 1)


@as_root
@pytest.mark.skipif(not holds(CAP_SYS_RESOURCE), reason="nobody here may raise a limit")
def test_the_commands_that_are_named_grant_it() -> None:
    """What `prlimit` and `choom` do to the shell, this process inherits."""
    grant = """
resource.setrlimit(resource.RLIMIT_RTPRIO, (99, 99))
resource.setrlimit(resource.RLIMIT_MEMLOCK, (resource.RLIM_INFINITY,) * 2)
Path("/proc/self/oom_score_adj").write_text("-1000")
"""
    record, now = show(grant, DROP, BECOME_GATE)
    assert {record[field] for field in FIELDS - {"affinity"}} == {"granted"}
    assert (now["priority"], now["oom"]) == (80, -1000)


@as_root
@pytest.mark.skipif(not holds(CAP_SYS_RESOURCE), reason="nobody here may raise a limit")
def test_a_limit_on_locked_memory_that_leaves_no_room_is_as_none() -> None:
    tight = """
used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_MEMLOCK, (used + (16 << 20),) * 2)
"""
    record, now = show(tight, DROP, BECOME_GATE, "held = bytearray(64 << 20)")
    assert "leaves no room to grow" in record["memory"]
    assert now["locked_kb"] == 0


def test_the_policy_process_is_off_the_gates_processor_and_the_first_to_go() -> None:
    cores = os.sched_getaffinity(0)
    record, now = show(BECOME_POLICY)
    assert record["process"] == "policy"
    assert record["pid"] > 0
    assert (record["oom"], now["oom"]) == ("granted", 1000)
    assert (record["parent_death"], record["garbage"], record["timer_slack"]) == ("granted",) * 3
    assert now["cores"] == sorted(cores - {max(cores)} or cores)
    assert now["collects"]
    if holds(CAP_SYS_NICE):
        assert (record["fifo"], now["priority"]) == ("granted", 70)


@pytest.mark.skipif(not holds(CAP_SYS_NICE), reason="needs the right to precedence")
def test_while_it_loads_or_shares_the_gates_processor_the_engines_thread_precedes_ordinary_programs_only() -> None:
    ask = """
import asyncio
from mvla_daemon.engines.thinker import EngineThread
loop = asyncio.new_event_loop()
thread = EngineThread(loop)
def on_it(*what): return loop.run_until_complete(thread.call(*what))
def ask(): said.append({"nice": on_it(os.getpriority, os.PRIO_PROCESS, 0), "policy": on_it(os.sched_getscheduler, 0)})
ask()
on_it(realtime.follow_event_loop, 2)
ask()
"""
    record, loading, loaded, now = show(BECOME_POLICY, ask)
    assert (record["precedence"], now["priority"]) == ("granted", 70)
    assert loading == loaded == {"nice": -20, "policy": os.SCHED_OTHER}


@pytest.mark.skipif(not holds(CAP_SYS_NICE), reason="needs the right to real-time scheduling")
@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="there is one processor only")
def test_the_threads_on_the_frames_way_are_real_time_below_the_event_loop(tmp_path: Path, studio: Path) -> None:
    """Of engine, camera and event loop; not while the network computes, which here takes most of the time."""
    with Rig(tmp_path, Scene(studio / "moving.avi", studio / "slow.toml")) as rig:
        rig.start_driving()
        threads = [int(task.name) for task in Path(f"/proc/{rig.policy_pid()}/task").iterdir()]

        def real_time() -> list[int]:
            return sorted(filter(None, (os.sched_getparam(thread).sched_priority for thread in threads)))

        rig.wait_until(lambda: real_time() == [69, 70], "inference")
        rig.wait_until(lambda: real_time() == [68, 69, 70], "end of an inference")
        assert os.sched_getparam(rig.pid).sched_priority == 80
        above = [thread for thread in threads if os.sched_getparam(thread).sched_priority]
        assert not any(os.sched_getaffinity(thread) & os.sched_getaffinity(rig.pid) for thread in above)


def test_on_one_processor_both_say_so_and_run() -> None:
    record, policy, now = show("cores = {max(cores)}", BECOME_GATE, BECOME_POLICY)
    assert record["affinity"].startswith("refused: there is one processor only")
    assert policy["affinity"] == record["affinity"]
    assert now["cores"] == [max(os.sched_getaffinity(0))]


def test_a_processor_that_is_not_there_is_a_refusal() -> None:
    record, now = show("cores |= {900}", BECOME_GATE)
    assert record["affinity"].startswith("refused: Invalid argument")
    assert now["cores"] == sorted(os.sched_getaffinity(0))


def test_what_the_configuration_does_not_want_is_off_and_no_warning() -> None:
    gate, policy, now = show(
        "realtime.become_gate(cores, None, lock=False).tell(Telemetry())",
        "realtime.become_policy(cores, None, gate_has_fifo=False).tell(Telemetry())",
    )
    assert gate["fifo"] == policy["fifo"] == 'off: realtime.scheduler is "other"'
    assert gate["memory"] == "off: realtime.lock_memory is false"
    assert "locked memory" not in gate["message"]
    assert "real-time scheduling" not in gate["message"]
    assert (now["policy"], now["locked_kb"]) == (ORDINARY, 0)


@as_root
@pytest.mark.skipif(not holds(CAP_SYS_RESOURCE), reason="nobody here may raise a limit")
def test_the_policy_process_is_never_above_a_gate_that_is_refused_its_priority() -> None:
    """A limit of 75 would let 70 through and not 80."""
    below = "resource.setrlimit(resource.RLIMIT_RTPRIO, (75, 75))"
    ask = "said.append(realtime.would_grant_fifo(80)); said.append(realtime.would_grant_fifo(75)); said.append(now())"
    become = "realtime.become_policy(cores, 70, gate_has_fifo=said[0]).tell(Telemetry())"
    gate, policy, asked, policy_record, now = show(below, DROP, ask, become)
    assert (gate, policy) == (False, True)
    assert (asked["policy"], asked["priority"]) == (ORDINARY, 0)
    assert policy_record["fifo"] == "off: the gate does not have it, which must not be below the policy process"
    assert (now["policy"], now["priority"]) == (ORDINARY, 0)


def test_without_the_gate_the_policy_process_does_not_even_ask_for_priority() -> None:
    record, now = show("realtime.become_policy(cores, 70, gate_has_fifo=False).tell(Telemetry())")
    assert record["fifo"] == "off: the gate does not have it, which must not be below the policy process"
    assert (now["policy"], now["priority"]) == (ORDINARY, 0)


@pytest.mark.skipif(not holds(CAP_SYS_NICE), reason="needs the right to real-time scheduling")
def test_to_ask_whether_it_would_be_granted_changes_nothing() -> None:
    granted, now = show("said.append(realtime.would_grant_fifo(80))")
    assert granted is True
    assert (now["policy"], now["priority"]) == (ORDINARY, 0)


@pytest.mark.skipif(not holds(CAP_SYS_NICE), reason="needs the right to precede others")
def test_the_gate_precedes_others_as_much_as_the_policy_does() -> None:
    nice = "said.append({'nice': os.getpriority(os.PRIO_PROCESS, 0)})"
    _, gate, _ = show("realtime.become_gate(cores, None, lock=False).tell(Telemetry())", nice)
    _, policy, _ = show("realtime.become_policy(cores, None, gate_has_fifo=False).tell(Telemetry())", nice)
    assert gate == policy == {"nice": -20}


INHERIT = """
import subprocess
from mvla_daemon.ops.child import start_module
"""


@pytest.mark.skipif(not holds(CAP_SYS_RESOURCE), reason="nobody here may protect anything")
def test_children_are_not_protected_with_the_gate() -> None:
    child = "child = start_module('mvla_daemon.sim.controller_process', '--parent-pid', str(os.getpid()), stdin=-1)"
    look = "said.append({'oom': int(Path(f'/proc/{child.pid}/oom_score_adj').read_text())})"
    record, seen, now = show(INHERIT, BECOME_GATE, child, look, "with child: child.kill()")
    assert (record["oom"], now["oom"], seen["oom"]) == ("granted", -1000, 0)


@pytest.mark.skipif(not holds(CAP_SYS_NICE), reason="needs the right to real-time scheduling")
def test_children_are_ordinary_beside_a_gate_that_is_real_time() -> None:
    child = "child = subprocess.Popen(['sleep', '60'])"
    look = "said.append({'policy': os.sched_getscheduler(child.pid)})"
    record, seen, now = show(INHERIT, BECOME_GATE, child, look, "with child: child.kill()")
    assert (record["fifo"], now["priority"]) == ("granted", 80)
    assert seen["policy"] == os.SCHED_OTHER


def test_who_was_to_go_early_before_still_is() -> None:
    """Only protection is taken from a child; what is worse than ordinary stays."""
    child = start_module("mvla_daemon.sim.controller_process", "--parent-pid", str(os.getpid()), stdin=-1, stdout=-1)
    with child:
        score = Path(f"/proc/{child.pid}/oom_score_adj")
        assert int(score.read_text()) == max(OWN_OOM, 0)
        score.write_text("700")
        from mvla_daemon.ops.realtime import expose  # noqa: PLC0415 - what start_module has just called

        expose(child.pid)
        assert score.read_text() == "700\n"
        child.kill()
    expose(child.pid)


# --- what is said about a refusal ---

UNLIMITED = -1
LIMITS = {"RLIMIT_RTPRIO": 0, "RLIMIT_MEMLOCK": 8 << 20, "RLIMIT_NICE": 0}
SHELL = Around(LIMITS, processors=2, is_service=False)
UNIT = Around(LIMITS, processors=2, is_service=True)


def test_in_a_shell_it_is_the_shells_command_and_in_a_unit_the_units_line() -> None:
    refused = {"fifo": 80, "memory": None, "oom": None}
    shell = "sudo prlimit --pid $$ --rtprio=99; sudo prlimit --pid $$ --memlock=unlimited; sudo choom --adjust -1000"
    assert how_to_grant(refused, SHELL) == f"to grant it, say `{shell} --pid $$` in the shell before the start"
    unit = "LimitRTPRIO=99 LimitMEMLOCK=infinity OOMScoreAdjust=-1000"
    withheld = "where the unit has it, a container withholds it"
    assert how_to_grant(refused, UNIT) == f"to grant it, set {unit} in the unit; {withheld}"


@pytest.mark.parametrize("is_service", [False, True])
@pytest.mark.parametrize(
    ("field", "enough", "limit", "value", "said"),
    [
        ("fifo", 80, "RLIMIT_RTPRIO", 80, "RLIMIT_RTPRIO is 80"),
        ("fifo", 80, "RLIMIT_RTPRIO", UNLIMITED, "RLIMIT_RTPRIO is unlimited"),
        ("memory", None, "RLIMIT_MEMLOCK", UNLIMITED, "RLIMIT_MEMLOCK is unlimited"),
        ("precedence", 40, "RLIMIT_NICE", 40, "RLIMIT_NICE is 40"),
    ],
)
def test_what_its_limit_allows_somebody_else_withholds(
    field: str, enough: int | None, limit: str, value: int, said: str, is_service: bool
) -> None:
    around = Around({**LIMITS, limit: value}, 2, is_service)
    withheld = f"{said}, which is enough: a container or the kernel's settings withhold it"
    assert how_to_grant({field: enough}, around) == withheld
    both = how_to_grant({field: enough, "timer_slack": None}, around)
    assert both.startswith("to grant it, s")
    assert both.endswith(f"; {withheld}")


@pytest.mark.parametrize(
    ("field", "enough", "limit", "value"),
    [
        ("fifo", 80, "RLIMIT_RTPRIO", 79),
        ("memory", None, "RLIMIT_MEMLOCK", 1 << 40),
        ("precedence", 40, "RLIMIT_NICE", 39),
    ],
)
def test_a_limit_that_is_too_low_is_to_be_raised(field: str, enough: int | None, limit: str, value: int) -> None:
    around = Around({**LIMITS, limit: value}, 2, is_service=False)
    assert how_to_grant({field: enough}, around).startswith("to grant it, say `sudo prlimit ")


def test_nothing_grants_a_second_processor_where_there_is_one() -> None:
    assert how_to_grant({"affinity": None}, Around(LIMITS, processors=1, is_service=True)) == ""
    assert "AllowedCPUs=0-1" in how_to_grant({"affinity": None}, UNIT)


def test_a_service_is_what_systemd_has_started_itself() -> None:
    pids = {70, 71}
    assert is_service({"INVOCATION_ID": "1f", "SYSTEMD_EXEC_PID": "70"}, pids)
    assert is_service({"INVOCATION_ID": "1f"}, pids)  # older than 248
    assert not is_service({"INVOCATION_ID": "1f", "SYSTEMD_EXEC_PID": "7"}, pids)  # its terminal is one
    assert not is_service({}, pids)


@as_root
@pytest.mark.skipif(not holds(CAP_SYS_RESOURCE), reason="nobody here may raise a limit")
def test_a_limit_that_allows_it_is_not_asked_for_again() -> None:
    """A seccomp filter would refuse it as this does: the kernel says no, whatever the limit."""
    enough = "resource.setrlimit(resource.RLIMIT_RTPRIO, (99, 99))"
    refuse = "realtime.use_fifo = lambda _: 'Operation not permitted'"
    record, _ = show(enough, DROP, refuse, BECOME_GATE)
    assert record["fifo"].startswith("refused: Operation not permitted; RLIMIT_RTPRIO is 99, which is enough: ")
    assert "--rtprio" not in record["message"]


# --- the whole daemon ---

WITHOUT = """
import ctypes, os, resource, sys
libc = ctypes.CDLL(None)
for number in {privileges}:
    libc.prctl(24, number, 0, 0, 0)  # PR_CAPBSET_DROP: with the next program they are gone
for limit in (resource.RLIMIT_RTPRIO, resource.RLIMIT_MEMLOCK, resource.RLIMIT_NICE):
    resource.setrlimit(limit, (0, 0))
os.execv(sys.argv[1], sys.argv[1:])
"""


@pytest.fixture
def unprivileged(tmp_path: Path, scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Iterator[Rig]:
    """A daemon that may do nothing that an ordinary user may not, whoever runs the tests."""
    wrapper = [sys.executable, "-c", WITHOUT.format(privileges=PRIVILEGES)]
    monkeypatch.setattr(tests.rig, "command", lambda *words: [*wrapper, *command(*words)])
    with Rig(tmp_path, scene) as rig:
        yield rig


def test_a_daemon_without_privileges_drives_and_says_what_both_its_processes_got(unprivileged: Rig) -> None:
    rig = unprivileged
    rig.start_driving()
    rig.wait_until(lambda: len(rig.events("realtime")) == 2, "both records")
    records = {record["process"]: record for record in rig.events("realtime")}
    gate, policy = records["gate"], records["policy"]
    assert (gate["pid"], policy["pid"]) == (rig.pid, rig.policy_pid())
    assert gate["level"] == policy["level"] == "warning"
    for record, field in (
        (gate, "fifo"),
        (gate, "memory"),
        (gate, "oom"),
        (policy, "precedence"),
        (gate, "precedence"),
    ):
        assert str(record[field]).startswith("refused: ")
    assert policy["fifo"] == "off: the gate does not have it, which must not be below the policy process"
    for record, field in ((gate, "garbage"), (policy, "garbage"), (policy, "parent_death"), (policy, "oom")):
        assert record[field] == "granted"
    assert os.sched_getscheduler(rig.pid) == ORDINARY
    assert Path(f"/proc/{rig.policy_pid()}/oom_score_adj").read_text() == "1000\n"
    reporter = next(
        pid
        for pid in Path(f"/proc/{rig.pid}/task/{rig.pid}/children").read_text().split()
        if "ops.reporter" in Path(f"/proc/{pid}/cmdline").read_text()
    )
    assert int(Path(f"/proc/{reporter}/oom_score_adj").read_text()) == max(OWN_OOM, 0)
    assert rig.tell("stop").stdout == "stopping\n"
    rig.wait_for("STOP")
