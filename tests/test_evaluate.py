"""Evaluating a policy: what is driven, what is counted, and what the thresholds are."""

from __future__ import annotations

import hashlib
import json
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from mvla_daemon.config_load import load_config
from mvla_daemon.sim.instructions import SENTENCES, embedding
from mvla_daemon.sim.room import Side
from mvla_daemon.sim.world import Outcome
from tests.meanwhile import politely
from tests.onnx_models import ModelFile

SCRIPTS = Path(__file__).parent.parent / "scripts"
sys.path.insert(0, str(SCRIPTS))

from evaluate_drives import Ended, Kind, drive_in_lockstep, instruction_for  # noqa: E402 - scripts are no package
from evaluate_policy import main  # noqa: E402
from evaluate_real_time import drive_in_real_time, judged  # noqa: E402
from evaluate_report import checks, table  # noqa: E402

CONFIG = """\
[control]
rate_hz = 10
deadline_ms = 100
max_frame_age_ms = 500
[camera]
source = "{source}"
fps = 10
[policy]
manifest = "{manifest}"
[motor]
port = "sim://"
watchdog_ms = 300
[sim]
picture = "drive.png"
"""
"""A calm pace, at which a drive has a fifth of the pictures."""
MANIFEST = """\
name = "ahead"
model = "ahead.onnx"
weights = "random"
[sha256]
"ahead.onnx" = "{model}"
"table.npz" = "{table}"
[inputs.image]
tensor = "images"
layout = "NCHW"
dtype = "float32"
size = [32, 32]
color = "RGB"
resize = "squash"
[inputs.instruction]
tensor = "told"
table = "table.npz"
[[axis]]
name = "linear_x"
tensor = "actions"
index = 0
unit = "m/s"
"""


def write_config(folder: Path, manifest: str = "bundled:cup", source: str = "sim://") -> Path:
    path = folder / "config.toml"
    path.write_text(CONFIG.format(manifest=manifest, source=source))
    return path


def write_policy(folder: Path, speed_mps: float, sentences: list[str]) -> str:
    """A policy that drives ahead whatever it sees and is told."""
    model = (
        ModelFile()
        .input("images", "float32", [1, 3, 32, 32])
        .input("told", "float32", [1, 512])
        .output("actions", "float32", [1, 1])
        .constant("nothing", [[0.0]])
        .constant("speed", [[speed_mps]])
        .node("ReduceMean", "told", "mean", axes=[1], keepdims=1)
        .node("Mul", "mean nothing", "zero")
        .node("Add", "zero speed", "actions")
    )
    model.save(folder / "ahead.onnx")
    np.savez(
        folder / "table.npz", texts=np.array(sentences), embeddings=np.stack([embedding(one) for one in sentences])
    )
    sums = {name: hashlib.sha256((folder / name).read_bytes()).hexdigest() for name in ("ahead.onnx", "table.npz")}
    (folder / "ahead.toml").write_text(MANIFEST.format(model=sums["ahead.onnx"], table=sums["table.npz"]))
    return str(folder / "ahead.toml")


def drives(kind: Kind, reached: int, n: int = 100) -> list[Ended]:
    one = Ended(kind, 0, "go", Outcome.REACHED, Side.LEFT, 10.0, ())
    return [
        replace(one, seed=seed, outcome=Outcome.REACHED if seed < reached else Outcome.TIMEOUT) for seed in range(n)
    ]


def test_seeds_take_turns_with_all_sentences_and_swapped_ones_ask_for_the_other_side() -> None:
    told = [instruction_for(Kind.POLICY, seed) for seed in range(8)]
    assert sorted(told) == sorted(SENTENCES)
    assert [SENTENCES[one] for one in told] == [Side.LEFT, Side.RIGHT] * 4
    swapped = [instruction_for(Kind.SWAPPED, seed) for seed in range(8)]
    assert [SENTENCES[one] for one in swapped] == [Side.RIGHT, Side.LEFT] * 4
    assert instruction_for(Kind.REAL_TIME, 5) == instruction_for(Kind.BLACK, 5) == told[5]


