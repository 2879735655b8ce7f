"""`mvla-daemon bench`: the whole daemon measured with pictures from memory."""

from __future__ import annotations

import subprocess
import time
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from mvla_daemon.cameras.base import CameraError
from mvla_daemon.cameras.null import NullCamera
from tests.forgiving import again_if_held_up
from tests.rig import ROOT, command, environment

OK, USAGE, NO_INPUT, TRY_AGAIN, CONFIG = 0, 64, 66, 75, 78


def bench(folder: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(ROOT / "config.toml", "bench", *words),
        cwd=ROOT,
        env=environment(folder),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )


@pytest.mark.meanwhile
def test_it_measures_a_rate_and_says_where_the_time_goes(tmp_path: Path) -> None:
    words = "--null", "--rate", "10", "--seconds", "1"
    done = again_if_held_up(lambda: bench(tmp_path, *words), lambda done: done.stderr)
    assert done.returncode == OK, done.stderr
    assert "10 Hz held for 1 s: no deadline missed" in done.stdout
    table = {
        line.split()[0]: line.split() for line in done.stdout.splitlines() if line.startswith(("prep", "frame_to"))
    }
    assert 5 <= int(table["preprocess"][6]) <= 30
    assert float(table["frame_to_wire"][1]) >= float(table["preprocess"][1]) > 0


@pytest.mark.meanwhile
def test_a_rate_that_does_not_hold_is_said_with_its_reason_and_is_a_failure(tmp_path: Path) -> None:
    done = bench(tmp_path, "--rate", "100", "--seconds", "1", "--set", "control.deadline_ms=0.05")
    assert done.returncode == TRY_AGAIN, done.stderr
    assert "100 Hz was not held: not armed: " in done.stderr


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--rate", "2000"], USAGE, "0.1 to 1000 Hz"),
        (["--rate", "20"], CONFIG, "max_frame_age_ms"),
        (["--null", "--rate", "20", "--set", "policy.manifest=nowhere.toml"], NO_INPUT, "nowhere.toml"),
    ],
    ids=["too fast", "deadline of another rate", "no manifest"],
)
def test_what_cannot_be_measured_is_said(tmp_path: Path, words: list[str], code: int, sentence: str) -> None:
    done = bench(tmp_path, *words)
    assert (done.returncode, sentence in done.stderr, "Traceback" in done.stderr) == (code, True, False), done.stderr


def test_null_pictures_come_when_they_are_due_and_no_two_in_a_row_are_the_same() -> None:
    camera = NullCamera(64, 48, 200.0)
    camera.open()
    into = np.zeros((48, 64, 3), np.uint8)
    seen = []
    for _ in range(20):
        capture = camera.read(into)
        assert capture.captured_ns <= time.monotonic_ns()
        seen.append((capture.number, capture.captured_ns, into.tobytes()))
    steps = [(b[1] - a[1], b[0] - a[0]) for a, b in pairwise(seen)]
    assert all(abs(ns - 5_000_000 * numbers) <= 1 for ns, numbers in steps)
    assert all(numbers >= 1 for _, numbers in steps)
    assert all(a[2] != b[2] for a, b in pairwise(seen))
    camera.close()
    with pytest.raises(CameraError, match="closed"):
        camera.read(into)
