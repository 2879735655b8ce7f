"""The whole daemon on TensorRT, as its double: engine built, compared, armed, driven to the cup; then used again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.gpu_double import DOUBLE

ROOT = Path(__file__).parents[1]
SHORT_WAY = 16
PATIENCE_S = 90.0


def drive(folder: Path, *words: str, **variables: str) -> tuple[int, list[dict[str, Any]], str]:
    """The exit code, the records and all that was said."""
    settings = (
        'policy.backend="tensorrt"',
        'log.format="json"',
        f'sim.picture="{folder}/drive.png"',
        *("camera.fps=10", "control.rate_hz=10", "control.deadline_ms=100", "control.max_frame_age_ms=500"),
        "motor.watchdog_ms=300",
    )
    ran = subprocess.run(
        [
            *(sys.executable, "-W", "error", "-m", "mvla_daemon", "--config", str(ROOT / "config.toml")),
            *(f"--set={setting}" for setting in settings),
            *words,
        ],
        env={
            **os.environ,
            "PYTHONPATH": f"{DOUBLE}:{ROOT}",
            "XDG_CACHE_HOME": str(folder),
            "RUNTIME_DIRECTORY": str(folder / "run"),
            **variables,
        },
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    said = ran.stdout + ran.stderr
    assert "Traceback" not in said
    return ran.returncode, [json.loads(line) for line in said.splitlines() if line.startswith("{")], said


def engine_sentences(records: list[dict[str, Any]]) -> list[str]:
    return [record["event"] for record in records if record["kind"] in {"engine", "engine_built"}]


@pytest.mark.meanwhile
def test_it_builds_compares_arms_and_drives_to_the_cup_and_the_next_start_takes_the_engine_from_the_cache(
    tmp_path: Path,
) -> None:
    code, records, said = drive(tmp_path, f"--seed={SHORT_WAY}")
    assert code == 0, said
    building, *_, built = engine_sentences(records)
    assert building.startswith("building the engine")
    assert "kept as" in built
    (record,) = (record for record in records if record["kind"] == "engine_built")
    assert (record["policy"], record["precision"], record["path"] in built) == ("cup", "fp16", True)
    assert record["duration_us"] >= 0
    states = [record["state"] for record in records if record["kind"] == "state"]
    assert states[:2] == ["arming", "armed"]
    (ready,) = (record for record in records if record["kind"] == "policy_ready")
    assert ready["engine"].startswith("tensorrt as one CUDA graph, off from ONNX Runtime most of all in")
    code, records, said = drive(tmp_path, f"--seed={SHORT_WAY}", "--for=3")
    assert code == 0, said
    (sentence,) = engine_sentences(records)
    assert sentence.startswith("engine from the cache")


@pytest.mark.meanwhile
def test_an_engine_that_answers_otherwise_never_arms(tmp_path: Path) -> None:
    code, records, said = drive(tmp_path, MVLA_DOUBLE_FAULTS="perturb=2")
    assert code == 78, said
    assert not {record["state"] for record in records if record["kind"] == "state"} & {"arming", "armed"}
    assert "the engine's answers differ from the model's on ONNX Runtime" in said.splitlines()[-1]


@pytest.mark.meanwhile
def test_lockstep_runs_on_the_engine_that_the_configuration_names(tmp_path: Path) -> None:
    code, records, said = drive(tmp_path, f"--seed={SHORT_WAY}", "--lockstep", MVLA_DOUBLE_TENSORRT="11.4")
    assert code == 0, said
    assert engine_sentences(records)[0].startswith("building the engine")
