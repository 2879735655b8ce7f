"""The soak: random faults at random moments, and a gate that must not grow."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from tests.rig import ROOT, environment

SCRIPTS = ROOT / "scripts"
sys.path.insert(0, str(SCRIPTS))

from soak_watch import Flatness, Sample, Waits, look  # noqa: E402 - scripts are no package

MIB = 1 << 20
CONFIG = """
[control]
rate_hz = 20
deadline_ms = 50
max_frame_age_ms = 300
[camera]
source = "/dev/video0"
fps = 20
[policy]
manifest = "{manifest}"
[motor]
port = "/dev/ttyACM0"
watchdog_ms = 300
[safety]
recover_cycles = 2
[realtime]
scheduler = "other"
"""
"""Of its faults, one has the policy process spin: as a real-time one it would keep other tests' robots from running."""


@pytest.mark.meanwhile
def test_it_injects_faults_and_watches_the_gate(tmp_path: Path, studio: Path) -> None:
    config, out = tmp_path / "robot.toml", tmp_path / "out"
    config.write_text(CONFIG.format(manifest=studio / "steady.toml"))
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "soak.py"), "--minutes", "0.2", "--config", str(config), "--out", str(out)],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((out / "soak.json").read_text())
    assert found["totals"]["injected"] >= 1
    assert found["totals"]["velocity_after_stop"] == found["totals"]["missed_stops"] == 0
    assert all(sample["threads"] >= 1 and sample["descriptors"] > 5 for sample in found["gate"]["samples"])
    assert "stops while nothing was done" in done.stdout


def test_a_configuration_that_is_wrong_is_one_sentence(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, str(SCRIPTS / "soak.py"), "--config", str(tmp_path / "nowhere.toml"), "--out", str(tmp_path)],
        env=environment(tmp_path),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert (done.returncode, "nowhere.toml" in done.stderr, "Traceback" in done.stderr) == (1, True, False)


GROWING = """
import os, sys, threading
print(flush=True)
sys.stdin.readline()
held = bytearray(os.urandom(8 << 20))
file = open(os.devnull)
threading.Thread(target=threading.Event().wait, daemon=True).start()
print(flush=True)
sys.stdin.readline()
"""


def test_a_process_is_seen_with_its_memory_files_and_threads() -> None:
    with subprocess.Popen([sys.executable, "-c", GROWING], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        process.stdout.readline()
        before = look(process.pid, 1)
        process.stdin.write(b"\n")
        process.stdin.flush()
        process.stdout.readline()
        during = look(process.pid, 2)
    assert before is not None
    assert during is not None
    assert 7 * MIB < during.resident - before.resident < 12 * MIB
    assert (during.threads, during.descriptors) == (before.threads + 1, before.descriptors + 1)
    assert during.processor_ns >= before.processor_ns > 0


def test_a_process_that_has_ended_is_not_seen() -> None:
    process = subprocess.Popen([sys.executable, "-c", ""])
    process.wait()
    assert look(process.pid, 1) is None


STEADY = [Sample(number * 2_000_000_000, 40 * MIB, 20, 3, number * 20_000_000) for number in range(100)]


def test_what_stays_as_it_is_is_flat() -> None:
    flat = Flatness.of(STEADY)
    assert flat is not None
    assert flat.problems() == []
    assert flat.processor == pytest.approx(0.01)
    assert flat.minutes == pytest.approx(89 * 2 / 60)
    assert "40.0 then 40.0 MiB resident" in flat.line()
    assert "1.0% of a processor" in flat.line()


@pytest.mark.parametrize(
    ("name", "step", "word"),
    [("resident", 30_000, "memory"), ("descriptors", 1, "file descriptors"), ("threads", 1, "threads")],
)
def test_what_grows_is_named(name: str, step: int, word: str) -> None:
    grown = [replace(sample, **{name: getattr(sample, name) + number * step}) for number, sample in enumerate(STEADY)]
    flat = Flatness.of(grown)
    assert flat is not None
    (problem,) = flat.problems()
    assert word in problem


def test_more_memory_than_it_may_have_is_a_problem_though_it_does_not_grow() -> None:
    large = Flatness.of([replace(sample, resident=51 * MIB) for sample in STEADY])
    assert large is not None
    assert large.problems() == ["it held 51.0 MiB, 50 are the most that it may"]


def test_the_first_moments_are_no_growth_and_a_few_looks_are_none() -> None:
    young = [replace(sample, resident=30 * MIB) for sample in STEADY[:5]]
    flat = Flatness.of([*young, *STEADY[5:]])
    assert flat is not None
    assert flat.problems() == []
    assert Flatness.of(STEADY[:4]) is None


def test_who_waits_for_a_processor_is_seen_waiting() -> None:
    """Two that want the same one all the time: each waits about half of it."""
    core = min(os.sched_getaffinity(0))
    spin = [sys.executable, "-c", f"import os; os.sched_setaffinity(0, [{core}]); print(flush=True)\nwhile True: pass"]
    processes = [subprocess.Popen(spin, stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for process in processes:
            assert process.stdout is not None
            process.stdout.readline()
        pids = {"one": processes[0].pid, "other": processes[1].pid, "nobody": None}
        before = Waits.of(pids)
        time.sleep(0.3)
        now = Waits.of(pids)
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert all(now.queued[name] - before.queued[name] > 50 for name in ("one", "other"))
    assert now.queued["nobody"] == 0.0
    assert now.steal >= before.steal
    assert "one queued for" in now.since(before)
    assert "stolen by the host" in now.since(before)
