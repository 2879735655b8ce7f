"""What systemd is told: a real daemon, a real datagram socket in systemd's place."""

from __future__ import annotations

import os
import re
import signal
import socket
import statistics
import time
from collections.abc import Iterator
from contextlib import closing
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mvla_daemon import assembly
from mvla_daemon.config_load import load_config
from mvla_daemon.core.admission import Mode
from mvla_daemon.core.messages import Reason
from mvla_daemon.errors import ExitCode
from mvla_daemon.helm import Crew, Helm
from mvla_daemon.ops.errand import NoErrand
from mvla_daemon.ops.notify import Notifier
from mvla_daemon.pulse import Pulse
from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.lockstep import LockstepPort, Unheard
from mvla_daemon.sim.lockstep_policy import LockstepPolicy
from mvla_daemon.sim.robot import SimulatedRobot
from mvla_daemon.sim.timeline import Timeline
from tests.rig import PATIENCE_S, ROOT, GroundRig, Rig, Scene, freeze, thaw

if TYPE_CHECKING:
    from typing_extensions import Self

SECOND = 1_000_000_000
HOUR = 3600 * SECOND


class Manager:
    """The end that systemd reads, and all that it has been told."""

    def __init__(self, folder: Path) -> None:
        self.path = folder / "notify"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(str(self.path))
        self.told: list[tuple[float, list[str]]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._socket.close()

    def hear(self, within_s: float) -> list[str] | None:
        """The next message; None when there is none in that time."""
        self._socket.settimeout(within_s)
        try:
            lines = self._socket.recv(4096).decode().split("\n")
        except TimeoutError:
            return None
        self.told.append((time.monotonic(), lines))
        return lines

    def wait_for(self, line: str, times: int = 1) -> None:
        """Hear on until so many more messages have had a line that begins so."""
        end = time.monotonic() + PATIENCE_S
        while times:
            assert time.monotonic() < end, f"no {line} within {PATIENCE_S} s; told was {self.told}"
            times -= any(said.startswith(line) for said in self.hear(PATIENCE_S) or [])

    def forget(self) -> None:
        """What has been told so far, and what lies there unread."""
        while self.hear(0.001) is not None:
            pass
        self.told.clear()

    def has(self, line: str) -> list[float]:
        """When a line that begins so was heard."""
        return [at for at, lines in self.told if any(said.startswith(line) for said in lines)]


@pytest.fixture
def manager(tmp_path: Path) -> Iterator[Manager]:
    with Manager(tmp_path) as manager:
        yield manager


def supervised(rig: Rig, manager: Manager, watchdog_s: float, pid: str = "") -> Rig:
    rig.environment = {"NOTIFY_SOCKET": str(manager.path), "WATCHDOG_USEC": str(round(watchdog_s * 1e6))}
    rig.environment |= {"WATCHDOG_PID": pid} if pid else {}
    return rig


# --- the whole daemon ---


@pytest.mark.meanwhile
def test_it_is_ready_once_it_can_be_armed_and_says_how_it_does_and_that_it_ends(tmp_path: Path, scene: Scene) -> None:
    with Manager(tmp_path) as manager, Rig(tmp_path, scene) as rig:
        supervised(rig, manager, 3).start()
        manager.wait_for("READY=1")
        status = rig.ask("status")
        assert status["policy_ready"]
        assert status["controller"]
        before = [lines for _, lines in manager.told[:-1]]
        assert all("EXTEND_TIMEOUT_USEC=30000000" in lines for lines in before)
        children = Path(f"/proc/{rig.pid}/task/{rig.pid}/children").read_text().split()
        assert len(children) >= 2
        for child in children:
            names = {entry.split(b"=")[0] for entry in Path(f"/proc/{child}/environ").read_bytes().split(b"\0")}
            assert b"PATH" in names
            assert not names & {b"NOTIFY_SOCKET", b"WATCHDOG_USEC", b"WATCHDOG_PID"}
        manager.wait_for("STATUS=armed: ")
        driving = re.fullmatch(r"STATUS=armed: ([0-9.]+) Hz, cycle p99 ([0-9.]+) of 100 ms", manager.told[-1][1][0])
        assert driving is not None
        assert 5 < float(driving[1]) < 55  # asked for are 10, and each of the camera's 50 pictures may begin one
        assert 0 < float(driving[2]) < 100
        os.kill(rig.pid, signal.SIGTERM)
        manager.wait_for("STOPPING=1")
        assert rig.wait() == 0
        assert len(manager.has("READY=1")) == 1
        assert not manager.has("EXTEND_TIMEOUT_USEC")[len(before) :]


@pytest.mark.meanwhile
def test_it_is_fed_at_half_its_patience_unless_the_gate_hangs(tmp_path: Path, scene: Scene) -> None:
    """A gate that is frozen tells nothing; thawed, it is latched, which is alive."""
    with Manager(tmp_path) as manager, Rig(tmp_path, scene) as rig:
        supervised(rig, manager, 0.4).start_driving()
        manager.forget()
        manager.wait_for("WATCHDOG=1", 6)
        gaps_s = [b - a for a, b in pairwise(manager.has("WATCHDOG=1"))]
        assert 0.1 < statistics.median(gaps_s) < 0.25
        rig.arm()  # a busy machine may have had it stopped, which would not be latched
        freeze(rig.pid)
        manager.forget()
        assert manager.hear(1.0) is None
        thaw(rig.pid)
        manager.wait_for("STATUS=latched")
        manager.forget()
        manager.wait_for("WATCHDOG=1", 4)


@pytest.mark.meanwhile
def test_what_the_gate_handles_itself_is_no_reason_to_kill_it(tmp_path: Path, studio: Path) -> None:
    """A policy process that is gone and replaced, an operator's stop, a port that is gone: it is fed through all."""
    scene = Scene(None, studio / "steady.toml", 640, 480)
    with Manager(tmp_path) as manager, GroundRig(tmp_path, scene) as rig:
        supervised(rig, manager, 2).start_driving()
        manager.forget()
        os.kill(rig.policy_pid(), signal.SIGKILL)
        manager.wait_for("STATUS=latched (policy_lost)")
        rig.wait_until(lambda: len(rig.events("policy_ready")) == 2, "second policy process")
        manager.wait_for("WATCHDOG=1")
        rig.arm()
        rig.ask("stop")
        manager.wait_for("STATUS=latched (operator)")
        rig.unplug()
        manager.wait_for("STATUS=latched (port_lost)")
        manager.wait_for("WATCHDOG=1", 2)
        assert max(b - a for a, b in pairwise(manager.has("WATCHDOG=1"))) < 2


@pytest.mark.meanwhile
def test_a_board_that_may_boot_for_ever_does_not_hold_up_the_start(tmp_path: Path, scene: Scene) -> None:
    with Manager(tmp_path) as manager, Rig(tmp_path, scene) as rig:
        rig.far("mute on")
        supervised(rig, manager, 2).start("--set", "motor.identify_timeout_s=0")
        manager.wait_for("READY=1")
        assert rig.ask("status")["controller"] is None
        manager.wait_for("STATUS=disarmed: the motor controller has not identified itself")


@pytest.mark.meanwhile
def test_a_start_waits_for_a_controller_that_has_to_answer_in_time(tmp_path: Path, scene: Scene) -> None:
    with Manager(tmp_path) as manager, Rig(tmp_path, scene) as rig:
        rig.far("mute on")
        supervised(rig, manager, 1).start("--set", "motor.identify_timeout_s=60")
        manager.wait_for("STATUS=disarmed")
        rig.wait_until(lambda: rig.ask("status")["policy_ready"], "policy")
        manager.forget()
        manager.wait_for("EXTEND_TIMEOUT_USEC", 2)
        assert not manager.has("READY=1")
        rig.far("mute off")
        manager.wait_for("READY=1")


@pytest.mark.meanwhile
def test_a_watchdog_that_is_another_process_s_is_not_fed(tmp_path: Path, scene: Scene) -> None:
    with Manager(tmp_path) as manager, Rig(tmp_path, scene) as rig:
        supervised(rig, manager, 0.5, pid="1").start()
        manager.wait_for("STATUS=armed: ")
        assert manager.has("READY=1")
        assert not manager.has("WATCHDOG=1")


# --- the sender ---


def test_without_a_manager_nothing_is_told() -> None:
    variables = {"PATH": "/bin"}
    notifier = Notifier.from_environment(variables)
    assert not notifier.is_listened_to
    assert not notifier.tell("READY=1")
    assert notifier.watchdog_ns == 0
    assert variables == {"PATH": "/bin"}


@pytest.mark.parametrize("address", ["vsock:2:1234", "relative", "@", "/nowhere/notify", "/" + "x" * 200])
def test_an_address_that_leads_nowhere_is_no_error(address: str) -> None:
    with closing(Notifier(address)) as notifier:
        assert not notifier.tell("READY=1")


@pytest.mark.parametrize(
    ("variables", "watchdog_ns"),
    [
        ({"WATCHDOG_USEC": "5000000"}, 5 * SECOND),
        ({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": "1"}, 0),
        ({"WATCHDOG_USEC": "5000000", "WATCHDOG_PID": str(os.getpid())}, 5 * SECOND),
        ({"WATCHDOG_USEC": "-1"}, 0),
        ({"WATCHDOG_USEC": "soon"}, 0),
        ({}, 0),
    ],
)
def test_the_watchdog_is_for_whom_it_names(variables: dict[str, str], watchdog_ns: int) -> None:
    variables = {**variables, "NOTIFY_SOCKET": "/run/notify", "HOME": "/"}
    with closing(Notifier.from_environment(variables)) as notifier:
        assert notifier.watchdog_ns == watchdog_ns
    assert variables == {"HOME": "/"}


def test_abstract_names_work_and_a_manager_that_does_not_read_costs_no_time() -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as end:
        end.bind(f"\0mvla-test-{os.getpid()}")
        with closing(Notifier(f"@mvla-test-{os.getpid()}")) as notifier:
            assert notifier.tell("STATUS=one\ntwo", "READY=1")
            assert end.recv(100) == b"STATUS=one two\nREADY=1"
            taken = 0
            while notifier.tell("WATCHDOG=1"):
                taken += 1
                assert taken < 100_000
            end.recv(100)
            assert notifier.tell("WATCHDOG=1")


# --- what counts as alive ---


class Bench:
    """The pulse of a gate that does not run, in simulated time; what a message does not have, it has not said."""

    def __init__(self, manager: Manager) -> None:
        config = load_config(ROOT / "config.toml")
        self.timeline = Timeline()
        robot = SimulatedRobot(make_room(1), None, 50, 0)
        self.policy = LockstepPolicy(
            config, self.timeline, 4, lambda _frame: pytest.fail("nobody asks"), lambda: None, Unheard(), {}
        )
        port = LockstepPort(robot, self.timeline, lambda _exposure: None)
        self.crew: Crew = assembly.crew(config, port, self.policy, Unheard(), self.timeline, NoErrand(), lambda: 7)
        self.helm = Helm(assembly.gate_settings(config, None).rules, self.crew)
        self.notifier = Notifier(str(manager.path), 5 * SECOND)
        self.pulse = Pulse(
            self.notifier,
            self.helm,
            self.crew,
            boot_is_bounded=True,
            policy_dead_ns=2 * SECOND,
        )
        self._manager = manager

    def beat(self, now_ns: int, due_ns: int | None = None) -> set[str]:
        self.pulse.beat(now_ns, now_ns if due_ns is None else due_ns)
        lines = self._manager.hear(PATIENCE_S)
        assert lines is not None
        return {line.split("=")[0] for line in lines}


@pytest.fixture
def bench(manager: Manager) -> Iterator[Bench]:
    bench = Bench(manager)
    yield bench
    bench.notifier.close()


def test_it_tells_once_a_second_and_when_the_state_changes(bench: Bench) -> None:
    assert bench.pulse.is_due(0)
    bench.beat(0)
    assert bench.pulse.next_ns == SECOND
    assert not bench.pulse.is_due(SECOND - 1)
    assert bench.pulse.is_due(SECOND)
    bench.helm.fault(Reason.INTERNAL, "", 1)
    assert not bench.pulse.is_due(SECOND - 1)  # a disarmed robot's state is the same still
    bench.helm.end(ExitCode.OK, "", 1)
    assert bench.pulse.is_due(2)


def test_what_the_gate_should_have_done_a_second_ago_and_has_not_is_a_hang(bench: Bench) -> None:
    at = 10 * SECOND
    assert "WATCHDOG" in bench.beat(at, at + SECOND)
    assert "WATCHDOG" in bench.beat(at, at - SECOND // 2)
    assert bench.beat(at, at - SECOND) == {"STATUS"}
    assert "WATCHDOG" in bench.beat(at, at)


def test_a_policy_may_load_for_an_hour(bench: Bench) -> None:
    assert {"WATCHDOG", "EXTEND_TIMEOUT_USEC"} < bench.beat(HOUR)
    assert bench.beat(HOUR + SECOND) == {"STATUS"}
    bench.policy.ready = True
    assert "WATCHDOG" in bench.beat(HOUR + 2 * SECOND)
    bench.policy.ready = False
    assert "WATCHDOG" in bench.beat(2 * HOUR)
    assert "WATCHDOG" not in bench.beat(2 * HOUR + 3 * SECOND)


def test_a_policy_process_that_is_asked_for_cycles_is_the_gate_s_to_replace_in_time(bench: Bench) -> None:
    bench.policy.ready = True
    assert "WATCHDOG" in bench.beat(100 * SECOND)
    bench.crew.admission.enter(Mode.REHEARSE, 100 * SECOND)
    assert "WATCHDOG" in bench.beat(102 * SECOND)
    assert "WATCHDOG" not in bench.beat(103 * SECOND)