@pytest.mark.meanwhile
def test_an_evaluation_says_how_each_drive_ended_and_draws_them(tmp_path: Path) -> None:
    words = ["--config", str(write_config(tmp_path)), "--out", str(tmp_path / "out"), "--seeds", "6:7"]
    words += ["--real-time", "0", "--jobs", "2", "--check"]
    script = str(SCRIPTS / "evaluate_policy.py")
    run = subprocess.run(
        politely(sys.executable, script, *words), env=dict(os.environ), capture_output=True, check=False, timeout=100
    )
    assert run.returncode == 0, run.stderr
    assert b"5 of 5 drives in simulated time" in run.stderr
    assert run.stderr.count(b"\n") == 1
    assert b"the same bytes to the motors" in run.stdout
    assert [line.split()[0] for line in run.stdout.splitlines()].count(b"holds") == 5
    report = json.loads((tmp_path / "out" / "evaluation.json").read_text())
    assert report["policy"]["weights"] == "cup (trained)"
    ways = {kind: (one["outcome"], one["passed"]) for kind, (one,) in report["drives"].items()}
    assert ways["policy"] == ("reached", "left")
    assert ways["instruction swapped"] == ("reached", "right")
    assert ways["camera black"][0] != "reached"
    assert ways["straight ahead"][0] != "reached"
    (policy,) = report["drives"]["policy"]
    assert 5 < policy["duration_s"] < 20
    assert 0.05 < policy["gap_m"] < 0.6
    assert report["repeated"] == {"seed": 6, "wire_sha256": [policy["wire_sha256"]] * 2}
    assert len({one["wire_sha256"] for (one,) in report["drives"].values()}) == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == [
        "drives.png",
        "drives_camera_black.png",
        "drives_instruction_swapped.png",
        "drives_straight_ahead.png",
        "evaluation.json",
    ]


def test_a_robot_that_never_moves_is_no_success_and_ends_nevertheless(tmp_path: Path) -> None:
    manifest = write_policy(tmp_path, 0.0, list(SENTENCES))
    config = load_config(write_config(tmp_path, manifest), ['safety.arm="auto"'])
    ended, drive = drive_in_lockstep(config, Kind.POLICY, 0)
    assert (ended.outcome, ended.duration_s, ended.gap_m, ended.stops) == (Outcome.RUNNING, None, None, ())
    assert ended.said
    assert drive.track == []


@pytest.mark.meanwhile
def test_a_drive_in_real_time_ends_by_the_daemons_own_words(tmp_path: Path) -> None:
    manifest = write_policy(tmp_path, 0.5, list(SENTENCES))
    # In this room the box is two seconds straight ahead.
    ended = drive_in_real_time(load_config(write_config(tmp_path, manifest)), 9)
    assert (ended.outcome, ended.stops) == (Outcome.TOUCHED_BOX, ()), ended.said
    assert re.fullmatch(r"The simulated robot touched the box after [12]\.\d s\.", ended.said)
    assert ended.duration_s == pytest.approx(2.1, abs=0.7)
    assert not (tmp_path / "drive.png").exists()


def log(kind: str, second: float, **fields: str) -> str:
    return json.dumps({"kind": kind, **fields, "timestamp": f"2026-01-02T03:04:{second:09.6f}Z"})


DRIVEN = [
    log("state", 1.0, state="arming", reason=""),
    log("state", 2.0, state="armed", reason=""),
    log("stop", 3.5, reason="deadline_missed"),
    log("state", 5.0, state="armed", reason=""),
    log("stop", 14.25, reason="shutdown"),
]


def test_stops_in_real_time_are_counted_without_the_last_one() -> None:
    ended = judged(3, "go", 0, DRIVEN)
    assert ended.reached
    assert ended.duration_s == pytest.approx(12.25)
    assert ended.stops == ((1.5, "deadline_missed"),)


