"""The process in which one policy is measured on one engine at one precision, so that its memory is its own.

Started by `contest.py`: its task comes as JSON on standard input, its result goes as JSON to standard output.
"""

from __future__ import annotations

import gc
import json
import os
import sys
from contextlib import ExitStack
from pathlib import Path
from time import perf_counter_ns
from typing import Any

import numpy as np

from mvla_daemon.bench.device import gpu, gpu_memory_mib, processor
from mvla_daemon.bench.latency import Spread
from mvla_daemon.bench.torch_engine import torch_engine
from mvla_daemon.config import Config
from mvla_daemon.config_load import load_config
from mvla_daemon.core.messages import MS, SECOND, Stage
from mvla_daemon.engines.base import Engine, EngineError, TimedEngine
from mvla_daemon.engines.instruction import embedding_for, instructions_of
from mvla_daemon.engines.manifest import ImageInput, Manifest, load_manifest
from mvla_daemon.equipment import engine_for
from mvla_daemon.errors import DaemonError, ExitCode

_SEED = 0
"""Of the picture that every engine is given."""


def main() -> int:
    """Measure as told; what goes wrong is told as a sentence, as everywhere."""
    task = json.load(sys.stdin)
    # Native libraries print what they like; the result is the only thing on standard output.
    result = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    try:
        found = _measured(task)
    except DaemonError as error:
        found = {"error": str(error), "exit_code": int(error.exit_code)}
    except EngineError as error:
        found = {"error": f"The inference failed: {error}.", "exit_code": int(ExitCode.INTERNAL)}
    except KeyboardInterrupt:
        return ExitCode.TRY_AGAIN
    with result:
        json.dump(found, result)
    return ExitCode.OK


def _measured(task: dict[str, Any]) -> dict[str, Any]:
    manifest = load_manifest(Path(task["manifest"]))
    config = _config_for(task, manifest)
    if task["model"]:
        manifest = manifest.model_copy(update={"model": Path(task["model"])})
    with ExitStack() as stack:
        before_mib = _status_mib("VmRSS")
        engine = stack.enter_context(_engine(task, config, manifest))
        engine.load()
        _show_picture(engine, manifest)
        engine.warm_up()
        for _ in range(task["warm_ups"]):
            engine.infer(_ignore)
        engine.reset_state()
        engine.infer(_ignore)
        answer = {axis.name: float(engine.outputs[axis.tensor][axis.index]) for axis in manifest.axes}
        throughput_hz, parts = _times(engine, task["tries"])
        peak_mib = _status_mib("VmHWM")
        on_gpu = isinstance(engine, TimedEngine)
        return {
            "device": (_gpu_name(task["engine"]) or "GPU") if on_gpu else processor(),
            "on_gpu": on_gpu,
            "how": engine.how or ("one thread" if not on_gpu else ""),
            "throughput_hz": throughput_hz,
            "parts": {name: Spread.of(times).as_dict() for name, times in parts.items()},
            "peak_mib": peak_mib,
            "policy_mib": max(0.0, peak_mib - before_mib),
            "gpu_mib": gpu_memory_mib(os.getpid()) if on_gpu else None,
            "answer": answer,
        }


def _config_for(task: dict[str, Any], manifest: Manifest) -> Config:
    """The configuration with this policy; told the first sentence it knows where it does not know the configured."""
    config = load_config(Path(task["config"]), task["given"])
    known = instructions_of(manifest)
    said = config.policy.instruction
    changes: dict[str, Any] = {"manifest": task["manifest"], "instruction": said if said in known else None}
    if known and changes["instruction"] is None:
        changes["instruction"] = known[0]
    if task["engine"] != "torch":
        changes["backend"] = task["engine"]
    tensorrt = config.tensorrt.model_copy(update={"precision": task["precision"].lower()})
    return config.model_copy(update={"policy": config.policy.model_copy(update=changes), "tensorrt": tensorrt})


def _engine(task: dict[str, Any], config: Config, manifest: Manifest) -> Engine:
    if task["engine"] != "torch":
        return engine_for(config, manifest, _forget)
    embedding = embedding_for(manifest, config.policy.instruction)
    return torch_engine(manifest, Path(task["script"]), embedding, half=task["precision"] == "FP16")


def _show_picture(engine: Engine, manifest: Manifest) -> None:
    """Noise, normalised as the manifest says: what a network's inputs look like, the same for every engine."""
    image = manifest.inputs.image
    engine.inputs[image.tensor][...] = _picture(image)


def _picture(image: ImageInput) -> np.ndarray[Any, Any]:
    values = np.random.default_rng(_SEED).integers(0, 256, image.shape).astype(np.float64)
    if image.dtype == "uint8":
        return values.astype(np.uint8)
    channels = (1, 3, 1, 1) if image.layout == "NCHW" else (1, 1, 1, 3)
    mean, std = np.reshape(image.mean, channels), np.reshape(image.std, channels)
    normal: np.ndarray[Any, Any] = ((values * image.scale - mean) / std).astype(image.dtype)
    return normal


def _times(engine: Engine, tries: int) -> tuple[float, dict[str, list[float]]]:
    """Inferences in a second, and the times of each part in milliseconds, from the host's input to its output."""
    began_ns = [0] * len(Stage)

    def mark(stage: Stage) -> None:
        began_ns[stage] = perf_counter_ns()

    parts: dict[str, list[float]] = {"latency": [], "compute": []}
    gc.collect()
    gc.disable()
    first_ns = perf_counter_ns()
    for _ in range(tries):
        start_ns = perf_counter_ns()
        engine.infer(mark)
        parts["latency"].append((perf_counter_ns() - start_ns) / MS)
        parts["compute"].append((began_ns[Stage.D2H] - began_ns[Stage.COMPUTE]) / MS)
    throughput_hz = tries * SECOND / (perf_counter_ns() - first_ns)
    if isinstance(engine, TimedEngine):
        times = [engine.infer_timed() for _ in range(tries)]
        parts["enqueue"] = [one.enqueue_ms for one in times]
        parts["h2d"] = [one.h2d_ms for one in times]
        parts["compute"] = [one.compute_ms for one in times]
        parts["d2h"] = [one.d2h_ms for one in times]
    gc.enable()
    return throughput_hz, parts


def _gpu_name(engine: str) -> str:
    if engine == "torch":
        return str(sys.modules["torch"].cuda.get_device_name())
    return gpu()


def _status_mib(key: str) -> float:
    """A line of /proc/self/status (proc(5)); getrusage's peak would be that of the process that started this one."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) / 1024
    return 0.0


def _ignore(_: Stage) -> None:
    """The stage of an inference that is not timed interests nobody."""


def _forget(_: str) -> None:
    """What loading has to say is for the daemon's log."""


if __name__ == "__main__":
    sys.exit(main())
