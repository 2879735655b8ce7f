"""The engine's CUDA side on a real device: stream, page-locked copies, graph, state, errors, and nothing that grows."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from mvla_daemon.core.messages import Stage
from mvla_daemon.engines.cuda import Cuda, CudaError
from mvla_daemon.engines.tensorrt import TensorRtEngine
from tests.hardware.kernel_policy import KernelPolicy

ROOT = Path(__file__).parents[2]
MIB = 1 << 20


def ignore(_: Stage) -> None:
    pass


def answers(engine: TensorRtEngine, level: float, times: int = 1) -> list[float]:
    engine.inputs["images"][...] = level
    found = []
    for _ in range(times):
        engine.infer(ignore)
        found.append(float(engine.outputs["actions"][0]))
    return found


def test_it_agrees_with_onnxruntime_and_is_one_graph(engine: TensorRtEngine) -> None:
    assert engine.how.startswith("as one CUDA graph, off from ONNX Runtime most of all in ")


def test_a_replayed_graph_computes_what_its_newest_inputs_say_and_keeps_its_state(engine: TensorRtEngine) -> None:
    assert answers(engine, 0.25, 3) == pytest.approx([1.25, 2.25, 3.25])
    assert answers(engine, 0.5, 2) == pytest.approx([4.5, 5.5])
    engine.reset_state()
    assert answers(engine, 0.0, 2) == [1, 2]


def test_step_by_step_it_is_the_same_and_the_device_has_a_time_for_each_step(engine: TensorRtEngine) -> None:
    engine.inputs["images"][...] = 0.5
    times = engine.infer_timed()
    assert float(engine.outputs["actions"][0]) == pytest.approx(1.5)
    assert all(0 <= ms < 1000 for ms in (times.enqueue_ms, times.h2d_ms, times.compute_ms, times.d2h_ms))
    assert times.compute_ms > 0


def test_page_locked_copies_go_there_and_back() -> None:
    cuda = Cuda()
    try:
        there, back = cuda.host((1000,), "float32"), cuda.host((1000,), "float32")
        there[...] = np.arange(1000)
        memory = cuda.allocate(4000)
        cuda.upload(memory, there)
        cuda.download(back, memory)
        cuda.wait()
        assert (back == there).all()
        cuda.clear(memory, 4000)
        cuda.download(back, memory)
        cuda.wait()
        assert not back.any()
        del memory
    finally:
        cuda.close()


def test_what_cannot_be_allocated_is_an_error_and_the_device_goes_on(engine: TensorRtEngine) -> None:
    with pytest.raises(CudaError, match="memory"):
        engine._cuda.allocate(1 << 50)
    assert answers(engine, 0.5) == pytest.approx([1.5])


def test_other_threads_run_while_it_waits(policy: KernelPolicy) -> None:
    with policy.engine(launches=20_000) as engine:
        engine.load()
        ticks: list[int] = []
        ended = threading.Event()

        def tick() -> None:
            while not ended.is_set():
                ticks.append(time.monotonic_ns())

        thread = threading.Thread(target=tick)
        thread.start()
        entered: dict[Stage, int] = {}
        engine.infer(lambda stage: entered.update({stage: time.monotonic_ns()}))
        ended.set()
        thread.join()
    middle = (entered[Stage.COMPUTE] + entered[Stage.D2H]) // 2
    assert any(entered[Stage.COMPUTE] < at < middle for at in ticks)


STRAY = """
import sys
from pathlib import Path
from tests.hardware.kernel_policy import KernelPolicy
from mvla_daemon.errors import DaemonError
with KernelPolicy(Path(sys.argv[1])) as policy, policy.engine(function=b"stray") as engine:
    try:
        engine.load()
    except DaemonError as error:
        print(error.exit_code, error)
"""


def test_a_kernel_that_strays_is_an_error_in_one_sentence(tmp_path: Path) -> None:
    ran = subprocess.run(
        [sys.executable, "-c", STRAY, str(tmp_path)], cwd=ROOT, capture_output=True, text=True, check=False, timeout=120
    )
    assert "Traceback" not in ran.stderr
    assert "illegal" in ran.stdout
    assert "cannot be made ready on" in ran.stdout


def test_ten_thousand_cycles_grow_nothing(engine: TensorRtEngine) -> None:
    def held() -> tuple[int, int]:
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return engine._cuda.used_bytes(), pages * os.sysconf("SC_PAGE_SIZE")

    answers(engine, 0.0, 1000)
    device, host = held()
    answers(engine, 0.0, 10_000)
    device_after, host_after = held()
    assert device_after - device < 2 * MIB
    assert host_after - host < 4 * MIB


def test_a_device_can_be_had_again_after_it_was_given_back(policy: KernelPolicy) -> None:
    for _ in range(3):
        with policy.engine() as engine:
            engine.load()
            assert answers(engine, 0.5)[0] > 0
