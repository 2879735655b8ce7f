"""The daemon and the simulated robot as the processes that they are: drives that end well, badly and too early."""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from mvla_daemon.config_load import load_config
from mvla_daemon.errors import DaemonError
from mvla_daemon.stand_ins import stand_ins
from tests.conftest import write_manifest
from tests.onnx_models import ModelFile
from tests.rig import ROOT, Rig, Scene, command, environment, gone
from tests.rights import fifo_is_granted

if TYPE_CHECKING:
    from collections.abc import Iterator

OK, USAGE, INTERNAL, TRY_AGAIN, CONFIG = 0, 64, 70, 75, 78
TOLD = "go to the cup, pass the box on its left"
SHORT_WAY, BOX_AHEAD = 16, 179
"""Seeds of rooms: a drive of 8 s, and a box that is straight ahead."""
PNG = b"\x89PNG\r\n"


def simulated(folder: Path, manifest: Path | str = "bundled:cup", instruction: str | None = TOLD) -> Rig:
    """Ten pictures a second are enough to drive by, and leave a busy machine time."""
    return Rig(folder, Scene(None, manifest, 640, 480, 10, instruction), port="sim://")


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    with simulated(tmp_path) as rig:
        yield rig


def children(pid: int) -> dict[str, int]:
    """The processes that a daemon has started, by their modules' names."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        words = Path(f"/proc/{child}/cmdline").read_text().split("\0")
        found[words[words.index("-m") + 1].rsplit(".", 1)[1]] = int(child)
    return found


def states(rig: Rig) -> list[object]:
    return [event["state"] for event in rig.events("state")]


def sentences(rig: Rig) -> list[str]:
    """What was said besides the log, but for a simulator that this machine is too slow for."""
    said = [line for line in rig.said().splitlines() if not line.startswith("{")]
    assert "Traceback" not in rig.said()
    return [line for line in said if "cannot keep up" not in line]


def wait_until_armed(rig: Rig) -> None:
    rig.wait_until(lambda: "armed" in states(rig), "arming")


def straight_ahead(folder: Path) -> Path:
    """The manifest of a policy that says 0.5 m/s forward, whatever it sees."""
    model = (
        ModelFile()
        .input("images", "float32", [1, 3, 32, 32])
        .output("actions", "float32", [1, 2])
        .constant("nothing", [[0.0, 0.0]])
        .constant("ahead", [[0.5, 0.0]])
        .constant("shape", [1, 1], "int64")
        .node("ReduceMean", "images", "mean", axes=[1, 2, 3], keepdims=0)
        .node("Reshape", "mean shape", "brightness")
        .node("Mul", "brightness nothing", "zeros")
        .node("Add", "zeros ahead", "actions")
    )
    model.save(folder / "straight.onnx")
    return write_manifest(folder, "straight")


@pytest.mark.meanwhile
def test_an_instruction_that_the_policy_does_not_know_is_refused_with_those_that_it_knows(tmp_path: Path) -> None:
    with simulated(tmp_path) as rig:
        rig.start("--instruction", "make tea")
        assert rig.wait() == CONFIG
        first, *listed = sentences(rig)
        assert "does not know the instruction 'make tea'" in first
        assert len(listed) == 8
        assert TOLD in [line.strip() for line in listed]
        assert "armed" not in states(rig)


@pytest.mark.meanwhile
def test_ctrl_c_stops_the_robot_and_leaves_a_picture_and_nothing_else(tmp_path: Path) -> None:
    with simulated(tmp_path) as rig:
        rig.start("--set", "sim.picture=build/drives.png")
        wait_until_armed(rig)
        started = children(rig.pid)
        assert set(started) == {"robot_process", "policy", "reporter"}
        os.kill(rig.pid, signal.SIGINT)
        assert rig.wait() == OK
        assert [event["reason"] for event in rig.events("stop")][-1] == "shutdown"
        assert sentences(rig) == [f"mvla-daemon: The drive from above: {rig.folder / 'build/drives.png'}"]
        assert (rig.folder / "build/drives.png").read_bytes().startswith(PNG)
        assert all(gone(pid) for pid in started.values())


@pytest.mark.meanwhile
def test_a_robot_that_touches_something_says_what_and_is_a_failure_with_or_without_a_picture(tmp_path: Path) -> None:
    with simulated(tmp_path, straight_ahead(tmp_path), None) as rig:
        rig.start("--seed", str(BOX_AHEAD), "--set", "sim.picture=/proc/drive.png")
        assert rig.wait() == TRY_AGAIN
        picture, ending = sentences(rig)
        assert "/proc/drive.png cannot be written" in picture
        assert ending.startswith("mvla-daemon: The simulated robot touched the box after ")
        assert [event["reason"] for event in rig.events("stop")][-1] == "shutdown"


@pytest.mark.meanwhile
def test_a_simulator_that_is_killed_is_a_stop_and_an_end(tmp_path: Path) -> None:
    with simulated(tmp_path) as rig:
        rig.start("--set", "sim.picture=drive.png")
        wait_until_armed(rig)
        started = children(rig.pid)
        os.kill(started["robot_process"], signal.SIGKILL)
        assert rig.wait() == INTERNAL
        # On a busy machine a process of its size takes over 100 ms to be gone, and is silent before its port is closed.
        assert rig.events("stop")[-1]["reason"] in {"port_lost", "controller_lost", "shutdown"}
        (said,) = sentences(rig)
        assert "The simulated robot's process ended by itself" in said
        assert all(gone(pid) for pid in started.values())


@pytest.mark.meanwhile
def test_a_simulated_controller_that_is_killed_is_a_stop_and_an_end_too(tmp_path: Path, scene: Scene) -> None:
    with Rig(tmp_path, scene, port="sim://") as rig:
        rig.start()
        wait_until_armed(rig)
        os.kill(children(rig.pid)["controller_process"], signal.SIGKILL)
        assert rig.wait() == INTERNAL
        (said,) = sentences(rig)
        assert "ended by itself" in said


def test_nothing_is_left_of_a_daemon_that_is_killed(rig: Rig) -> None:
    scratch = rig.folder / "scratch"
    scratch.mkdir()
    shared = set(Path("/dev/shm").iterdir())
    with (
        (rig.folder / "stderr.log").open("w") as log,
        subprocess.Popen(
            command(rig.config),
            cwd=ROOT,
            env={**environment(rig.folder), "TMPDIR": str(scratch)},
            stdin=subprocess.DEVNULL,
            stderr=log,
        ) as daemon,
    ):
        wait_until_armed(rig)
        started = children(daemon.pid)
        assert set(started) == {"robot_process", "policy", "reporter"}
        daemon.kill()
    rig.wait_until(lambda: all(gone(pid) for pid in started.values()), "end of its processes")
    assert list(scratch.iterdir()) == []
    assert set(Path("/dev/shm").iterdir()) <= shared
    address = f"@mvla-sim-{started['robot_process']}-"
    rig.wait_until(lambda: address not in Path("/proc/net/unix").read_text(), "end of the camera's address")


def test_a_simulator_that_does_not_start_is_told_with_its_own_exit_code(rig: Rig) -> None:
    starting = stand_ins(load_config(rig.config), fault="no such fault")
    with pytest.raises(DaemonError, match="did not start") as caught, starting:
        pytest.fail("it started")
    assert caught.value.exit_code == USAGE


@pytest.mark.skipif(not fifo_is_granted(), reason="needs the right to real-time scheduling")
@pytest.mark.parametrize(
    ("setting", "priority"),
    [
        ("realtime.policy_priority=40", 30),
        ("realtime.gate_priority=75", 60),
        ("realtime.policy_priority=3", 0),
        ('realtime.scheduler="other"', 0),
    ],
)
def test_a_simulated_controller_is_real_time_below_gate_and_policy_if_they_are(
    tmp_path: Path, scene: Scene, setting: str, priority: int
) -> None:
    with Rig(tmp_path, scene, port="sim://") as rig, stand_ins(load_config(rig.config, [setting]), fault=None):
        controller = children(os.getpid())["controller_process"]
        assert os.sched_getparam(controller).sched_priority == priority


@pytest.mark.meanwhile
def test_a_frozen_policy_is_a_stop_after_which_the_robot_arms_again_and_reaches_the_cup(tmp_path: Path) -> None:
    with simulated(tmp_path, instruction=None) as rig:
        rig.start(
            *("--seed", str(SHORT_WAY), "--instruction", TOLD, "--fault", "SIGSTOP@1s"),
            *("--set", "sim.picture=drive.png"),
        )
        assert rig.wait() == OK, rig.said()
        reasons = [event["reason"] for event in rig.events("stop")]
        assert "deadline_missed" in reasons
        assert reasons[-1] == "shutdown"
        # A busy machine may add to them.
        assert set(reasons[:-1]) <= {"deadline_missed", "frame_stale", "controller_lost"}
        armed = list(itertools.dropwhile(lambda state: state != "armed", states(rig)))
        assert armed[:5] == ["armed", "stopping", "stopped", "arming", "armed"]
        picture, said = sentences(rig)
        assert picture == f"mvla-daemon: The drive from above: {rig.folder / 'drive.png'}"
        assert said.startswith("mvla-daemon: The simulated robot reached the cup after ")
        assert (rig.folder / "drive.png").read_bytes().startswith(PNG)
        assert not [path for path in rig.folder.iterdir() if path.name.startswith(".picture")]
