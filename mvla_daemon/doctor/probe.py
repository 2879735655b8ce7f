"""Looks at what can hang or crash whoever looks: one thing, in a process of its own, said as one line of JSON.

A broken OpenCV or TensorRT ends its process with SIGSEGV or SIGILL, a driver can keep it waiting for ever.
"""

from __future__ import annotations

import ctypes
import importlib
import json
import re
import signal
import subprocess
import sys
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

PROBE_S = 15.0
"""To import the largest of them from a slow card."""
_DRIVER = "libcuda.so.1"
_NO_DEVICE = 100  # CUDA_ERROR_NO_DEVICE


class ProbeError(Exception):
    """The probe gave no answer; the text says why."""


def probe(*words: str, timeout_s: float = PROBE_S) -> dict[str, str]:
    """What a probe finds, in a process of its own; raises ProbeError with what became of it."""
    command = [sys.executable, "-m", "mvla_daemon.doctor.probe", *words]
    try:
        done = subprocess.run(  # noqa: S603 - this module
            command, stdin=subprocess.DEVNULL, capture_output=True, timeout=timeout_s, check=False
        )
    except subprocess.TimeoutExpired:
        raise ProbeError(f"no answer within {timeout_s:g} s") from None
    except OSError as error:
        raise ProbeError(f"no process could be started for it ({error.strerror})") from None
    if done.returncode < 0:
        raise ProbeError(f"it crashed ({_signal(-done.returncode)})")
    lines = done.stdout.decode("utf-8", "replace").splitlines()
    try:
        found = json.loads(lines[-1])
    except (IndexError, ValueError):
        complaint = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise ProbeError(complaint[-1] if complaint else f"it ended with {done.returncode}") from None
    return {str(key): str(value) for key, value in found.items()}


def _signal(number: int) -> str:
    with suppress(ValueError):
        return signal.Signals(number).name
    return f"signal {number}"


# --- in the process of its own ---


def _numpy() -> dict[str, str]:
    return {"version": str(importlib.import_module("numpy").__version__)}


def _opencv() -> dict[str, str]:
    cv2 = importlib.import_module("cv2")
    built = cv2.getBuildInformation()
    parts = {"v4l2": "v4l/v4l2", "gstreamer": "GStreamer", "ffmpeg": "FFMPEG"}
    has = {name: "yes" if re.search(rf"^\s*{key}:\s+YES", built, re.MULTILINE) else "no" for name, key in parts.items()}
    return {"version": str(cv2.__version__), "folder": str(Path(str(cv2.__file__)).parent), **has}


def _onnxruntime() -> dict[str, str]:
    runtime = importlib.import_module("onnxruntime")
    providers = ", ".join(name.removesuffix("ExecutionProvider") for name in runtime.get_available_providers())
    return {"version": str(runtime.__version__), "providers": providers}


def _tensorrt() -> dict[str, str]:
    """Imported and nothing more: without a driver its objects crash."""
    return {"version": str(importlib.import_module("tensorrt").__version__)}


def _cuda() -> dict[str, str]:
    """Driver API, so that neither pycuda nor a toolkit is needed. No device is an answer too."""
    driver = ctypes.CDLL(_DRIVER)
    status = driver.cuInit(0)
    if status == _NO_DEVICE:
        return {"gpu": ""}
    if status != 0:
        return {"gpu": "", "error": f"cuInit answers {status}"}
    version, name = ctypes.c_int(0), ctypes.create_string_buffer(256)
    driver.cuDriverGetVersion(ctypes.byref(version))
    if driver.cuDeviceGetName(name, len(name), 0) != 0:
        return {"gpu": ""}
    return {
        "gpu": name.value.decode("utf-8", "replace"),
        "cuda": f"{version.value // 1000}.{version.value % 1000 // 10}",
    }


def _check(look: str, config: str, *overrides: str) -> dict[str, str]:
    """One line of `mvla-daemon check`, by that command's own function."""
    from mvla_daemon.config_load import load_config  # noqa: PLC0415 - for this probe only
    from mvla_daemon.errors import DaemonError  # noqa: PLC0415 - as above
    from mvla_daemon.ops.check import LOOKS  # noqa: PLC0415 - as above

    try:
        return {"found": LOOKS[look](load_config(Path(config), overrides))}
    except DaemonError as error:
        return {"refused": str(error)}


_PROBES: dict[str, Callable[..., dict[str, str]]] = {
    "numpy": _numpy,
    "opencv": _opencv,
    "onnxruntime": _onnxruntime,
    "tensorrt": _tensorrt,
    "cuda": _cuda,
    "check": _check,
}

if __name__ == "__main__":
    try:
        answer = _PROBES[sys.argv[1]](*sys.argv[2:])
    except (ImportError, OSError, AttributeError) as error:
        sys.exit(f"{error}")
    sys.stdout.write(f"\n{json.dumps(answer)}\n")
