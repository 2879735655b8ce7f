"""What a machine that stands still is known by, and that a bench does not take it for the daemon's own miss."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from mvla_daemon.ops.bench_drive import Drive, drive
from mvla_daemon.ops.standstill import StandstillWatch
from tests.forgiving import again_if_held_up
from tests.rig import ROOT
from tests.rights import fifo_is_granted
from tests.standing_still import watchers

MS = 1_000_000


pytestmark = pytest.mark.skipif(not fifo_is_granted(), reason="needs the right to real-time scheduling")


def test_a_standstill_is_seen_with_its_begin_and_its_end() -> None:
    """A watcher that is frozen is what a watcher on a processor that stands still is, and that can be brought about."""
    me = os.getpid(), threading.get_native_id()
    with StandstillWatch() as machine:
        assert machine.refusal == ""
        assert len(watchers(*me)) == len(os.sched_getaffinity(0))
        began_ns = time.monotonic_ns()
        for watcher in watchers(*me):
            os.kill(watcher, signal.SIGSTOP)
        time.sleep(0.05)
        for watcher in watchers(*me):
            os.kill(watcher, signal.SIGCONT)
        ended_ns = time.monotonic_ns()
        stood_ns = machine.stood_ns(began_ns - 10 * MS, ended_ns + 10 * MS)
        assert 49 * MS < stood_ns < ended_ns - began_ns + 20 * MS  # once, though every processor stood still
        assert 9 * MS < machine.stood_ns(began_ns + 20 * MS, began_ns + 30 * MS) <= 10 * MS
        assert machine.stood_ns(began_ns - 1000 * MS, began_ns - 900 * MS) == 0
    assert watchers(*me) == []


def test_a_standstill_that_is_not_over_is_waited_for() -> None:
    """As where one processor stands still yet, and whoever asks runs on another."""
    me = os.getpid(), threading.get_native_id()
    with StandstillWatch() as machine:
        frozen, *_ = watchers(*me)
        os.kill(frozen, signal.SIGSTOP)
        time.sleep(0.01)
        began_ns = time.monotonic_ns()
        over = threading.Timer(0.1, os.kill, (frozen, signal.SIGCONT))
        over.start()
        stood_ns = machine.stood_ns(began_ns, began_ns + 50 * MS)
        over.join()
        assert stood_ns == 50 * MS


def disturbed(folder: Path, by: str = "SIGSTOP") -> list[str]:
    """A drive, calm enough for a busy machine, in which the policy process gets a signal after half a second."""
    config = Path(shutil.copy(ROOT / "config.toml", folder))
    calm = ("control.rate_hz=10", "control.deadline_ms=100", "control.max_frame_age_ms=500", "motor.watchdog_ms=500")
    safety = ("safety.max_stops=1000", "safety.recover_cycles=5")
    settings = (*calm, *safety, "camera.fps=10", "log.format=json", f"sim.picture={folder / 'drive.png'}")
    sets = [f"--set={setting}" for setting in settings]
    return ["--config", str(config), "--fault", f"{by}@0.5s", *sets]


@pytest.mark.meanwhile
def test_a_miss_while_the_machine_did_not_stand_still_is_the_end_of_a_drive(tmp_path: Path) -> None:
    driven = drive_again(disturbed(tmp_path), 10, period_ns=2_000_000_000)
    assert "STOP deadline_missed" in driven.stop
    assert driven.stood_ms == []


@pytest.mark.meanwhile
def test_a_miss_while_the_machine_stood_still_is_noted_and_driven_on_after(tmp_path: Path) -> None:
    driven = drive_standing_still(disturbed(tmp_path))
    assert driven.stop == ""
    assert driven.stood_ms
    assert min(driven.stood_ms) >= 10


@pytest.mark.meanwhile
def test_a_stop_that_only_an_operator_ends_is_the_end_of_a_drive_all_the_same(tmp_path: Path) -> None:
    assert "STOP policy_lost" in drive_standing_still(disturbed(tmp_path, "SIGKILL")).stop


def drive_again(words: Sequence[str], seconds: float, *, period_ns: int) -> Drive:
    return again_if_held_up(lambda: drive(words, seconds, period_ns=period_ns), lambda driven: driven.stop)


def drive_standing_still(words: Sequence[str]) -> Drive:
    with standing_still():
        return drive_again(words, 3, period_ns=20 * MS)


@contextmanager
def standing_still() -> Iterator[None]:
    """As seen by the watchers that this thread starts."""
    words = [sys.executable, "-m", "tests.standing_still", str(os.getpid()), str(threading.get_native_id())]
    with subprocess.Popen(words, cwd=ROOT, env=dict(os.environ)) as keeper:
        try:
            yield
        finally:
            keeper.kill()
