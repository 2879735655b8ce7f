"""The TensorRT engine on the double, which raises on whatever a device would punish; see tests/double."""

from __future__ import annotations

import contextlib
import importlib
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from mvla_daemon.core.messages import Stage
from mvla_daemon.engines.base import EngineError
from mvla_daemon.engines.engine_build import BuildSettings
from mvla_daemon.engines.engine_store import EngineStore
from mvla_daemon.engines.manifest import load_manifest
from mvla_daemon.engines.onnxruntime import OnnxRuntimeEngine
from mvla_daemon.engines.tensorrt import TensorRtEngine
from mvla_daemon.errors import DaemonError
from tests.gpu_double import double_in_place
from tests.onnx_models import (
    SIZE,
    ModelFile,
    axis_table,
    counting_model,
    image_table,
    picture_model,
    sha256,
    told_model,
    write_manifest,
)

EMBEDDING = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
INSTRUCTED = {"image": image_table(), "instruction": {"tensor": "text_embeddings", "table": "sentences.npz"}}
RECURRENT = [{"input": "h0", "output": "hN"}]
Open = Callable[..., TensorRtEngine]


class Desk:
    """Makes engines of one policy; `said` is what they told."""

    def __init__(self, folder: Path, stack: contextlib.ExitStack) -> None:
        self.folder = folder
        self.said: list[str] = []
        self._stack = stack

    def engine(
        self,
        model: ModelFile,
        embedding: NDArray[np.float32] | None = None,
        settings: dict[str, Any] | None = None,
        **changes: object,
    ) -> TensorRtEngine:
        model.save(self.folder / "hallway.onnx")
        hashes = {name: sha256(self.folder / name) for name in ("hallway.onnx", "sentences.npz")}
        manifest = load_manifest(write_manifest(self.folder, sha256=hashes, **changes))
        reference = OnnxRuntimeEngine(manifest, embedding)
        size = None if embedding is None else embedding.size
        built = BuildSettings(folder=self.folder / "engines", **(settings or {}))
        store = EngineStore(manifest, built, size, self.said.append)
        return self._stack.enter_context(TensorRtEngine(manifest, store, reference, embedding))


@pytest.fixture
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Desk]:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "sentences.npz").write_bytes(b"")  # the engine is given the embedding, it does not read the table
    with double_in_place(), contextlib.ExitStack() as stack:
        yield Desk(tmp_path, stack)


