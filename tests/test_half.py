"""Casting to FP16: what comes out is typed throughout, answers nearly the same, and is there whole or not at all."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper

from mvla_daemon.engines import half_graph
from mvla_daemon.engines.deviation import Deviation, deviations
from mvla_daemon.engines.half import cast_to_half
from mvla_daemon.engines.manifest import load_manifest
from mvla_daemon.errors import DaemonError
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

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from check_half import check, clip_frames, images_for, main, simulator_frames

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mvla_daemon.engines.manifest import Manifest

ROAD = Path(__file__).parents[2] / "shared" / "data" / "road.mp4"
CHANCE = np.random.default_rng(5)
IMAGE = CHANCE.uniform(0, 255, (1, 3, *SIZE)).astype(np.float32)
HIDDEN = 4


def lstm_model() -> ModelFile:
    """`images`, `h0` and `c0` to `actions`, which are the new state as well."""
    model = (
        ModelFile()
        .input("images", "float32", [1, 3, *SIZE])
        .input("h0", "float32", [1, 1, HIDDEN])
        .input("c0", "float32", [1, 1, HIDDEN])
        .constant("small", 1 / 255)
        .constant("steps", [1, 1, 3], "int64")
        .constant("rows", [1, -1], "int64")
        .constant("W", CHANCE.normal(size=(1, 4 * HIDDEN, 3)))
        .constant("R", CHANCE.normal(size=(1, 4 * HIDDEN, HIDDEN)))
        .constant("B", CHANCE.normal(size=(1, 8 * HIDDEN)))
        .node("ReduceMean", "images", "mean", axes=[2, 3], keepdims=0)
        .node("Mul", "mean small", "scaled")
        .node("Reshape", "scaled steps", "x")
    )
    lstm = helper.make_node("LSTM", ["x", "W", "R", "B", "", "h0", "c0"], ["Y", "hN", "cN"], hidden_size=HIDDEN)
    model.nodes.append(lstm)
    model.node("Reshape", "hN rows", "actions").output("actions", "float32", [1, HIDDEN])
    return model.output("hN", "float32", [1, 1, HIDDEN]).output("cN", "float32", [1, 1, HIDDEN])


def resizing_model() -> ModelFile:
    """A uint8 picture, cast and made twice as large, which the converter leaves in float32."""
    model = ModelFile().input("images", "uint8", [1, 3, *SIZE]).constant("scales", [1, 1, 2, 2])
    model.node("Cast", "images", "floats", to=TensorProto.FLOAT)
    model.nodes.append(helper.make_node("Resize", ["floats", "", "scales"], ["large"], mode="nearest"))
    return model.node("ReduceMean", "large", "actions", axes=[2, 3], keepdims=0).output("actions", "float32", [1, 3])


def clamping_model() -> ModelFile:
    """Max and Min, which stay in float32, share their limits with a product that does not."""
    return (
        ModelFile()
        .input("images", "float32", [1, 3, *SIZE])
        .constant("low", 20.0)
        .constant("high", 200.0)
        .node("Max", "images low", "from_low")
        .node("Min", "from_low high", "clamped")
        .node("Div", "clamped high", "scaled")
        .node("ReduceMean", "scaled", "actions", axes=[2, 3], keepdims=0)
        .output("actions", "float32", [1, 3])
    )


def constant_model(number: float) -> ModelFile:
    """The larger one of a picture's means and a number."""
    return (
        ModelFile()
        .input("images", "float32", [1, 3, *SIZE])
        .constant("number", number)
        .node("ReduceMean", "images", "means", axes=[2, 3], keepdims=0)
        .node("Max", "means number", "actions")
        .output("actions", "float32", [1, 3])
    )


STATES = {name: np.full((1, 1, HIDDEN), 0.5, np.float32) for name in ("h0", "c0")}
MODELS: dict[str, tuple[ModelFile, dict[str, NDArray[Any]]]] = {
    "a cast of float32 to itself": (picture_model(), {"images": IMAGE}),
    "uint8": (picture_model("uint8"), {"images": IMAGE.astype(np.uint8)}),
    "uint8, colors last": (
        picture_model("uint8", "NHWC"),
        {"images": np.ascontiguousarray(IMAGE.astype(np.uint8).transpose(0, 2, 3, 1))},
    ),
    "float16 already": (picture_model("float16"), {"images": IMAGE.astype(np.float16)}),
    "an instruction": (told_model(), {"images": IMAGE, "text_embeddings": np.full((1, 4), 0.1, np.float32)}),
    "an output that is read inside": (counting_model(), {"images": IMAGE, "h0": np.ones((1, 1, 3), np.float32)}),
    "an LSTM": (lstm_model(), {"images": IMAGE, **STATES}),
    "uint8, resized in float32": (resizing_model(), {"images": IMAGE.astype(np.uint8)}),
    "shared limits": (clamping_model(), {"images": IMAGE}),
    "a mask of attention": (constant_model(float(np.finfo(np.float32).min)), {"images": IMAGE}),
}


def session(path: Path) -> ort.InferenceSession:
    return ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])


