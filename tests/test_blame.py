"""Who is to blame for a stop: the record names the stage, the cycle and the time, whatever became of the policy."""

from __future__ import annotations

import os
import pwd
import re
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import pytest

from mvla_daemon.core.messages import Reason, Stage
from mvla_daemon.link import BoardReader, Doing
from mvla_daemon.ops.announce import Announcer
from mvla_daemon.ops.blame import Blame
from mvla_daemon.ops.statistics import Statistics
from tests.conftest import slow_model, write_manifest
from tests.rig import PATIENCE_S, Rig, Scene, freeze, thaw

MS = 1_000_000
TRIES = 5
SLEEP_ON_SIGNAL = """
import signal, time
signal.signal(signal.SIGUSR1, lambda *_: time.sleep(0.6))
"""
"""Found by every Python that starts with this folder in its path: the main thread, an event loop's, can be blocked."""


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, studio: Path) -> Iterator[Rig]:
    """A drive at a calm pace, by a network that needs a while."""
    folder = tmp_path_factory.mktemp("blame")
    (folder / "sitecustomize.py").write_text(SLEEP_ON_SIGNAL)
    slow_model(10).save(folder / "patient.onnx")
    scene = Scene(studio / "moving.avi", write_manifest(folder, "patient"))
    with Rig(folder, scene) as rig:
        rig.environment = {"PYTHONPATH": str(folder)}
        rig.start_driving("--set", "safety.recover_cycles=2")
        yield rig


def drive(rig: Rig) -> int:
    """The robot drives again, and has done so for a while; the policy process."""
    rig.arm()
    before = len(rig.read_wire())
    rig.wait_for("VELOCITY", after=before, count=2)
    return rig.policy_pid()


def state_of(pid: int) -> str:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]


@contextmanager
def board_of(pid: int) -> Iterator[BoardReader]:
    """The policy process's board, from outside."""
    links = Path(f"/proc/{pid}/fd").iterdir()
    path = next(path for path in links if str(path.readlink()).startswith("/memfd:mvla-board"))
    fd = os.open(path, os.O_RDONLY)
    board = BoardReader(fd)
    os.close(fd)
    yield board
    board.close()


def wait_for_stage(board: BoardReader, stage: Stage) -> Doing:
    """The beginning of this stage."""
    end_s = time.monotonic() + PATIENCE_S
    before = board.read()
    while time.monotonic() < end_s:
        seen = board.read()
        if seen is not None and before is not None and seen.stage is stage and seen.since_ns != before.since_ns:
            return seen
    raise AssertionError(f"it was never in {stage.label}")


def catch(pid: int, stage: Stage) -> Doing:
    """Freeze the policy process in the middle of a stage; what is then on its board."""
    with board_of(pid) as board:
        while True:
            seen = wait_for_stage(board, stage)
            freeze(pid)
            while state_of(pid) != "T":
                pass
            caught = board.read()
            if caught is not None and (caught.cycle, caught.stage) == (seen.cycle, stage):
                return caught
            thaw(pid)


def stop_record(rig: Rig, known: int) -> dict[str, Any]:
    """The record of the stop that comes now; empty where none does, because the robot was not driving just then."""
    before = len(rig.read_wire())

    def comes_no_more() -> bool:
        driven = [timed for timed in rig.read_wire()[before:] if timed.kind == "VELOCITY"]
        return len(driven) > 20 or rig.ask("status")["state"] == "latched"

    rig.wait_until(lambda: len(rig.events("stop")) > known or comes_no_more(), "stop")
    return rig.events("stop")[known] if len(rig.events("stop")) > known else {}


def stopped_in(rig: Rig, stage: Stage, then: Callable[[int], None]) -> tuple[dict[str, Any], Doing]:
    """Catch the driving policy process in a stage; the record of the stop that this brings about, and what was caught.

    `then` is done to the caught process. A busy machine can bring about a stop of its own just before, of that cycle.
    """
    for _ in range(TRIES):
        pid = drive(rig)
        known = len(rig.events("stop"))
        caught = catch(pid, stage)
        then(pid)
        record = stop_record(rig, known)
        with suppress(ProcessLookupError):
            thaw(pid)
        if record.get("cycle") == caught.cycle and "policy_process" in record:
            return record, caught
    raise AssertionError(f"no stop for what was done in {stage.label}: {record}")


def is_true(rig: Rig, record: dict[str, Any], caught: Doing) -> None:
    """The stage's time at the stop, by the board that was read from outside and the wire's far end."""
    assert record["cycle"] == caught.cycle
    stopped_ns = caught.since_ns + record["duration_us"] * 1000

    def seen() -> bool:
        stops = [timed.at_ns for timed in rig.read_wire() if timed.kind == "STOP"]
        return any(stopped_ns - 1000 <= at_ns < stopped_ns + 1000 * MS for at_ns in stops)

    rig.wait_until(seen, "STOP at that time")
    assert is_said(record, f"cycle {caught.cycle} was in {record['stage']} for (.*?) ms", record["duration_us"])


def is_said(record: dict[str, Any], words: str, us: float) -> bool:
    """Whether these words say this time; both are rounded by themselves."""
    found = re.search(words, record["event"])
    return found is not None and abs(float(found[1]) - us / 1000) <= 0.051


