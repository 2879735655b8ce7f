import contextlib
import os
import threading
import time
import tracemalloc
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from mvla_daemon.core.action import ActionMapping
from mvla_daemon.core.messages import Stage, Velocity
from mvla_daemon.engines.base import Engine, EngineError, OutputGuard
from mvla_daemon.engines.manifest import Axis, load_manifest
from mvla_daemon.engines.onnxruntime import OnnxRuntimeEngine
from mvla_daemon.errors import DaemonError
from tests.onnx_models import (
    SIZE,
    ModelFile,
    axis_table,
    counting_model,
    image_table,
    mean_model,
    picture_model,
    sha256,
    told_model,
    write_manifest,
)

INSTRUCTED = {"image": image_table(), "instruction": {"tensor": "text_embeddings", "table": "sentences.npz"}}
EMBEDDING = np.array([0.1, 0.2, 0.3, 0.4], np.float32)
RECURRENT = [{"input": "h0", "output": "hN"}]
Open = Callable[..., OnnxRuntimeEngine]


@pytest.fixture
def engine_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Open]:
    """Builds an engine, not yet loaded, for a model and changes to its manifest."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    (tmp_path / "sentences.npz").write_bytes(b"")  # the engine is given the embedding, it does not read the table
    with contextlib.ExitStack() as stack:

        def build(
            model: ModelFile, embedding: NDArray[np.float32] | None = None, **changes: object
        ) -> OnnxRuntimeEngine:
            model.save(tmp_path / "hallway.onnx")
            hashes = {name: sha256(tmp_path / name) for name in ("hallway.onnx", "sentences.npz")}
            manifest = load_manifest(write_manifest(tmp_path, sha256=hashes, **changes))
            return stack.enter_context(OnnxRuntimeEngine(manifest, embedding))

        yield build


def ignore(_: Stage) -> None:
    pass


def actions(engine: Engine, image: object) -> list[float]:
    """What the policy answers to one picture."""
    engine.inputs["images"][...] = image
    engine.infer(ignore)
    return [round(float(value), 3) for value in engine.outputs["actions"]]


def refusal(engine: Engine) -> str:
    with pytest.raises(DaemonError) as caught:
        engine.load()
    assert caught.value.exit_code == 78
    return str(caught.value)


@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("batch", [1, "batch"])
def test_every_kind_of_picture_is_inferred(engine_for: Open, dtype: str, layout: str, batch: int | str) -> None:
    inputs = {"image": image_table(dtype=dtype, layout=layout)}
    engine = engine_for(picture_model(dtype, layout, batch), inputs=inputs)
    engine.load()
    engine.warm_up()
    channels = (1, 3, 1, 1) if layout == "NCHW" else (1, 1, 1, 3)
    assert engine.inputs["images"].shape == ((1, 3, *SIZE) if layout == "NCHW" else (1, *SIZE, 3))
    for first in (1, 4, 2):
        values = np.arange(first, first + 3).reshape(channels)
        assert actions(engine, values) == [first, first + 1, first + 2]


def test_an_instruction_is_told_to_a_policy_with_two_inputs(engine_for: Open) -> None:
    engine = engine_for(told_model(), EMBEDDING, inputs=INSTRUCTED)
    engine.load()
    assert actions(engine, 1.0) == [2.0, 3.0, 4.0]


def test_a_recurrent_state_is_kept_and_zeroed_at_reset(engine_for: Open) -> None:
    engine = engine_for(counting_model(), state=RECURRENT)
    engine.load()
    engine.warm_up()
    assert [actions(engine, 0.5)[0] for _ in range(3)] == [1.5, 2.5, 3.5]
    engine.reset_state()
    assert [actions(engine, 0.5)[0] for _ in range(2)] == [1.5, 2.5]


def test_an_output_that_nothing_reads_may_be_of_any_size(engine_for: Open) -> None:
    model = picture_model().node("NonZero", "images", "debug").output("debug", "int64", [4, "n"])
    engine = engine_for(model)
    engine.load()
    assert actions(engine, 2.0) == [2.0, 2.0, 2.0]
    assert list(engine.outputs) == ["actions"]


def test_axes_may_read_several_outputs(engine_for: Open) -> None:
    axes = [axis_table("linear_x", 2), axis_table("angular_z", 1, tensor="turn")]
    model = picture_model().constant("two", [2.0]).node("Mul", "means two", "turn").output("turn", "float32", [1, 3])
    engine = engine_for(model, axis=axes)
    engine.load()
    assert actions(engine, 2.0) == [2.0, 2.0, 2.0]
    assert engine.outputs["turn"].tolist() == [4.0, 4.0, 4.0]


def test_the_outputs_are_what_the_action_mapping_reads(engine_for: Open) -> None:
    axes = [axis_table("linear_x", 0, scale=2.0), axis_table("angular_z", 2, offset=0.5)]
    engine = engine_for(picture_model(), axis=axes)
    engine.load()
    actions(engine, np.array([0.25, 9.0, -1.0]).reshape(1, 3, 1, 1))
    mapping = ActionMapping([Axis.model_validate(axis) for axis in axes])
    assert mapping(engine.outputs) == Velocity(0.5, 0.0, -0.5)


def test_nan_and_infinity_of_the_model_pass_through(engine_for: Open) -> None:
    model = mean_model().constant("by", [0.0, 0.0, 1.0]).node("Div", "means by", "actions")
    engine = engine_for(model.output("actions", "float32", [1, 3]))
    engine.load()
    engine.warm_up()
    channels = np.array([0.0, -1.0, 5.0]).reshape(1, 3, 1, 1)
    np.testing.assert_array_equal(actions(engine, channels), [np.nan, -np.inf, 5.0])


def test_nan_in_a_state_is_gone_after_a_reset(engine_for: Open) -> None:
    engine = engine_for(counting_model(), state=RECURRENT)
    engine.load()
    engine.inputs["h0"].fill(np.nan)
    assert np.isnan(actions(engine, 0.5)).all()
    assert np.isnan(actions(engine, 0.5)).all()
    engine.reset_state()
    assert actions(engine, 0.5) == [1.5, 1.5, 1.5]


def test_the_stages_are_told_in_order(engine_for: Open) -> None:
    engine = engine_for(picture_model())
    engine.load()
    stages: list[Stage] = []
    engine.infer(stages.append)
    assert stages == [Stage.H2D, Stage.COMPUTE, Stage.D2H]


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
def test_an_output_that_was_not_written_is_an_error(dtype: type) -> None:
    outputs = {"actions": np.zeros(3, dtype), "count": np.zeros(1, np.int64)}
    guard = OutputGuard(outputs)
    guard.mark()
    assert np.isnan(outputs["actions"]).all()
    outputs["actions"][:2] = 1.0
    with pytest.raises(EngineError, match="'actions'"):
        guard.check()
    outputs["actions"][2] = np.nan
    guard.check()
    outputs["actions"][:] = [np.inf, -np.nan, 0.0]
    guard.check()


@pytest.mark.parametrize(
    ("model", "changes", "sentences"),
    [
        (picture_model(), {"inputs": {"image": image_table(tensor="image")}}, ["'image'", "'images' float32"]),
        (picture_model(), {"inputs": {"image": image_table(dtype="float16")}}, ["float16", "'images' float32"]),
        (picture_model(), {"inputs": {"image": image_table(layout="NHWC")}}, ["NHWC", "[1, 6, 8, 3]", "[1, 3, 6, 8]"]),
        (picture_model(), {"inputs": {"image": image_table(size=[8, 6])}}, ["size 8 x 6", "[1, 3, 6, 8]"]),
        (picture_model(batch=4), {}, ["[1, 3, 6, 8]", "[4, 3, 6, 8]"]),
        (told_model(), {}, ["an input 'text_embeddings' float32 [batch, 4] that no table", "[inputs"]),
        (picture_model(), {"axis": [axis_table("linear_x", 3)]}, ["index is 3", "[1, 3] has 3 values"]),
        (picture_model(), {"axis": [axis_table("linear_x", 0, tensor="act")]}, ["'act'", "'actions' float32 [1, 3]"]),
        (picture_model(), {"state": RECURRENT}, ["state.0.input is 'h0'", "state.0.output is 'hN'"]),
        (
            counting_model(),
            {"state": [{"input": "h0", "output": "actions"}]},
            ["output 'actions' float32 [batch, 3] does not fit its input 'h0' float32 [1, batch, 3]"],
        ),
        (counting_model("layers"), {"state": RECURRENT}, ["leaves the size of 'h0' float32 [layers, batch, 3] open"]),
        (
            mean_model()
            .input("h0", "string", [1])
            .node("Identity", "h0", "hN")
            .output("hN", "string", [1])
            .node("Identity", "means", "actions")
            .output("actions", "float32", [1, 3]),
            {"state": RECURRENT},
            ["state.0: a state is one of float16", "'h0' tensor(string) [1]"],
        ),
        (
            mean_model().node("NonZero", "means", "actions").output("actions", "int64", [2, "n"]),
            {},
            ["leaves the size of 'actions' int64 [2, n] open"],
        ),
        (
            mean_model().node("Shape", "means", "actions").output("actions", "int64", [2]),
            {"axis": [axis_table("linear_x", 0)]},
            ["reads floats", "'actions' int64 [2]"],
        ),
    ],
)
def test_what_does_not_fit_names_both_sides(
    engine_for: Open, model: ModelFile, changes: dict[str, object], sentences: list[str]
) -> None:
    said = refusal(engine_for(model, **changes))
    assert "the manifest does not fit hallway.onnx" in said
    assert all(sentence in said for sentence in sentences), said


def test_everything_that_does_not_fit_is_told_at_once(engine_for: Open) -> None:
    changes = {"inputs": {"image": image_table(dtype="uint8")}, "axis": [axis_table("linear_x", 7)]}
    said = refusal(engine_for(told_model(), **changes))
    assert "3 problems" in said


def test_an_embedding_of_another_length_is_refused(engine_for: Open) -> None:
    said = refusal(engine_for(told_model(), np.zeros(5, np.float32), inputs=INSTRUCTED))
    assert "embeddings of 5 values in sentences.npz" in said
    assert "'text_embeddings' float32 [batch, 4]" in said


def test_an_instruction_that_does_not_go_with_the_policy_is_refused(engine_for: Open) -> None:
    assert "needs an instruction" in refusal(engine_for(told_model(), inputs=INSTRUCTED))
    assert "takes no instruction" in refusal(engine_for(picture_model(), EMBEDDING))


@pytest.mark.parametrize("share", [0.0, 0.5, 0.99])
def test_a_truncated_model_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, share: float) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    path = picture_model().save(tmp_path / "hallway.onnx")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(len(whole) * share)])
    said = refusal(OnnxRuntimeEngine(load_manifest(write_manifest(tmp_path))))
    assert f"cannot load {path}" in said
    assert "\n" not in said


def test_a_model_that_fails_at_its_first_run_is_refused(engine_for: Open) -> None:
    model = mean_model().constant("ten", [10], "int64").node("ArgMax", "means", "row", axis=1, keepdims=0)
    model.node("Add", "row ten", "outside").node("Gather", "means outside", "actions", axis=1)
    engine = engine_for(model.output("actions", "float32", [1, 1]), axis=[axis_table("linear_x", 0)])
    engine.load()
    with pytest.raises(DaemonError, match=r"does not run: ONNX Runtime: .* hallway\.onnx anew") as caught:
        engine.warm_up()
    assert caught.value.exit_code == 78


def test_an_output_larger_than_the_file_lets_expect_is_refused(engine_for: Open) -> None:
    model = mean_model().constant("twice", [2, 1], "int64").node("Tile", "means twice", "unnamed")
    model.node("NonZero", "unnamed", "actions_all").node("Cast", "actions_all", "counts", to=1)
    model.node("Transpose", "counts", "actions", perm=[1, 0])
    engine = engine_for(model.output("actions", "float32", ["some", 2]), axis=[axis_table("linear_x", 0)])
    engine.load()
    engine.inputs["images"].fill(1.0)
    with pytest.raises(DaemonError, match="does not run"):
        engine.warm_up()


def test_a_provider_that_is_not_here_is_not_replaced_by_another(engine_for: Open) -> None:
    manifest = engine_for(picture_model())._manifest
    with pytest.raises(DaemonError, match="no VulkanExecutionProvider here") as caught:
        OnnxRuntimeEngine(manifest, providers=("VulkanExecutionProvider", "CPUExecutionProvider")).load()
    assert caught.value.exit_code == 69


def test_nothing_is_inferred_before_load_or_after_close(engine_for: Open) -> None:
    engine = engine_for(picture_model())
    with pytest.raises(EngineError, match="not loaded"):
        engine.infer(ignore)
    with engine:
        engine.load()
        assert actions(engine, 3.0) == [3.0, 3.0, 3.0]
    engine.close()
    with pytest.raises(EngineError, match="not loaded"):
        engine.infer(ignore)


@pytest.mark.alone
def test_two_thousand_inferences_leave_no_memory_behind(engine_for: Open) -> None:
    engine = engine_for(counting_model(), state=RECURRENT)
    engine.load()
    engine.warm_up()

    def run_2000() -> tuple[int, int]:
        """What Python holds and what the process holds afterwards, in bytes."""
        for _ in range(2000):
            engine.infer(ignore)
        pages = int(Path("/proc/self/statm").read_text().split()[1])
        return tracemalloc.get_traced_memory()[0], pages * os.sysconf("SC_PAGE_SIZE")

    tracemalloc.start()
    try:
        traced_before, resident_before = run_2000()
        traced, resident = run_2000()
    finally:
        tracemalloc.stop()
    assert traced - traced_before < 2000
    assert resident - resident_before < 4 << 20


def test_other_threads_run_while_the_model_computes(engine_for: Open) -> None:
    side, products = 512, 8
    model = (
        mean_model().constant("big", np.full((side, side), 1 / side)).node("ReduceMean", "means", "level", keepdims=0)
    )
    model.node("Add", "big level", "product0")
    for at in range(products):
        model.node("MatMul", f"product{at} big", f"product{at + 1}")
    model.node("ReduceMean", f"product{products}", "actions", keepdims=0).output("actions", "float32", [])
    engine = engine_for(model, axis=[axis_table("linear_x", 0)])
    engine.load()
    entered: dict[Stage, int] = {}
    ticks: list[int] = []
    thread = threading.Thread(target=engine.infer, args=(lambda stage: entered.update({stage: time.monotonic_ns()}),))
    thread.start()
    while thread.is_alive():
        ticks.append(time.monotonic_ns())
    thread.join()
    middle = (entered[Stage.COMPUTE] + entered[Stage.D2H]) // 2
    assert any(entered[Stage.COMPUTE] < tick < middle for tick in ticks)
    assert engine.outputs["actions"].shape == (1,)