def refused(source: Path, target: Path) -> tuple[int, str]:
    with pytest.raises(DaemonError) as caught:
        cast_to_half(source, target)
    assert not list(target.parent.glob(f"*{target.name}*"))
    assert not list(target.parent.glob(".half*"))
    return caught.value.exit_code, str(caught.value)


@pytest.mark.parametrize("name", MODELS)
def test_a_cast_model_has_the_same_inputs_and_outputs_and_nearly_the_same_answers(tmp_path: Path, name: str) -> None:
    model, given = MODELS[name]
    source, target = model.save(tmp_path / "model.onnx"), tmp_path / "half.onnx"
    cast_to_half(source, target)
    exact, rounded = session(source), session(target)
    for kind in ("get_inputs", "get_outputs"):
        sides = [[(node.name, node.type, node.shape) for node in getattr(side, kind)()] for side in (exact, rounded)]
        assert sides[0] == sides[1]
    for one, other in zip(exact.run(None, given), rounded.run(None, given), strict=True):
        np.testing.assert_allclose(one, other, rtol=2e-3, atol=2e-3)


def test_weights_are_half_as_large_and_all_of_them_fp16(tmp_path: Path) -> None:
    cast_to_half(lstm_model().save(tmp_path / "model.onnx"), tmp_path / "half.onnx")
    weights = {tensor.name: tensor for tensor in onnx.load(tmp_path / "half.onnx").graph.initializer}
    assert {weights[name].data_type for name in ("W", "R", "B", "small")} == {TensorProto.FLOAT16}
    assert len(weights["W"].raw_data) == 2 * 4 * HIDDEN * 3


def test_weights_listed_as_inputs_as_old_exporters_did_are_weights(tmp_path: Path) -> None:
    model = told_model().input("weights", "float32", [4, 3])
    cast_to_half(model.save(tmp_path / "model.onnx"), tmp_path / "half.onnx")
    assert [node.name for node in session(tmp_path / "half.onnx").get_inputs()] == ["images", "text_embeddings"]


def test_weights_beside_the_model_are_read_and_large_ones_written_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    beside: dict[str, Any] = {"save_as_external_data": True, "location": "model.bin", "size_threshold": 0}
    source, target = told_model().save(tmp_path / "model.onnx", **beside), tmp_path / "half.onnx"
    cast_to_half(source, target)
    assert not (tmp_path / "half.onnx.data").exists()
    monkeypatch.setattr(half_graph, "_MOST_IN_ONE_FILE", 0)
    monkeypatch.setattr(half_graph, "_LEAST_OUTSIDE", 0)
    cast_to_half(source, target)
    assert (tmp_path / "half.onnx.data").stat().st_size >= 2 * 12
    assert (tmp_path / "half.onnx.data").stat().st_mode == target.stat().st_mode
    given = {"images": IMAGE, "text_embeddings": np.ones((1, 4), np.float32)}
    np.testing.assert_allclose(session(target).run(None, given)[0], session(source).run(None, given)[0], rtol=2e-3)


def test_a_weight_that_fp16_has_no_number_for_is_named(tmp_path: Path) -> None:
    source = constant_model(70_000.0).save(tmp_path / "model.onnx")
    exit_code, said = refused(source, tmp_path / "half.onnx")
    assert exit_code == 78
    assert "'number' holds 70000, and FP16 ends at 65504" in said


def test_what_is_no_model_or_not_there_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 40)
    (tmp_path / "empty.onnx").write_bytes(b"")
    target = tmp_path / "out" / "half.onnx"
    assert refused(tmp_path / "none.onnx", target)[0] == 66
    assert refused(tmp_path / "bad.onnx", target)[0] == 78
    assert refused(tmp_path / "empty.onnx", target)[0] == 78
    told_model().save(tmp_path / "m.onnx", save_as_external_data=True, location="m.bin", size_threshold=0)
    (tmp_path / "m.bin").unlink()
    exit_code, said = refused(tmp_path / "m.onnx", target)
    assert exit_code in {66, 78}
    assert "m.bin" in said


def test_a_model_whose_types_do_not_fit_is_refused_and_the_old_file_stays(tmp_path: Path) -> None:
    model = picture_model()
    source = model.save(tmp_path / "model.onnx")
    broken = onnx.load(source)
    broken.graph.node[0].op_type = "NoSuchLayer"
    onnx.save(broken, source)
    (tmp_path / "half.onnx").write_text("the old one")
    with pytest.raises(DaemonError, match="cannot be cast to FP16") as caught:
        cast_to_half(source, tmp_path / "half.onnx")
    assert caught.value.exit_code == 78
    assert (tmp_path / "half.onnx").read_text() == "the old one"


def test_without_the_converter_it_is_said_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = picture_model().save(tmp_path / "model.onnx")
    monkeypatch.delitem(sys.modules, "mvla_daemon.engines.half_graph")
    monkeypatch.delattr("mvla_daemon.engines.half_graph")
    monkeypatch.setitem(sys.modules, "onnxconverter_common", None)
    exit_code, said = refused(source, tmp_path / "half.onnx")
    assert exit_code == 69
    assert "pip install onnx onnxconverter-common" in said


