"""The Jetson's set-up: what it refuses to begin without. What follows needs a Jetson."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FAKE = """#!/bin/sh
case "$2" in *{missing}*) exit 1 ;; esac
exit 0
"""


def refused(folder: Path, python: Path, cuda: Path) -> str:
    ran = subprocess.run(
        [ROOT / "scripts/setup_jetson.sh", folder / "venv"],
        env={"PATH": "/usr/bin:/bin", "PYTHON": str(python), "CUDA_HOME": str(cuda)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert ran.returncode == 69
    assert ran.stderr.count("\n") == 1
    assert not (folder / "venv").exists() or (folder / "venv" / "mine").exists()
    return ran.stderr


@pytest.fixture
def cuda(tmp_path: Path) -> Path:
    nvcc = tmp_path / "cuda" / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True)
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    return tmp_path / "cuda"


@pytest.mark.parametrize(
    ("missing", "remedy"),
    [
        ("tensorrt", "python3-libnvinfer"),
        ("cv2", "python3-opencv"),
        ("ensurepip", "python3-venv"),
        ("Python.h", "python3-dev"),
    ],
)
def test_what_the_system_lacks_is_said_with_the_package_that_brings_it(
    tmp_path: Path, cuda: Path, missing: str, remedy: str
) -> None:
    python = tmp_path / "python3"
    python.write_text(FAKE.format(missing=missing))
    python.chmod(0o755)
    assert remedy in refused(tmp_path, python, cuda)


def test_a_machine_without_python_cuda_or_room_is_told_so(tmp_path: Path, cuda: Path) -> None:
    python = tmp_path / "python3"
    python.write_text(FAKE.format(missing="nothing"))
    python.chmod(0o755)
    assert "no /nowhere/python3" in refused(tmp_path, Path("/nowhere/python3"), cuda)
    assert "bin/nvcc" in refused(tmp_path, python, tmp_path)
    (tmp_path / "venv").mkdir()
    (tmp_path / "venv" / "mine").touch()
    assert "remove it, or name another folder" in refused(tmp_path, python, cuda)
