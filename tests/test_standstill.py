"""What a machine that stands still is known by, and that a bench does not take it for the daemon's own miss."""

from __future__ import annotations

import os
import shutil
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from pathlib import Path

import pytest

from mvla_daemon.ops.bench_drive import Drive, drive
from mvla_daemon.ops.standstill import StandstillWatch
from tests.forgiving import HELD_UP, TALLY, TRIES
from tests.rig import ROOT
from tests.rights import fifo_is_granted

MS = 1_000_000


pytestmark = pytest.mark.skipif(not fifo_is_granted(), reason="needs the right to real-time scheduling")


def watchers(thread: int) -> list[int]:
    """Those that this thread has started."""
    children = Path(f"/proc/{os.getpid()}/task/{thread}/children").read_text().split()
    found = []
    for child in children:
        with suppress(OSError):
            if b"mvla_daemon.ops.standstill" in Path(f"/proc/{child}/cmdline").read_bytes():
                found.append(int(child))
    return found


def test_a_standstill_is_seen_with_its_begin_and_its_end() -> None:
    """A watcher that is frozen is what a watcher on a processor that stands still is, and that can be brought about."""
    me = threading.get_native_id()
    with StandstillWatch() as machine:
        assert machine.refusal == ""
        assert len(watchers(me)) == len(os.sched_getaffinity(0))
        began_ns = time.monotonic_ns()
        for watcher in watchers(me):
            os.kill(watcher, signal.SIGSTOP)
        time.sleep(0.05)
        for watcher in watchers(me):
            os.kill(watcher, signal.SIGCONT)
        ended_ns = time.monotonic_ns()
        time.sleep(0.05)
        stood_ns = machine.stood_ns(began_ns - 10 * MS, ended_ns + 10 * MS)
        assert 49 * MS < stood_ns < ended_ns - began_ns + 20 * MS  # once, though every processor stood still
        assert 9 * MS < machine.stood_ns(began_ns + 20 * MS, began_ns + 30 * MS) <= 10 * MS
        assert machine.stood_ns(began_ns - 1000 * MS, began_ns - 900 * MS) == 0
    assert watchers(me) == []


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


def drive_standing_still(words: Sequence[str]) -> Drive:
    return drive_again(words, 3, period_ns=20 * MS, machine=standing_still)


def drive_again(
    words: Sequence[str],
    seconds: float,
    *,
    period_ns: int,
    machine: Callable[[], AbstractContextManager[None]] = nullcontext,
) -> Drive:
    """A drive; once more where a busy machine kept the simulated controller itself from running."""
    for left in reversed(range(TRIES)):
        with machine():
            driven = drive(words, seconds, period_ns=period_ns)
        forgiven = next((name for name in HELD_UP.values() if left and f"STOP {name}" in driven.stop), "")
        TALLY.count(forgiven)
        if not forgiven:
            break
    return driven


@contextmanager
def standing_still() -> Iterator[None]:
    """As seen by the watchers that this thread starts."""
    over = threading.Event()
    with ThreadPoolExecutor(1) as pool:
        pool.submit(keep_standing_still, over, threading.get_native_id())
        try:
            yield
        finally:
            over.set()


def keep_standing_still(over: threading.Event, me: int) -> None:
    """Frozen but for a moment, again and again."""
    while not over.wait(0.002):
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for watcher in watchers(me):
                with suppress(ProcessLookupError):
                    os.kill(watcher, number)
            over.wait(0.02 if number is signal.SIGSTOP else 0)