@pytest.mark.parametrize("stage", [Stage.COMPUTE, Stage.WAIT_FRAME])
def test_a_frozen_process_is_blamed_by_stage_and_as_frozen(rig: Rig, stage: Stage) -> None:
    record, caught = stopped_in(rig, stage, lambda _: None)
    assert record["reason"] == "deadline_missed"
    assert record["stage"] == stage.label
    is_true(rig, record, caught)
    assert record["policy_process"] == "frozen"
    assert str(record["event"]).endswith("; the policy process is frozen")
    assert ("stage_p99_us" in record) is (stage is Stage.COMPUTE)
    if stage is Stage.COMPUTE:
        assert is_said(record, r"ms \(p99 is (.*?) ms\)", record["stage_p99_us"])


@pytest.mark.parametrize(("begins", "blamed"), [(Stage.WAIT_FRAME, "wait_frame"), (Stage.COMPUTE, "send")])
def test_a_blocked_event_loop_is_not_taken_for_the_camera_or_the_network(rig: Rig, begins: Stage, blamed: str) -> None:
    for _ in range(TRIES):  # on a busy machine the stage can be over before the signal comes
        pid = drive(rig)
        known = len(rig.events("stop"))
        with board_of(pid) as board:
            wait_for_stage(board, begins)
        os.kill(pid, signal.SIGUSR1)
        record = stop_record(rig, known)
        if not record:
            continue
        assert record["reason"] == "deadline_missed"
        assert "policy_process" not in record
        if record["stage"] == blamed and ("frame_waiting_us" in record) is (begins is Stage.WAIT_FRAME):
            break
    else:
        pytest.fail(f"blamed is not {blamed}: {record}")
    if begins is Stage.WAIT_FRAME:
        waited_us = record["frame_waiting_us"]
        assert 0 < waited_us < record["duration_us"]
        assert is_said(record, "though a frame had been there for (.*?) ms: its event loop was held up", waited_us)


def test_a_killed_process_is_blamed_by_what_it_was_at(rig: Rig) -> None:
    record, caught = stopped_in(rig, Stage.COMPUTE, lambda pid: os.kill(pid, signal.SIGKILL))
    assert record["stage"] == "compute"
    is_true(rig, record, caught)
    assert record["reason"] in {"policy_lost", "deadline_missed"}
    assert "ended by signal 9" in record["event"] or "the policy process is gone" in record["event"]


# --- in words ---


class Notebook:
    """Where the announcer's records end up, instead of a socket."""

    def __init__(self) -> None:
        self.records: list[dict[str, Any]] = []

    def event(self, name: str, message: str, level: str = "info", /, **fields: Any) -> None:
        self.records.append({"event": name, "message": message, "level": level, **fields})


def announced(doing: Doing | None, written_ns: int = 1000 * MS) -> dict[str, Any]:
    notebook = Notebook()
    stop = Announcer(notebook, lambda: 0).stop  # type: ignore[arg-type]
    stop(Reason.DEADLINE_MISSED, "", doing, due_ns=None, written_ns=written_ns, driven_ns=0)
    return notebook.records[0]


@pytest.mark.parametrize(
    ("stage", "frame_ms", "said"),
    [
        (Stage.WAIT_FRAME, 982, True),
        (Stage.WAIT_FRAME, 999, False),  # it came a moment ago: nobody is late with it
        (Stage.WAIT_FRAME, 979, False),  # it began the cycle that is over
        (Stage.WAIT_FRAME, 0, False),
        (Stage.WAIT_FRAME, 2000, False),
        (Stage.COMPUTE, 982, False),
    ],
)
def test_a_frame_that_nobody_took_is_said(stage: Stage, frame_ms: int, *, said: bool) -> None:
    record = announced(Doing(8123, stage, 980 * MS, frame_ms * MS))
    assert f"STOP deadline_missed: cycle 8123 was in {stage.label} for 20.0 ms" in record["message"]
    assert ("though a frame had been there for 18.0 ms" in record["message"]) is said
    assert (record.get("frame_waiting_us") == 18_000) is said


def test_a_board_that_lies_about_time_is_no_trouble() -> None:
    assert announced(Doing(1, Stage.SEND, 2**63 - 1, -(2**63)))["duration_us"] == 0
    assert announced(None)["message"] == "STOP deadline_missed"


def completed(record: dict[str, Any], *before: dict[str, Any]) -> dict[str, Any]:
    blame = Blame(Statistics())
    for one in [*before, record]:
        blame.complete(one)
    return record


@pytest.mark.parametrize("pid", [None, "4711", 2**22 + 1, -1, True])
def test_odd_words_of_the_policy_process_about_itself_are_no_trouble(pid: object) -> None:
    stop = {"event": "stop", "message": "STOP", "reason": "deadline_missed", "stage": "compute"}
    completed(stop, {"event": "realtime", "message": "", "process": "policy", "pid": pid})
    assert re.fullmatch("STOP(; the policy process is gone)?", str(stop["message"]))


def test_a_process_that_lives_is_not_said_to_be_anything() -> None:
    policy = {"event": "realtime", "message": "", "process": "policy", "pid": os.getpid()}
    stop = completed({"event": "stop", "message": "STOP", "reason": "not_finite"}, policy)
    assert stop == {"event": "stop", "message": "STOP", "reason": "not_finite"}


def test_an_operator_is_told_by_name_where_there_is_one() -> None:
    text = "stop asked for by user 0, process 12"
    root = completed({"event": "operator", "message": text, "operator_uid": 0})
    assert root["message"] == f"stop asked for by user {pwd.getpwuid(0).pw_name} (0), process 12"
    assert root["operator"] == pwd.getpwuid(0).pw_name
    nobody = completed({"event": "operator", "message": text, "operator_uid": 4_000_000_000})
    assert (nobody["message"], "operator" in nobody) == (text, False)
    assert completed({"event": "operator", "message": text, "operator_uid": 2**70})["message"] == text
