import os
from pathlib import Path

import numpy as np
import pytest

from mvla_daemon.engines.instruction import embedding_for
from mvla_daemon.engines.manifest import load_manifest
from mvla_daemon.errors import DaemonError
from tests.onnx_models import axis_table, image_table, picture_model, sha256, told_model, write_manifest

INSTRUCTED = {"image": image_table(), "instruction": {"tensor": "text_embeddings", "table": "sentences.npz"}}


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "mvla-daemon" / "sha256.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "policies"
    folder.mkdir()
    picture_model().save(folder / "hallway.onnx")
    return folder


def refused(path: Path, exit_code: int) -> str:
    with pytest.raises(DaemonError) as caught:
        load_manifest(path)
    assert caught.value.exit_code == exit_code
    return str(caught.value)


def test_a_manifest_is_read_with_its_defaults_and_absolute_paths(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_manifest(folder)
    monkeypatch.chdir(folder.parent)
    manifest = load_manifest(Path("policies/hallway.toml"))
    assert manifest.model == folder / "hallway.onnx"
    assert (manifest.name, manifest.weights, manifest.states) == ("hallway", "random", ())
    assert manifest.inputs.image.size == (6, 8)
    assert manifest.inputs.image.std == (1.0, 1.0, 1.0)
    assert [axis.name for axis in manifest.axes] == ["linear_x", "linear_y", "angular_z"]


def test_what_a_checkpoint_said_of_its_training_is_kept(folder: Path) -> None:
    path = write_manifest(folder, weights="trained", training={"epoch": 4, "val_mae": 0.222})
    training = load_manifest(path).training
    assert training is not None
    assert (training.epoch, training.val_mae) == (4, 0.222)
    assert load_manifest(write_manifest(folder)).training is None


def test_a_missing_manifest_or_model_is_no_input(folder: Path) -> None:
    path = write_manifest(folder)
    (folder / "hallway.onnx").unlink()
    assert str(folder / "hallway.onnx") in refused(path, 66)
    path.unlink()
    assert "check policy.manifest" in refused(path, 66)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"modle": "a"}, "modle: is no key of a manifest"),
        ({"weights": None}, "weights: is missing"),
        ({"weights": "good"}, "weights: Input should be 'trained' or 'random' (it is 'good')"),
        ({"inputs": {}}, "inputs.image: is missing"),
        ({"inputs": {"image": image_table(), "sound": {}}}, "inputs.sound: is no key"),
        ({"inputs": {"image": image_table(size=[224])}}, "inputs.image.size.1"),
        ({"inputs": {"image": image_table(size=[0, 8])}}, "inputs.image.size.0"),
        ({"inputs": {"image": image_table(std=[1, 0, 1])}}, "inputs.image.std.1"),
        ({"inputs": {"image": image_table(scale=True)}}, "inputs.image.scale"),
        ({"inputs": {"image": image_table(dtype="uint8", scale=0.5)}}, "inputs.image: a uint8 image is not normalised"),
        ({"axis": []}, "axis: "),
        ({"axis": [axis_table("linear_z", 0)]}, "axis.0.name"),
        ({"axis": [axis_table("linear_x", -1)]}, "axis.0.index"),
        ({"axis": [axis_table("linear_x", 0, unit="rad/s")]}, 'axis.0: the unit of linear_x is "m/s", not "rad/s"'),
        ({"axis": [axis_table("angular_z", 0, unit="m/s")]}, 'the unit of angular_z is "rad/s"'),
        ({"axis": [axis_table("linear_x", 0), axis_table("linear_x", 1)]}, "'linear_x' has more than one [[axis]]"),
        ({"state": [{"input": "images", "output": "h"}]}, "the model's input 'images' is named by more than one"),
        ({"state": [{"input": "a", "output": "h"}, {"input": "b", "output": "h"}]}, "'h' is kept by more than one"),
        ({"weights": "trained", "training": {"epoch": -1}}, "training.epoch"),
        ({"weights": "trained", "training": {"epoch": 4.5}}, "training.epoch"),
        ({"weights": "trained", "training": {"val_mae": "small"}}, "training.val_mae"),
        ({"weights": "trained", "training": {"loss": 0.1}}, "training.loss: is no key"),
        ({"training": {"epoch": 4}}, 'weights are "random", so there is no [training]'),
        ({"sha256": {"hallway.onnx": "short"}}, "sha256.hallway.onnx"),
        ({"sha256": {}}, "hallway.onnx has no sha256 in the manifest"),
    ],
)
def test_what_is_wrong_inside_is_named(folder: Path, changes: dict[str, object], sentence: str) -> None:
    assert sentence in refused(write_manifest(folder, **changes), 78)


