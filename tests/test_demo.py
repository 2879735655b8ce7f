"""The demo's clip and network: the same at every run, moving, and loadable."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import onnxruntime as ort
import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SCRIPT = Path(__file__).parent.parent / "scripts" / "make_demo.py"
FILES = ["corridor.avi", "made-by.sha256", "random.onnx", "random.toml"]


def command(folder: Path, *more: str) -> list[str]:
    return [sys.executable, str(SCRIPT), "--out", str(folder), "--seconds", "0.4", *more]


@pytest.fixture(scope="module")
def demos(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folders = tmp_path_factory.mktemp("one") / "demo", tmp_path_factory.mktemp("two") / "demo"
    runs = [subprocess.Popen(command(folder), stdout=subprocess.DEVNULL) for folder in folders]
    assert [run.wait(60) for run in runs] == [0, 0]
    return folders


def pictures(folder: Path) -> list[np.ndarray]:
    clip = cv2.VideoCapture(str(folder / "corridor.avi"))
    assert clip.get(cv2.CAP_PROP_FPS) == 50
    seen = []
    while (read := clip.read())[0]:
        seen.append(read[1])
    clip.release()
    return seen


def test_two_runs_give_the_same_network_and_manifest(demos: tuple[Path, Path]) -> None:
    for name in ("random.onnx", "random.toml"):
        assert (demos[0] / name).read_bytes() == (demos[1] / name).read_bytes()


def test_two_runs_give_the_same_pictures(demos: tuple[Path, Path]) -> None:
    one, two = (pictures(folder) for folder in demos)
    assert len(one) == 20
    np.testing.assert_array_equal(one, two)


def test_every_picture_differs_from_the_one_before(demos: tuple[Path, Path]) -> None:
    seen = np.asarray(pictures(demos[0]), np.int16)
    assert seen.shape == (20, 480, 640, 3)
    changed = np.abs(np.diff(seen, axis=0)) > 3
    assert changed.mean(axis=(1, 2, 3)).min() > 0.05


def test_the_manifest_says_random_and_has_the_files_sum(demos: tuple[Path, Path]) -> None:
    manifest = tomllib.loads((demos[0] / "random.toml").read_text())
    assert manifest["weights"] == "random"
    assert manifest["sha256"] == {"random.onnx": hashlib.sha256((demos[0] / "random.onnx").read_bytes()).hexdigest()}
    assert [(axis["name"], axis["index"], axis["scale"], axis["unit"]) for axis in manifest["axis"]] == [
        ("linear_x", 0, 0.5, "m/s"),
        ("linear_y", 1, 0.2, "m/s"),
        ("angular_z", 2, 0.8, "rad/s"),
    ]


def test_the_network_loads_and_moves_every_axis(demos: tuple[Path, Path]) -> None:
    session = ort.InferenceSession(demos[0] / "random.onnx", providers=["CPUExecutionProvider"])
    (images,), (actions,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.type, images.shape) == ("images", "tensor(float)", [1, 3, 224, 224])
    assert (actions.name, actions.type, actions.shape) == ("actions", "tensor(float)", [1, 3])
    rows = []
    for picture in pictures(demos[0]):
        rgb = cv2.resize(picture, (224, 224))[..., ::-1].astype(np.float32) / 255
        image = (rgb - np.float32([0.485, 0.456, 0.406])) / np.float32([0.229, 0.224, 0.225])
        rows.append(session.run(None, {"images": image.transpose(2, 0, 1)[None]})[0][0])
    assert np.isfinite(rows).all()
    # Scaled on these very pictures; what is left is the clip's compression.
    np.testing.assert_allclose(np.std(rows, axis=0), 0.3, atol=0.06)
    np.testing.assert_allclose(np.mean(rows, axis=0), [0.3, 0, 0], atol=0.06)


def test_a_second_run_keeps_what_is_there_and_mends_what_was_changed(demos: tuple[Path, Path]) -> None:
    folder = demos[1]
    before = [(folder / name).stat().st_ino for name in FILES]
    again = subprocess.run(command(folder), capture_output=True, check=True, text=True)
    assert (again.stdout, again.stderr) == ("", "")
    assert [(folder / name).stat().st_ino for name in FILES] == before
    (folder / "random.toml").write_text("weights = 'trained'")
    subprocess.run(command(folder), capture_output=True, check=True)
    assert (folder / "random.toml").read_bytes() == (demos[0] / "random.toml").read_bytes()
    assert sorted(path.name for path in folder.parent.iterdir()) == ["demo"]


def test_a_folder_with_something_else_in_it_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "thesis.txt").write_text("mine")
    refused = subprocess.run(command(tmp_path, "--force"), capture_output=True, check=False, text=True)
    assert refused.returncode == 1
    assert "give --out another folder" in refused.stderr
    assert (tmp_path / "thesis.txt").read_text() == "mine"