@pytest.fixture(params=["10.3", "10.16", "11.4"])
def version(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("MVLA_DOUBLE_TENSORRT", request.param)
    return str(request.param)


def ignore(_: Stage) -> None:
    pass


def actions(engine: TensorRtEngine, level: float) -> list[float]:
    engine.inputs["images"][...] = level
    engine.infer(ignore)
    return [float(value) for value in engine.outputs["actions"]]


def refusal(engine: TensorRtEngine) -> DaemonError:
    with pytest.raises(DaemonError) as caught:
        engine.load()
    assert "\n" not in str(caught.value)
    return caught.value


# --- what it computes ---


def test_it_computes_what_the_model_does_on_every_version(desk: Desk, version: str) -> None:
    engine = desk.engine(picture_model(batch="batch"))
    engine.load()
    engine.warm_up()
    assert actions(engine, 0.25) == pytest.approx([0.25] * 3, abs=1e-3)
    assert actions(engine, 0.5) == pytest.approx([0.5] * 3, abs=1e-3)
    assert engine.how.startswith("as one CUDA graph, off from ONNX Runtime most of all in ")
    assert f"tensorrt-{version}" not in engine.how


def test_half_precision_is_what_it_computes_in_unless_told_otherwise(desk: Desk) -> None:
    tiny = 1 + 2**-12  # lost between two numbers of FP16
    model = picture_model()
    for precision, kept in (("fp16", False), ("fp32", True)):
        engine = desk.engine(model, settings={"precision": precision})
        engine.load()
        assert (actions(engine, tiny)[0] != 1.0) is kept
        engine.close()


def test_an_instruction_is_given_once_and_stays(desk: Desk) -> None:
    engine = desk.engine(told_model(), EMBEDDING, inputs=INSTRUCTED)
    engine.load()
    engine.warm_up()
    for level in (0.5, 0.75):
        expected = [level + 10 * float(value) for value in EMBEDDING[:3]]
        assert actions(engine, level) == pytest.approx(expected, abs=0.02)


def test_recurrent_state_stays_on_the_device_and_is_zero_after_a_reset(desk: Desk) -> None:
    engine = desk.engine(counting_model(), state=RECURRENT)
    engine.load()
    engine.warm_up()
    assert set(engine.inputs) == {"images"}
    assert [actions(engine, 0.0)[0] for _ in range(3)] == [1, 2, 3]
    engine.reset_state()
    assert [actions(engine, 0.0)[0] for _ in range(2)] == [1, 2]


def test_pictures_of_bytes_in_the_other_layout_and_an_output_that_nobody_reads(desk: Desk) -> None:
    model = picture_model("uint8", "NHWC").node("Identity", "means", "ignored").output("ignored", "float32", [1, 3])
    engine = desk.engine(model, inputs={"image": image_table(dtype="uint8", layout="NHWC")})
    engine.load()
    assert engine.inputs["images"].shape == (1, *SIZE, 3)
    assert set(engine.outputs) == {"actions"}
    assert actions(engine, 7) == pytest.approx([7, 7, 7], abs=0.01)


def test_axes_may_be_read_from_several_outputs(desk: Desk) -> None:
    model = picture_model().node("Neg", "means", "turns").output("turns", "float32", [1, 3])
    engine = desk.engine(model, axis=[axis_table("linear_x", 0), axis_table("angular_z", 2, tensor="turns")])
    engine.load()
    assert actions(engine, 0.5)[0] == pytest.approx(0.5, abs=1e-3)
    assert float(engine.outputs["turns"][2]) == pytest.approx(-0.5, abs=1e-3)


# --- how it asks for it ---


@pytest.mark.parametrize("graphs", ["absent", "refused"])
def test_without_graphs_it_computes_the_same_and_says_why_there_is_none(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, graphs: str
) -> None:
    monkeypatch.setenv("MVLA_DOUBLE_GRAPHS", graphs)
    engine = desk.engine(counting_model(), state=RECURRENT)
    engine.load()
    engine.warm_up()
    assert [actions(engine, 0.0)[0] for _ in range(3)] == [1, 2, 3]
    assert engine.how.startswith("without a CUDA graph (")


def test_the_times_of_the_device_add_up(desk: Desk) -> None:
    engine = desk.engine(picture_model())
    engine.load()
    times = engine.infer_timed()
    assert (times.h2d_ms, times.compute_ms, times.d2h_ms) == (1.0, 1.0, 1.0)  # the double's clock
    assert 0 < times.enqueue_ms < 1000


def test_the_stages_are_told_in_their_order(desk: Desk) -> None:
    engine = desk.engine(picture_model())
    engine.load()
    told: list[Stage] = []
    engine.infer(told.append)
    assert told == [Stage.H2D, Stage.COMPUTE, Stage.D2H]


def test_ten_thousand_cycles_take_no_more_memory_on_the_device(desk: Desk) -> None:
    engine = desk.engine(counting_model(), state=RECURRENT)
    engine.load()
    gpu = importlib.import_module("fake_gpu")
    before = len(gpu.context().memories)
    for _ in range(10_000):
        engine.infer(ignore)
    assert len(gpu.context().memories) == before
    assert actions(engine, 0.0)[0] == pytest.approx(2048, rel=0.01) or actions(engine, 0.0)[0] > 2000


def test_nothing_is_left_on_the_device(desk: Desk) -> None:
    engine = desk.engine(picture_model())
    engine.load()
    gpu = importlib.import_module("fake_gpu")
    context = gpu.context()
    engine.close()
    engine.close()
    assert context.destroyed
    assert all(memory.freed for memory in context.memories.values())
    assert gpu.current.stack == []
    with pytest.raises(EngineError, match="not loaded"):
        engine.infer(ignore)


def test_another_thread_has_no_context_and_is_told_so(desk: Desk) -> None:
    engine = desk.engine(picture_model())
    engine.load()
    caught: list[BaseException] = []

    def infer() -> None:
        try:
            engine.infer(ignore)
        except Exception as error:  # noqa: BLE001 - whatever it is, it is looked at below
            caught.append(error)

    thread = threading.Thread(target=infer)
    thread.start()
    thread.join()
    assert "no currently active context" in str(caught[0])


# --- what goes wrong ---


@pytest.mark.parametrize(("fault", "graphs"), [("device", ""), ("execute", "absent"), ("device", "absent")])
def test_an_error_of_the_device_is_an_engine_error_with_the_librarys_own_words(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, fault: str, graphs: str
) -> None:
    monkeypatch.setenv("MVLA_DOUBLE_GRAPHS", graphs)
    engine = desk.engine(picture_model())
    engine.load()
    monkeypatch.setenv("MVLA_DOUBLE_FAULTS", f"{fault}=illegal memory access")
    with pytest.raises(EngineError, match=r"TensorRT: .*illegal memory access"):
        engine.infer(ignore)


def test_an_output_that_the_network_does_not_write_is_an_error(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    engine = desk.engine(picture_model())
    engine.load()
    assert actions(engine, 0.5) == [0.5] * 3
    monkeypatch.setenv("MVLA_DOUBLE_FAULTS", "unwritten=actions")
    with pytest.raises(EngineError, match="did not write its output 'actions'"):
        engine.infer(ignore)


@pytest.mark.parametrize(
    ("variable", "value", "said"),
    [
        ("MVLA_DOUBLE_DRIVER", "absent", "pycuda cannot be used here"),
        ("MVLA_DOUBLE_DRIVER", "broken", "no CUDA-capable device"),
        ("MVLA_DOUBLE_VERSION", "8.6.1", "TensorRT 8.6.1 is too old, 10.3 is the oldest that will do"),
        ("MVLA_DOUBLE_MEMORY", "8", "out of memory"),
        ("MVLA_DOUBLE_FAULTS", "no_context", "out of memory: requested 1073741824 bytes"),
    ],
)
def test_a_machine_that_cannot_do_it_says_so(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, said: str
) -> None:
    monkeypatch.setenv(variable, f"{value}=1" if variable.endswith("FAULTS") else value)
    error = refusal(desk.engine(picture_model()))
    assert error.exit_code == 69
    assert said in str(error)


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        ("unsupported=GridSample", "No importer registered for op: GridSample"),
        ("build=no tactic", "[optimizer.cpp::computeCosts] no tactic"),
    ],
)
def test_a_model_that_cannot_be_built_is_refused_in_tensorrts_words(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, fault: str, said: str
) -> None:
    monkeypatch.setenv("MVLA_DOUBLE_FAULTS", fault)
    error = refusal(desk.engine(picture_model()))
    assert error.exit_code == 78
    assert said in str(error)


