"""Drafts of manifests from graphs: what the file tells, and that the daemon refuses until the rest is told."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from onnx import TensorProto

from mvla_daemon.engines.manifest import load_manifest
from mvla_daemon.engines.onnxruntime import OnnxRuntimeEngine
from mvla_daemon.errors import DaemonError
from tests.onnx_models import SIZE, ModelFile, counting_model, mean_model, picture_model, told_model

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

from import_onnx import main

ANSWERS = {
    'weights = "?"': 'weights = "random"',
    'color = "?"': 'color = "RGB"',
    'resize = "?"': 'resize = "squash"',
    'scale = "?" #': "scale = 1.0 #",
    'mean = "?"': "mean = [0, 0, 0]",
    'std = "?"': "std = [1, 1, 1]",
}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def drafted(folder: Path, model: ModelFile) -> Path:
    model.save(folder / "hallway.onnx")
    assert main([str(folder / "hallway.onnx")]) == 0
    return folder / "hallway.toml"


def answered(path: Path, **more: str) -> Path:
    """The draft with each question answered, the axes in their order."""
    text = path.read_text()
    for question, answer in {**ANSWERS, **more}.items():
        text = text.replace(question, answer)
    for name in ("linear_x", "linear_y", "angular_z"):
        unit = "rad/s" if name == "angular_z" else "m/s"
        text = text.replace('name = "?"', f'name = "{name}"', 1).replace('unit = "?"', f'unit = "{unit}"', 1)
    path.write_text(text.replace('scale = "?"', "scale = 2.0"))
    return path


def refused(path: Path) -> str:
    with pytest.raises(DaemonError) as caught:
        load_manifest(path)
    return str(caught.value)


@pytest.mark.parametrize("layout", ["NCHW", "NHWC"])
@pytest.mark.parametrize("dtype", ["float32", "float16", "uint8"])
def test_a_draft_holds_what_the_file_tells_and_runs_once_the_rest_is_answered(
    tmp_path: Path, layout: str, dtype: str
) -> None:
    path = drafted(tmp_path, picture_model(dtype, layout, "batch"))
    said = refused(path)
    asked = ["weights", "inputs.image.color", "inputs.image.resize", "axis.0.name", "axis.2.scale", "axis.1.unit"]
    normalised = ["inputs.image.scale", "inputs.image.mean", "inputs.image.std"]
    assert all(key in said for key in asked)
    assert all((key in said) == (dtype != "uint8") for key in normalised)
    manifest = load_manifest(answered(path))
    assert (manifest.inputs.image.layout, manifest.inputs.image.dtype) == (layout, dtype)
    assert manifest.inputs.image.size == SIZE
    assert [(axis.tensor, axis.index) for axis in manifest.axes] == [("actions", 0), ("actions", 1), ("actions", 2)]
    with OnnxRuntimeEngine(manifest) as engine:
        engine.load()
        engine.warm_up()


def test_each_open_question_alone_is_enough_to_be_refused(tmp_path: Path) -> None:
    path = answered(drafted(tmp_path, picture_model()))
    whole = path.read_text()
    for question, answer in {**ANSWERS, 'name = "?"': 'name = "linear_x"', 'scale = "?"': "scale = 2.0"}.items():
        path.write_text(whole.replace(answer, question, 1))
        assert question.partition(" ")[0] in refused(path)
    path.write_text(whole)
    assert load_manifest(path).name == "hallway"


def test_a_recurrent_input_is_given_the_output_that_fits_it(tmp_path: Path) -> None:
    manifest = load_manifest(answered(drafted(tmp_path, counting_model())))
    assert [(state.input, state.output) for state in manifest.states] == [("h0", "hN")]
    assert {axis.tensor for axis in manifest.axes} == {"actions"}
    with OnnxRuntimeEngine(manifest) as engine:
        engine.load()


def test_two_states_of_one_shape_are_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = counting_model().input("c0", "float32", [1, "batch", 3]).node("Identity", "c0", "cN")
    path = drafted(tmp_path, model.output("cN", "float32", [1, "batch", 3]))
    said = capsys.readouterr().out
    assert "Which output follows the state 'h0', one of hN, cN?" in said
    assert "Which output follows the state 'c0', one of hN, cN?" in said
    assert path.read_text().count('output = "?"') == 2


def test_several_outputs_are_told_apart_or_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    model = picture_model().node("NonZero", "images", "debug").output("debug", "int64", [4, "n"])
    text = drafted(tmp_path, model).read_text()
    assert text.count('tensor = "actions"') == 3
    (tmp_path / "hallway.toml").unlink()
    twice = picture_model().node("Identity", "means", "values").output("values", "float32", [1, 3])
    assert 'tensor = "?"' in drafted(tmp_path, twice).read_text()
    said = capsys.readouterr().out
    assert (
        "Which of the outputs holds the actions? There are 'actions' float32 [1, 3], 'values' float32 [1, 3]." in said
    )


def test_a_second_input_is_an_instruction_with_a_table_to_be_named(tmp_path: Path) -> None:
    path = drafted(tmp_path, told_model())
    text = path.read_text()
    assert '[inputs.instruction]\ntensor = "text_embeddings"' in text
    assert 'table = "?"' in text
    assert "inputs.instruction.table: which file is meant is still an open question" in refused(answered(path))


def test_a_draft_is_refused_for_its_questions_and_for_nothing_else(tmp_path: Path) -> None:
    text = refused(drafted(tmp_path, told_model()))
    assert len(text.splitlines()) == 1 + (tmp_path / "hallway.toml").read_text().count('= "?"')
    assert "axis.0.name: " in text


def test_external_weights_are_listed_with_their_sums(tmp_path: Path) -> None:
    told_model().save(tmp_path / "hallway.onnx", save_as_external_data=True, location="hallway.bin", size_threshold=0)
    assert main([str(tmp_path / "hallway.onnx")]) == 0
    assert '"hallway.bin" = "' in (tmp_path / "hallway.toml").read_text()
    (tmp_path / "hallway.bin").unlink()
    assert main([str(tmp_path / "hallway.onnx"), "--force"]) == 66


def test_what_cannot_be_a_picture_or_has_an_open_size_is_asked_for(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model = (
        ModelFile()
        .input("images", "float32", ["batch", 3, "height", "width"])
        .input("steps", "int64", [1])
        .node("ReduceMean", "images", "means", axes=[2, 3], keepdims=0)
        .node("Cast", "steps", "floats", to=TensorProto.FLOAT)
        .node("Add", "means floats", "actions")
        .output("actions", "float32", ["batch", 3])
    )
    drafted(tmp_path, model)
    said = capsys.readouterr().out
    assert "'images' float32 [batch, 3, height, width] leaves them open" in said
    assert "What feeds 'steps' int64 [1]?" in said
    (tmp_path / "hallway.toml").unlink()
    two = (
        mean_model()
        .input("depths", "float32", [1, 3, *SIZE])
        .node("ReduceMean", "depths", "d", axes=[2, 3], keepdims=0)
    )
    drafted(tmp_path, two.node("Add", "means d", "actions").output("actions", "float32", [1, 3]))
    assert "Which input is the picture" in capsys.readouterr().out


def test_what_is_no_model_is_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([str(tmp_path / "none.onnx")]) == 66
    (tmp_path / "bad.onnx").write_bytes(b"\xff" * 40)
    assert main([str(tmp_path / "bad.onnx")]) == 78
    picture_model().save(tmp_path / "hallway.onnx")
    (tmp_path / "hallway.toml").write_text("mine")
    assert main([str(tmp_path / "hallway.onnx")]) == 64
    said = capsys.readouterr()
    assert said.err.count("\n") == 3
    assert said.out == ""
    assert (tmp_path / "hallway.toml").read_text() == "mine"