# --- the same policy in FP16


def small_policy(folder: Path) -> Manifest:
    """Convolutions, a recurrent layer and full ones, their weights as PyTorch draws them: RANDOM WEIGHTS."""
    chance = np.random.default_rng(1)
    model = ModelFile().input("images", "float32", [1, 3, 64, 64])

    def drawn(name: str, *shape: int, bias: int) -> None:
        limit = 1 / np.sqrt(np.prod(shape[1:]) if len(shape) != 3 else shape[2])
        model.constant(name, chance.uniform(-limit, limit, shape))
        model.constant(f"{name}_bias", chance.uniform(-limit, limit, [1, bias] if len(shape) == 3 else bias))

    drawn("k0", 16, 3, 5, 5, bias=16)
    drawn("k1", 32, 16, 3, 3, bias=32)
    drawn("rnn", 1, 48, 32, bias=96)
    model.constant("again", chance.uniform(-0.14, 0.14, (1, 48, 48))).constant("steps", [1, 1, 32], "int64")
    model.constant("rows", [1, 48], "int64")
    drawn("head", 32, 48, bias=32)
    drawn("last", 2, 32, bias=2)
    model.node("Conv", "images k0 k0_bias", "c0", strides=[2, 2]).node("Relu", "c0", "r0")
    model.node("Conv", "r0 k1 k1_bias", "c1", strides=[2, 2]).node("Relu", "c1", "r1")
    model.node("GlobalAveragePool", "r1", "pooled").node("Reshape", "pooled steps", "x")
    model.nodes.append(helper.make_node("RNN", ["x", "rnn", "again", "rnn_bias"], ["", "hN"], hidden_size=48))
    model.node("Reshape", "hN rows", "hidden").node("Gemm", "hidden head head_bias", "h", transB=1)
    model.node("Relu", "h", "h2").node("Gemm", "h2 last last_bias", "actions", transB=1)
    model.output("actions", "float32", [1, 2]).save(folder / "hallway.onnx")
    image = image_table(size=[64, 64], scale=1 / 255, mean=[0.485, 0.456, 0.406], std=[0.229, 0.224, 0.225])
    axes = [axis_table(name, at) for at, name in enumerate(("linear_x", "linear_y"))]
    hashes = {"hallway.onnx": sha256(folder / "hallway.onnx")}
    return load_manifest(write_manifest(folder, sha256=hashes, inputs={"image": image}, axis=axes))


@pytest.mark.skipif(not ROAD.exists(), reason="there is no ../shared/data/road.mp4")
def test_fp16_answers_like_fp32_on_a_real_drive_and_in_the_simulator(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    manifest = small_policy(tmp_path)
    images = images_for(manifest, clip_frames(ROAD, 52)) + images_for(manifest, simulator_frames(52))
    factor, found, wrong = check(manifest, images)
    assert wrong == []
    assert factor > 1
    assert all(one.spread >= 0.1 and 0 < one.share <= 0.05 for one in found)


def test_a_policy_in_fp16_is_nothing_to_compare_fp16_with(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    small_policy(tmp_path)
    model, path = tmp_path / "hallway.onnx", tmp_path / "hallway.toml"
    whole = sha256(model)
    cast_to_half(model, model)
    path.write_text(path.read_text().replace(whole, sha256(model)))
    assert main([str(path)]) == 64
    assert "is in FP16 already" in capsys.readouterr().err


def rows(spread: float = 1.0) -> NDArray[np.float64]:
    return np.random.default_rng(2).normal(scale=spread, size=(120, 2))


def test_an_error_is_judged_by_how_much_the_answers_vary() -> None:
    exact = rows()
    near, far = exact.copy(), exact.copy()
    near[7, 1] += 0.04
    far[7, 1] += 0.06
    assert [one.problem for one in deviations(exact, near)] == ["", ""]
    assert "they differ by" in deviations(exact, far)[1].problem
    assert deviations(exact, far)[0].problem == ""


@pytest.mark.parametrize("spoilt", [rows()[::-1], np.broadcast_to(rows()[0], (120, 2)), np.zeros((120, 2))])
def test_shuffled_frames_and_constant_answers_are_no_same_policy(spoilt: NDArray[np.float64]) -> None:
    assert all(one.problem for one in deviations(rows(), spoilt))


def test_answers_that_hardly_vary_or_are_not_finite_prove_nothing() -> None:
    still = rows(0.01)
    assert all("0.1 is needed" in one.problem for one in deviations(still, still))
    constant = np.ones((120, 1))
    assert deviations(constant, constant)[0].share == float("inf")
    assert Deviation(float("nan"), 1.0).problem == "an answer is not finite"


def test_too_few_frames_or_answers_of_other_frames_are_refused() -> None:
    with pytest.raises(ValueError, match="too few"):
        deviations(rows()[:99], rows()[:99])
    with pytest.raises(ValueError, match="twice the same"):
        deviations(rows(), rows()[1:])