@pytest.mark.parametrize("core", [None, 1])
def test_the_builder_is_told_memory_and_where_to_compute(
    desk: Desk, monkeypatch: pytest.MonkeyPatch, core: int | None
) -> None:
    build = importlib.import_module("tensorrt").Builder
    told: dict[str, Any] = {}
    real = build.build_serialized_network

    def listen(self: Any, network: Any, config: Any) -> Any:
        told.update(vars(config))
        return real(self, network, config)

    monkeypatch.setattr(build, "build_serialized_network", listen)
    desk.engine(picture_model(), settings={"workspace_mib": 256, "dla_core": core}).load()
    assert {int(pool): size for pool, size in told["_pools"].items()} == {0: 256 << 20}
    assert told.get("DLA_core") == core
    assert {flag.name for flag in told["_flags"]} == ({"GPU_FALLBACK"} if core is not None else set())
    assert (told.get("default_device_type") is not None) is (core is not None)


def test_a_manifest_that_does_not_fit_is_refused_before_anything_is_built(desk: Desk) -> None:
    engine = desk.engine(picture_model(), axis=[axis_table("linear_x", 9)])
    with pytest.raises(DaemonError, match="index is 9") as caught:
        engine.load()
    assert caught.value.exit_code == 78
    assert not list((desk.folder / "engines").glob("*.engine"))


# --- the comparison ---


def test_an_engine_that_answers_otherwise_never_arms_and_the_worst_axis_is_named(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MVLA_DOUBLE_FAULTS", "perturb=50")
    axes = [axis_table("linear_x", 0), axis_table("linear_y", 1, scale=8.0), axis_table("angular_z", 2)]
    error = refusal(desk.engine(picture_model(), axis=axes))
    assert error.exit_code == 78
    assert "most of all linear_" in str(error) or "most of all angular_z" in str(error)
    assert 'tensorrt.precision to "fp32"' in str(error)


def test_an_engine_that_answers_nan_never_arms(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MVLA_DOUBLE_FAULTS", "perturb=nan")
    assert "by inf m/s" in str(refusal(desk.engine(picture_model())))


def test_the_manifest_says_how_far_off_it_may_be(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MVLA_DOUBLE_FAULTS", "perturb=50")
    desk.engine(picture_model(), parity_tolerance=100.0).load()


def test_what_agreed_once_is_not_compared_again_unless_something_is_another(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    compared: list[int] = []
    load = OnnxRuntimeEngine.load
    monkeypatch.setattr(OnnxRuntimeEngine, "load", lambda self: (compared.append(1), load(self))[1])
    first = desk.engine(picture_model())
    first.load()
    found = first.how
    first.close()
    again = desk.engine(picture_model())
    again.load()
    assert (len(compared), again.how) == (1, found)
    again.close()
    desk.engine(picture_model(), axis=[axis_table("linear_x", 1)]).load()
    assert len(compared) == 2


# --- the cache, through the engine ---


def test_a_second_start_uses_the_engine_of_the_first(desk: Desk) -> None:
    for _ in range(2):
        engine = desk.engine(picture_model())
        engine.load()
        engine.close()
    began, *_, built, used = desk.said
    assert "none was built yet" in began
    assert "kept as" in built
    assert "engine from the cache" in used
    assert "was built for just this" in used


def test_an_engine_of_another_version_is_built_anew_and_the_log_says_why(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.engine(picture_model()).load()
    monkeypatch.setenv("MVLA_DOUBLE_GPU", "Orin NX")
    desk.engine(picture_model()).load()
    assert any("gpu was Orin 8.7, is Orin NX 8.7" in sentence for sentence in desk.said)


def test_an_engine_that_tensorrt_does_not_take_is_built_anew(desk: Desk) -> None:
    engine = desk.engine(picture_model())
    engine.load()
    engine.close()
    (path,) = (desk.folder / "engines").glob("*.engine")
    sidecar = path.with_suffix(".json")
    broken = b"no engine at all"
    old = sha256(path)
    path.write_bytes(broken)
    sidecar.write_text(sidecar.read_text().replace(old, sha256(path)))
    engine = desk.engine(picture_model())
    engine.load()
    (why,) = (sentence for sentence in desk.said if "TensorRT does not take" in sentence)
    assert "magicTagRead" in why
    assert path.read_bytes() != broken
