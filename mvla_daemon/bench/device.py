"""What this machine computes with, by name, and which engines are installed on it."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path

MODULES = {"onnxruntime": ("onnxruntime",), "tensorrt": ("tensorrt", "pycuda"), "torch": ("torch",)}
"""The engines, and what each of them needs."""
_SMI_S = 10.0


def missing_modules(engine: str) -> list[str]:
    """What is not installed of that which an engine needs."""
    return [name for name in MODULES[engine] if name not in sys.modules and find_spec(name) is None]


def processor() -> str:
    """The processor's name and how many cores this process may use."""
    name = platform.machine()
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                name = line.partition(":")[2].strip()
                break
    cores = len(os.sched_getaffinity(0))
    return f"{name}, {cores} core{'' if cores == 1 else 's'}"


def gpu() -> str:
    """The name of the board (Jetson) or of the first GPU; empty where neither tells one."""
    with suppress(OSError):
        board = Path("/proc/device-tree/model").read_bytes().rstrip(b"\0").decode("utf-8", "replace")
        if "jetson" in board.lower():
            return board
    names = _nvidia_smi("--query-gpu=name")
    return names[0] if names else ""


def gpu_memory_mib(pid: int) -> float | None:
    """The memory that a process holds on GPUs; None where the driver does not tell, as on a Jetson."""
    return memory_of(pid, _nvidia_smi("--query-compute-apps=pid,used_memory"))


def memory_of(pid: int, rows: list[str]) -> float | None:
    """The MiB of one process in the driver's list of rows "pid, MiB"."""
    held = []
    for row in rows:
        holder, _, mib = row.partition(",")
        with suppress(ValueError):
            if int(holder) == pid:
                held.append(float(mib))
    return sum(held) if held else None


def _nvidia_smi(query: str) -> list[str]:
    try:
        done = subprocess.run(  # noqa: S603 - the driver's own tool
            ["nvidia-smi", query, "--format=csv,noheader,nounits"],  # noqa: S607 - wherever the driver put it
            capture_output=True,
            text=True,
            check=False,
            timeout=_SMI_S,
        )
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in done.stdout.splitlines() if line.strip()] if done.returncode == 0 else []
