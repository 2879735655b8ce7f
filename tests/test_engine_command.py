"""`build-engine` and `check` as a person calls them, with the doubles of TensorRT and CUDA first on the path."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.gpu_double import DOUBLE
from tests.meanwhile import politely

pytestmark = pytest.mark.meanwhile

ROOT = Path(__file__).parents[1]
TENSORRT = '--set=policy.backend="tensorrt"'
PATIENCE_S = 60.0


def words(*more: str) -> list[str]:
    return politely(sys.executable, "-W", "error", "-m", "mvla_daemon", "--config", str(ROOT / "config.toml"), *more)


def environment(folder: Path) -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": f"{DOUBLE}:{ROOT}", "XDG_CACHE_HOME": str(folder)}


def say(folder: Path, *more: str, **variables: str) -> subprocess.CompletedProcess[str]:
    """What the program answers to these words; its cache is in the folder."""
    ran = subprocess.run(
        words(*more),
        env={**environment(folder), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=PATIENCE_S,
    )
    assert "Traceback" not in ran.stderr + ran.stdout
    return ran


def test_an_engine_is_built_once_and_explained(tmp_path: Path) -> None:
    before = say(tmp_path, TENSORRT, "build-engine", "--explain")
    assert before.returncode == 0
    assert "to be built: none was built yet" in before.stdout
    assert not list(tmp_path.rglob("*.engine"))
    first = say(tmp_path, TENSORRT, "build-engine")
    assert first.returncode == 0
    assert re.search(r"building the engine: \d+ % of Building Engine", first.stdout)
    assert "kept as" in first.stdout
    assert "policy cup is ready: as one CUDA graph, off from ONNX Runtime most of all in" in first.stdout
    again = say(tmp_path, TENSORRT, "build-engine")
    assert "engine from the cache" in again.stdout
    explained = say(tmp_path, TENSORRT, "build-engine", "--explain")
    assert re.search(r"^precision +fp16$", explained.stdout, re.MULTILINE)
    assert re.search(r"^used: .* was built for just this$", explained.stdout, re.MULTILINE)
    newer = say(tmp_path, TENSORRT, "build-engine", "--explain", MVLA_DOUBLE_TENSORRT="11.4")
    assert "tensorrt was 10.3.0, is 11.4.0.106" in newer.stdout


def test_an_engine_that_cannot_be_kept_is_an_error_of_this_command(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    refused = say(tmp_path, TENSORRT, f'--set=tensorrt.cache="{tmp_path}/file"', "build-engine")
    assert refused.returncode == 77
    assert refused.stderr.count("\n") == 1
    assert "set tensorrt.cache to another folder" in refused.stderr


def test_only_tensorrt_has_engines_to_build(tmp_path: Path) -> None:
    refused = say(tmp_path, "build-engine")
    assert refused.returncode == 78
    assert 'set it to "tensorrt"' in refused.stderr


@pytest.mark.parametrize("command", [(), ("build-engine",), ("build-engine", "--explain")])
@pytest.mark.parametrize(
    ("where", "said"), [({"PYTHONPATH": str(ROOT)}, "pycuda"), ({"MVLA_DOUBLE_DRIVER": "absent"}, "libcuda.so.1")]
)
def test_a_machine_without_tensorrt_or_cuda_says_so_in_one_sentence(
    tmp_path: Path, command: tuple[str, ...], where: dict[str, str], said: str
) -> None:
    refused = say(tmp_path, TENSORRT, '--set=sim.picture="/dev/null/x"', *command, **where)
    assert refused.returncode == 69
    last = refused.stderr.strip().splitlines()[-1]
    assert last.startswith("mvla-daemon: pycuda cannot be used here")
    assert said in last


def test_a_start_that_builds_can_be_interrupted_and_the_next_one_begins_anew(
    tmp_path: Path,
) -> None:
    slow = {**environment(tmp_path), "MVLA_DOUBLE_FAULTS": "slow_build=60"}
    with subprocess.Popen(words(TENSORRT, "build-engine"), env=slow, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert "building the engine" in process.stdout.readline()
        end_s = time.monotonic() + PATIENCE_S
        while not list(tmp_path.rglob("half.onnx")):
            assert time.monotonic() < end_s
            time.sleep(0.01)
        process.send_signal(signal.SIGKILL)
    assert say(tmp_path, TENSORRT, "build-engine").returncode == 0
    assert not list(tmp_path.rglob("half.onnx"))


def test_check_names_each_version_that_it_found(tmp_path: Path) -> None:
    found = say(tmp_path, TENSORRT, "check")
    assert found.returncode == 0, found.stdout
    lines = {line[3:12].strip(): line for line in found.stdout.splitlines()}
    assert list(lines) == ["versions", "opencv", "gpu", "policy", "camera", "motors"]
    assert all(line.startswith("ok ") for line in lines.values())
    assert re.search(r"Python 3\.\d+\.\d+, .*numpy \d.*onnxruntime \d.*uvloop \d", lines["versions"])
    assert "GStreamer no" in lines["opencv"] or "GStreamer yes" in lines["opencv"]
    assert "Orin 8.7, CUDA 12.6 in the driver, TensorRT 10.3.0, pycuda" in lines["gpu"]
    assert "cup (trained) on tensorrt" in lines["policy"]


def test_check_says_all_that_is_missing_and_the_first_ones_code(tmp_path: Path) -> None:
    found = say(
        tmp_path,
        f'--set=policy.manifest="{tmp_path}/none.toml"',
        '--set=motor.port="/dev/ttyNONE"',
        '--set=camera.source="/dev/video99"',
        "check",
    )
    assert found.returncode == 66
    assert [line[:3] for line in found.stdout.splitlines()] == ["ok ", "ok ", "ok ", "NO ", "NO ", "NO "]
    assert "check policy.manifest" in found.stdout
    assert "/dev/video99" in found.stdout
    assert "motor.port" in found.stdout