@pytest.mark.parametrize(
    ("said", "outcome"),
    [
        ("The simulated robot touched a wall after 4.2 s.", Outcome.TOUCHED_WALL),
        ("The simulated robot passed the box on the wrong side after 6.3 s.", Outcome.WRONG_SIDE),
        ("The simulated robot did not reach the cup after 30.0 s.", Outcome.TIMEOUT),
        ("The policy process has ended.", Outcome.RUNNING),
    ],
)
def test_what_went_wrong_in_real_time_is_what_the_daemon_says(said: str, outcome: Outcome) -> None:
    ended = judged(3, "go", 75, [*DRIVEN, f"mvla-daemon: {said}"])
    assert (ended.outcome, ended.said) == (outcome, said)


def test_a_daemon_that_never_armed_has_no_duration() -> None:
    ended = judged(3, "go", 69, ["mvla-daemon: The port is gone."])
    assert (ended.outcome, ended.duration_s, ended.stops) == (Outcome.RUNNING, None, ())


@pytest.mark.parametrize(
    ("kind", "just", "no_longer"),
    [
        (Kind.POLICY, 95, 94),
        (Kind.SWAPPED, 90, 89),
        (Kind.REAL_TIME, 90, 89),
        (Kind.BLACK, 30, 31),
        (Kind.STRAIGHT, 20, 21),
    ],
)
def test_each_threshold_holds_just_so(kind: Kind, just: int, no_longer: int) -> None:
    assert all(holds for holds, _ in checks({kind: drives(kind, just)}, repeats=True))
    broken = [sentence for holds, sentence in checks({kind: drives(kind, no_longer)}, repeats=True) if not holds]
    assert [sentence.split(":")[0] for sentence in broken] == [kind.value]


def test_one_stop_in_real_time_or_other_bytes_break_the_check() -> None:
    stopped = [
        replace(one, stops=((1.0, "frame_stale"),)) if one.seed == 7 else one for one in drives(Kind.REAL_TIME, 100)
    ]
    assert [holds for holds, _ in checks({Kind.REAL_TIME: stopped}, repeats=True)] == [True, False, True]
    assert [holds for holds, _ in checks({Kind.POLICY: drives(Kind.POLICY, 100)}, repeats=False)] == [True, False]


def test_the_table_names_every_drive_that_should_not_have_failed() -> None:
    failed = replace(drives(Kind.POLICY, 2, 2)[1], outcome=Outcome.TOUCHED_CUP, stops=((2.5, "not_finite"),))
    rows = {Kind.POLICY: [drives(Kind.POLICY, 1, 1)[0], failed], Kind.BLACK: drives(Kind.BLACK, 0, 2)}
    heading, policy, black, *said = table(rows).splitlines()
    assert heading.split()[:3] == ["drives", "n", "reached"]
    #                         n, reached, sides, boxes, cup, wall, timeout, other, p50, p99, gap, stops
    assert " ".join(policy.split()) == "policy 2 1 0 0 0 1 0 0 0 10.00 10.00 - 1"
    assert " ".join(black.split()) == "camera black 2 0 0 0 0 0 0 2 0 - - - 0"
    assert said == ['policy, seed 1, "go": touched_cup; STOP not_finite after 2.5 s']


def test_what_cannot_be_evaluated_is_said_before_anything_drives(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def refusal(config: Path) -> str:
        assert main(["--config", str(config), "--out", str(tmp_path / "out")]) == 78
        said = capsys.readouterr()
        assert said.out == ""
        assert not (tmp_path / "out").exists()
        return said.err

    assert 'set camera.source and motor.port to "sim://"' in refusal(write_config(tmp_path, source="file://clip.avi"))
    knows_one = write_policy(tmp_path, 0.5, ["go to the cup, pass the box on its left"])
    assert "does not know the instruction" in refusal(write_config(tmp_path, knows_one))


@pytest.mark.parametrize("seeds", ["7", "5:5", "-1:3", "0:100001"])
def test_seeds_are_a_range_outside_of_training(seeds: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["--config", "config.toml", "--out", "out", f"--seeds={seeds}"])
    assert "--seeds" in capsys.readouterr().err
