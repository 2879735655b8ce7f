"""What the engine costs beside the network, on this machine's device: python -m tests.hardware.measure [--out FOLDER].

A small kernel launched many times stands for a network of so many layers. Plain enqueue and the replayed graph are
timed in turn, so that a machine whose speed drifts favours neither. Prints a table and writes measure.json.
"""

from __future__ import annotations

import argparse
import json
import platform
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from mvla_daemon.core.messages import MS, Stage
from mvla_daemon.engines.tensorrt import TensorRtEngine
from mvla_daemon.errors import DaemonError
from mvla_daemon.ops.statistics import percentile
from tests.hardware.kernel_policy import KernelPolicy

CYCLES = 2000
LAYERS = 60
"""About as many kernels as a small convolutional policy comes to."""


def ignore(_: Stage) -> None:
    pass


def cpu_ms(work: Callable[[], None]) -> float:
    """The processor's time that this thread spends on it."""
    began_ns = time.thread_time_ns()
    work()
    return (time.thread_time_ns() - began_ns) / MS


def asked_ms(engine: TensorRtEngine, ask: Callable[[], None]) -> float:
    """The processor's time that asking for one inference takes; waiting for it is not counted."""
    took = cpu_ms(ask)
    engine._cuda.wait()
    return took


def measure(engine: TensorRtEngine) -> dict[str, list[float]]:
    """Times in ms, one of each kind a cycle, from the shortest to the longest."""
    assert engine._graph is not None
    found: dict[str, list[float]] = {name: [] for name in ("plain", "graph", "infer", "device", "beside")}
    for _ in range(CYCLES):
        found["plain"].append(asked_ms(engine, engine._enqueue))
        found["graph"].append(asked_ms(engine, engine._graph.launch))
        times = engine.infer_timed()
        device_ms = times.h2d_ms + times.compute_ms + times.d2h_ms
        began_ns = time.monotonic_ns()
        engine.infer(ignore)
        infer_ms = (time.monotonic_ns() - began_ns) / MS
        found["infer"].append(infer_ms)
        found["device"].append(device_ms)
        found["beside"].append(infer_ms - device_ms)
    return {name: sorted(times) for name, times in found.items()}


ROWS = {
    "plain": "processor's time to ask for an inference, step by step",
    "graph": "processor's time to ask for it, as one graph",
    "infer": "one inference, as the daemon waits for it",
    "device": "of that, work and copies on the device",
    "beside": "of that, beside the device's work and copies",
}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("build/gpu"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder, KernelPolicy(Path(folder)) as policy:
        try:
            with policy.engine(LAYERS) as engine:
                engine.load()
                engine.warm_up()
                about: dict[str, Any] = {
                    "device": engine._cuda.gpu,
                    "cuda": engine._cuda.driver_version,
                    "machine": f"{platform.machine()}, Linux {platform.release()}, Python {platform.python_version()}",
                    "kernels": LAYERS,
                    "cycles": CYCLES,
                }
                found = measure(engine)
        except DaemonError as error:
            print(f"measure: {error}", file=sys.stderr)
            return int(error.exit_code)
    print("; ".join(f"{name} {value}" for name, value in about.items()))
    print(f"{'ms':58}{'p50':>9}{'p90':>9}{'p99':>9}")
    for name, what in ROWS.items():
        print(f"{what:58}" + "".join(f"{percentile(found[name], share):9.3f}" for share in (50, 90, 99)))
    ratio = percentile(found["graph"], 50) / percentile(found["plain"], 50)
    print(f"the graph takes {ratio:.2f} of the processor's time that asking step by step takes (at most 0.5 is owed)")
    beside_ms = percentile(found["beside"], 50)
    print(f"beside the device's work an inference takes {beside_ms:.3f} ms (at most 0.3 is owed)")
    report = {**about, "ratio": ratio, "ms": found}
    (options.out / "measure.json").write_text(json.dumps(report), encoding="utf-8")
    return 0 if ratio <= 0.5 and beside_ms <= 0.3 else 1


if __name__ == "__main__":
    sys.exit(main())
