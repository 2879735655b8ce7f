"""TensorRT's real library where there is no GPU: its lean runtime loads, complains, and is never reached by the daemon.

It can run engines and build none, and ordinary packages bring it, 45 MB:

    .venv/bin/python -m pip install tensorrt-lean-cu13-bindings tensorrt-lean-cu13-libs

What takes a GPU is in tests/hardware.
"""

from __future__ import annotations

import ast
import importlib
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

from tests.test_tensorrt_api import FILES, uses

LEAN = "tensorrt_lean_bindings"
pytestmark = pytest.mark.skipif(find_spec(LEAN) is None, reason="TensorRT's lean runtime is not installed")
ROOT = Path(__file__).parents[1]
UNAVAILABLE = 69
COMPLAIN = """
from mvla_daemon.engines.tensorrt_library import TensorRt
library = TensorRt(None)
runtime = library.trt.Runtime(library.logger)
print(library.complaints(), flush=True)
"""


@pytest.fixture
def environment(tmp_path: Path) -> dict[str, str]:
    """In which `tensorrt` is the lean runtime and no device is to be seen, whatever the machine has."""
    names = ("*", "__version__")
    (tmp_path / "tensorrt.py").write_text("".join(f"from {LEAN} import {name}\n" for name in names))
    more = {"PYTHONPATH": f"{tmp_path}:{ROOT}", "CUDA_VISIBLE_DEVICES": "", "XDG_CACHE_HOME": str(tmp_path)}
    return {**os.environ, **more}


def test_all_that_the_engine_uses_of_the_runtime_is_in_the_real_library() -> None:
    found = {(owner, name) for path in FILES for _, owner, name, _ in uses(ast.parse(path.read_text()))}
    owners = {"Runtime", "ICudaEngine", "IExecutionContext", "ILogger", "DataType", "TensorIOMode"}
    lean = importlib.import_module(LEAN)
    used = {(owner, name) for owner, name in found if owner in owners}
    assert len(used) > 20
    assert [f"{owner}.{name}" for owner, name in sorted(used) if not hasattr(getattr(lean, owner), name)] == []


def test_what_it_says_of_a_missing_gpu_is_kept_for_the_error_that_follows(environment: dict[str, str]) -> None:
    """What it then hands out crashes when it is used or let go of, so how this process ends is not judged."""
    words = [sys.executable, "-c", COMPLAIN]
    ran = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert "CUDA initialization failure" in ran.stdout
    assert "TensorRT gave no reason" not in ran.stdout


def test_the_daemon_asks_for_a_gpu_before_it_touches_the_library(environment: dict[str, str]) -> None:
    """Where there is none the library's runtime is an object whose first use ends the process by a signal."""
    words = [sys.executable, "-m", "mvla_daemon", "--config", "config.toml", "--set", 'policy.backend="tensorrt"']
    words.append("build-engine")
    ran = subprocess.run(words, cwd=ROOT, env=environment, capture_output=True, text=True, check=False, timeout=120)
    assert ran.returncode == UNAVAILABLE
    assert "pycuda cannot be used here" in ran.stderr
    assert len(ran.stderr.splitlines()) == 1
