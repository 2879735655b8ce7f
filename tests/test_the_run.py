"""What a run of the tests is judged by beside its tests: rows without proof, what was forgiven, what was made again."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.forgiving import Tally, excuse
from tests.rig import ROOT
from tests.rights import fifo_is_granted
from tests.wire import WireFrame

CONFTEST = """
import pytest
from tests.forgiving import Tally
from tests.once_more import OnceMore
from tests.rows_run import RowsRun

TALLY = Tally()
ONCE_MORE = OnceMore(lambda item: False)
ROWS = {
    "F01": ("it breaks", ["test_rows.py::test_runs", "tests/os/test_far.py::test_breaks"]),
    "F02": ("it bends", ["test_rows.py::test_is_skipped", "tests/os/test_far.py::test_bends"]),
    "F03": ("it is far", ["tests/os/test_far.py::test_is_far"]),
    "F04": ("it is green", ["test_rows.py::test_wants_a_gpu"]),
}

def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: a GPU")
    config.pluginmanager.register(TALLY)
    config.pluginmanager.register(ONCE_MORE)
    config.pluginmanager.register(RowsRun(ROWS))

@pytest.fixture
def tally():
    return TALLY
"""
TESTS = """
import os
import signal
import time
from pathlib import Path

import pytest

TRIES = []
FREEZE = int(os.environ.get("FREEZE_MS", "0")) / 1000

def watchers():
    for children in Path("/proc/self/task").glob("*/children"):
        for child in children.read_text().split():
            if b"ops.standstill" in Path(f"/proc/{child}/cmdline").read_bytes():
                yield int(child)

@pytest.mark.skipif(not FREEZE, reason="another test's")
@pytest.mark.parametrize("number", range(7))
def test_fails_at_first(number, tmp_path):
    TRIES.append(number)
    for signal_number in (signal.SIGSTOP, signal.SIGCONT):
        for watcher in watchers():
            os.kill(watcher, signal_number)
        time.sleep(FREEZE)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "touched").touch()
    assert TRIES.count(number) > int(os.environ["FAILURES"])

@pytest.mark.parametrize("way", [1, pytest.param(2, marks=pytest.mark.skip)])
def test_runs(way, tally):
    for _ in range(int(os.environ["FORGIVEN"])):
        tally.count("frame_stale")

@pytest.mark.parametrize("way", [1, 2])
def test_is_skipped(way):
    if "SKIPPED" in os.environ:
        pytest.skip("the moon is full")

@pytest.mark.gpu
@pytest.mark.skip
def test_wants_a_gpu():
    pass
"""


def pytest_in(folder: Path, *words: str, **environment: str) -> tuple[int, str]:
    (folder / "pytest.ini").write_text("[pytest]\n")
    (folder / "conftest.py").write_text(CONFTEST)
    (folder / "test_rows.py").write_text(TESTS)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *words],
        cwd=folder,
        env={"PYTHONPATH": str(ROOT), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1", "FORGIVEN": "0", **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def test_a_row_of_which_no_test_ran_fails_the_run_and_is_named(tmp_path: Path) -> None:
    code, said = pytest_in(tmp_path, SKIPPED="1")
    assert code == 1
    row = "F02 (it bends) is not proved: none of its tests ran to its end"
    assert f"{row}, test_rows.py::test_is_skipped: the moon is full" in said
    assert "F01" not in said


def test_rows_that_are_proved_elsewhere_are_named_and_no_failure(tmp_path: Path) -> None:
    code, said = pytest_in(tmp_path)
    assert code == 0
    assert "F03 (it is far) has no test in this run: `make test-os` has" in said
    assert "F04 (it is green) has no test in this run: it takes a GPU" in said
    assert "not proved" not in said


@pytest.mark.parametrize(
    "words", [("-k", "not test_runs"), ("test_rows.py::test_is_skipped",), ("--collect-only",), ("-x", "nowhere.py")]
)
def test_of_a_selection_nothing_is_said(tmp_path: Path, words: tuple[str, ...]) -> None:
    code, said = pytest_in(tmp_path, *words, SKIPPED="1")
    assert code == (4 if "nowhere.py" in words else 0)
    assert "F0" not in said


@pytest.mark.parametrize(("times", "code"), [(3, 0), (4, 1)])
def test_too_many_needless_stops_fail_the_run(tmp_path: Path, times: int, code: int) -> None:
    ended, said = pytest_in(tmp_path, FORGIVEN=str(times))
    assert ended == code
    assert f"forgiven: {times} needless stops in {times} tries (frame_stale {times})" in said
    assert ("too many" in said) is bool(code)


def test_a_twentieth_of_many_tries_may_be_forgiven() -> None:
    tally = Tally()
    for number in range(200):
        tally.count("deadline_missed" if number < 6 else "controller_lost" if number < 10 else "")
    assert str(tally) == "forgiven: 10 needless stops in 200 tries (controller_lost 4, deadline_missed 6)"
    assert not tally.is_too_much()
    tally.count("frame_stale")
    assert tally.is_too_much()


def statuses(*uptimes_ms: int) -> list[WireFrame]:
    return [WireFrame("STATUS", 1, number, {"uptime_ms": ms}, 0, 0) for number, ms in enumerate(uptimes_ms)]


def test_a_stop_is_excused_by_a_policy_or_camera_without_time_and_by_a_controller_only_where_it_had_none() -> None:
    steady, held_up, reset = statuses(20, 40, 61, 120), statuses(20, 40, 101, 120), statuses(980, 1000, 3, 23)
    assert [excuse(reason, steady) for reason in (1, 2)] == ["deadline_missed", "frame_stale"]
    assert [excuse(reason, held_up) for reason in (10, 12)] == ["controller_lost", "controller_fault"]
    assert [excuse(reason, seen) for reason in (10, 12) for seen in (steady, reset, [])] == [""] * 6
    others = set(range(20)) - {1, 2, 10, 12}
    assert {excuse(reason, held_up) for reason in others} == {""}


needs_fifo = pytest.mark.skipif(not fifo_is_granted(), reason="needs the right to real-time scheduling")


def made_once_more(folder: Path, failures: int, freeze_ms: int = 60) -> tuple[int, str]:
    return pytest_in(folder, "-k", "fails_at_first", FREEZE_MS=str(freeze_ms), FAILURES=str(failures))


@needs_fifo
def test_a_test_that_failed_while_the_machine_stood_still_is_made_once_more_and_named(tmp_path: Path) -> None:
    code, said = made_once_more(tmp_path, failures=1)
    assert code == 1
    assert "2 failed, 5 passed" in said  # no more than five are
    assert said.count("made once more: test_rows.py::test_fails_at_first[") == 5
    assert 50 <= int(re.search(r"at most, the machine stood still for (\d+) ms, a terminal for \d+ ms", said)[1]) < 1000


@needs_fifo
def test_once_more_is_once(tmp_path: Path) -> None:
    code, said = made_once_more(tmp_path, failures=2)
    assert code == 1
    assert "7 failed" in said


@needs_fifo
def test_a_test_that_failed_while_the_machine_ran_has_failed(tmp_path: Path) -> None:
    code, said = made_once_more(tmp_path, failures=1, freeze_ms=1)
    assert code == 1
    assert "7 failed" in said
    assert "once more" not in said