def test_nan_and_infinity_are_no_numbers_here(folder: Path) -> None:
    path = write_manifest(folder)
    path.write_text(
        path.read_text().replace('"scale" = 1.0', '"scale" = nan').replace('"offset" = 0.0', '"offset" = inf')
    )
    said = refused(path, 78)
    assert "axis.0.scale" in said
    assert "axis.2.offset" in said


def test_all_problems_are_told_at_once(folder: Path) -> None:
    image = image_table(color="CMYK", layout="HWC")
    said = refused(write_manifest(folder, weights="?", inputs={"image": image}), 78)
    assert "3 problems" in said
    assert all(key in said for key in ("weights", "inputs.image.color", "inputs.image.layout"))


@pytest.mark.parametrize("content", [b"name = ", b'name = "\xff"'])
def test_what_is_no_toml_is_refused(folder: Path, content: bytes) -> None:
    (folder / "hallway.toml").write_bytes(content)
    assert "is no TOML" in refused(folder / "hallway.toml", 78)


def test_a_wrong_sha256_names_both_and_says_what_to_do(folder: Path) -> None:
    path = write_manifest(folder, sha256={"hallway.onnx": "a" * 64})
    said = refused(path, 78)
    assert f"hallway.onnx has {sha256(folder / 'hallway.onnx')}, the manifest says {'a' * 64}" in said
    assert "fetch the file again" in said


def test_every_listed_file_is_checked_and_missing_ones_are_told_with_the_wrong(folder: Path) -> None:
    (folder / "weights.bin").write_bytes(b"weights")
    listed = {"hallway.onnx": "a" * 64, "weights.bin": "b" * 64, "more.bin": "c" * 64}
    said = refused(write_manifest(folder, sha256=listed), 78)
    assert "3 problems" in said
    assert all(name in said for name in listed)


def test_a_folder_is_no_model(folder: Path) -> None:
    path = write_manifest(folder)
    (folder / "hallway.onnx").unlink()
    (folder / "hallway.onnx").mkdir()
    assert "hallway.onnx cannot be read" in refused(path, 78)


def test_external_weights_must_have_a_sha256(folder: Path) -> None:
    told_model().save(folder / "hallway.onnx", save_as_external_data=True, location="hallway.bin", size_threshold=0)
    said = refused(write_manifest(folder), 78)
    assert "hallway.bin has no sha256 in the manifest" in said
    hashes = {name: sha256(folder / name) for name in ("hallway.onnx", "hallway.bin")}
    path = write_manifest(folder, sha256=hashes)
    assert load_manifest(path).sha256[folder / "hallway.bin"] == hashes["hallway.bin"]
    (folder / "hallway.bin").unlink()
    assert "hallway.bin" in refused(path, 66)


def test_external_weights_with_a_long_name_are_found(folder: Path) -> None:
    name = "w" * 200 + ".bin"
    told_model().save(folder / "hallway.onnx", save_as_external_data=True, location=name, size_threshold=0)
    assert f"{name} has no sha256" in refused(write_manifest(folder), 78)


def test_a_changed_file_is_hashed_again(folder: Path, cache: Path) -> None:
    path = write_manifest(folder)
    load_manifest(path)
    assert sha256(folder / "hallway.onnx") in cache.read_text()
    model = bytearray((folder / "hallway.onnx").read_bytes())
    model[-1] ^= 1
    (folder / "other").write_bytes(model)
    (folder / "other").replace(folder / "hallway.onnx")
    assert "wrong sha256" in refused(path, 78)


def test_an_unchanged_file_is_not_read_again(folder: Path, cache: Path) -> None:
    said = sha256(folder / "hallway.onnx")
    path = write_manifest(folder)
    load_manifest(path)
    cache.write_text(cache.read_text().replace(said, "d" * 64))
    assert f"hallway.onnx has {'d' * 64}" in refused(path, 78)


@pytest.mark.parametrize("content", ["{", "[]", '{"hallway.onnx": 3}', "\udcff"])
def test_a_damaged_cache_is_no_error(folder: Path, cache: Path, content: str) -> None:
    cache.parent.mkdir(parents=True)
    cache.write_text(content, errors="surrogateescape")
    assert load_manifest(write_manifest(folder)).name == "hallway"


@pytest.mark.parametrize("place", ["/dev/null", "relative/path"])
def test_an_unwritable_cache_is_no_error(folder: Path, monkeypatch: pytest.MonkeyPatch, place: str) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", place)
    monkeypatch.setenv("HOME", os.devnull)
    assert load_manifest(write_manifest(folder)).name == "hallway"


@pytest.fixture
def told(folder: Path) -> Path:
    told_model().save(folder / "hallway.onnx")
    embeddings = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.savez(folder / "sentences.npz", texts=np.array(["go to the cup", "zur Tür"]), embeddings=embeddings)
    return folder


def with_table(folder: Path) -> Path:
    hashes = {name: sha256(folder / name) for name in ("hallway.onnx", "sentences.npz")}
    return write_manifest(folder, inputs=INSTRUCTED, sha256=hashes)


def test_an_instruction_gives_its_embedding(told: Path) -> None:
    embedding = embedding_for(load_manifest(with_table(told)), "zur Tür")
    assert embedding is not None
    assert embedding.tolist() == [4.0, 5.0, 6.0, 7.0]
    assert embedding.dtype == np.float32


def test_the_table_must_have_a_sha256(told: Path) -> None:
    assert "sentences.npz has no sha256" in refused(write_manifest(told, inputs=INSTRUCTED), 78)


@pytest.mark.parametrize("instruction", ["fly", "", None])
def test_an_unlisted_or_absent_instruction_is_refused_with_the_list(told: Path, instruction: str | None) -> None:
    with pytest.raises(DaemonError, match=r"(?s)hallway.*instruction.*go to the cup.*zur Tür") as caught:
        embedding_for(load_manifest(with_table(told)), instruction)
    assert caught.value.exit_code == 78


def test_an_instruction_for_a_policy_that_takes_none_is_refused(folder: Path) -> None:
    manifest = load_manifest(write_manifest(folder))
    assert embedding_for(manifest, None) is None
    with pytest.raises(DaemonError, match="takes no instruction") as caught:
        embedding_for(manifest, "go to the cup")
    assert caught.value.exit_code == 78


@pytest.mark.parametrize(
    ("arrays", "sentence"),
    [
        ({"texts": np.array(["a"])}, "embeddings"),
        ({"texts": np.array(["a"]), "embeddings": np.zeros((1, 4))}, "float64"),
        ({"texts": np.array("a"), "embeddings": np.zeros((1, 4), np.float32)}, "texts must be"),
        ({"texts": np.array([1]), "embeddings": np.zeros((1, 4), np.float32)}, "texts must be"),
        ({"texts": np.array(["a"]), "embeddings": np.zeros((2, 4), np.float32)}, "do not go with"),
        ({"texts": np.array([], "U1"), "embeddings": np.zeros((0, 4), np.float32)}, "do not go with"),
        ({"texts": np.array(["a", "a"]), "embeddings": np.zeros((2, 4), np.float32)}, "the same"),
        ({"texts": np.array(["a"]), "embeddings": np.full((1, 4), np.nan, np.float32)}, "not finite"),
        ({"texts": np.array(["a", None]), "embeddings": np.zeros((2, 4), np.float32)}, "is no table"),
    ],
)
def test_a_table_that_is_none_is_refused(told: Path, arrays: dict[str, np.ndarray], sentence: str) -> None:
    np.savez(told / "sentences.npz", **arrays)
    with pytest.raises(DaemonError, match=sentence) as caught:
        embedding_for(load_manifest(with_table(told)), "a")
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_table_is_refused(told: Path, share: float) -> None:
    whole = (told / "sentences.npz").read_bytes()
    (told / "sentences.npz").write_bytes(whole[: int(len(whole) * share)])
    with pytest.raises(DaemonError, match=r"sentences\.npz is no table of instructions"):
        embedding_for(load_manifest(with_table(told)), "zur Tür")


def test_a_single_array_is_no_table(told: Path) -> None:
    with (told / "sentences.npz").open("wb") as file:
        np.save(file, np.zeros((2, 4), np.float32))
    with pytest.raises(DaemonError, match=r"sentences\.npz is no table of instructions"):
        embedding_for(load_manifest(with_table(told)), "zur Tür")
