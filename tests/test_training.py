"""Training the bundled policy: the drives it learns from, what it sees and writes, and that it can be repeated."""

from __future__ import annotations

import json
import math
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from mvla_daemon.core.image import Preprocessor
from mvla_daemon.core.messages import Velocity
from mvla_daemon.engines.instruction import embedding_for
from mvla_daemon.engines.manifest import load_manifest
from mvla_daemon.engines.onnxruntime import OnnxRuntimeEngine
from mvla_daemon.sim.expert import expert
from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.room import Pose, Side
from mvla_daemon.sim.world import Outcome

SCRIPTS = Path(__file__).parent.parent / "scripts"
BUNDLED = Path(__file__).parent.parent / "mvla_daemon" / "bundled" / "cup"
REPORT = Path(__file__).parent.parent / "docs" / "training.json"
sys.path.insert(0, str(SCRIPTS))

from policy_data import Eye, check, drive  # noqa: E402 - scripts are no package
from policy_frames import Task, collect, halved  # noqa: E402
from policy_manifest import IMAGE  # noqa: E402

needs_torch = pytest.mark.needs("torch", "matplotlib", "tqdm")
POLICY = ["cup.onnx", "cup.toml", "instructions.npz"]


def command(folder: Path, *more: str) -> list[str]:
    script = str(SCRIPTS / "train_policy.py")
    return [sys.executable, script, "--scale", "small", "--out", str(folder), "--report", str(folder / "docs"), *more]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folders = tmp_path_factory.mktemp("one"), tmp_path_factory.mktemp("two")
    runs = [subprocess.Popen(command(folder), stdout=subprocess.DEVNULL) for folder in folders]
    assert [run.wait(120) for run in runs] == [0, 0]
    return folders


@needs_torch
def test_the_same_seed_gives_the_same_files(trained: tuple[Path, Path]) -> None:
    for name in POLICY:
        assert (trained[0] / name).read_bytes() == (trained[1] / name).read_bytes()
    reports = [json.loads((folder / "docs" / "training.json").read_text()) for folder in trained]
    for report in reports:
        assert report.pop("seconds") > 0
        assert report.pop("cpu_seconds") > 0
    assert reports[0] == reports[1]
    assert sorted(path.name for path in trained[0].iterdir()) == [*POLICY[:2], "docs", POLICY[2]]


@needs_torch
def test_another_seed_gives_other_weights(trained: tuple[Path, Path], tmp_path: Path) -> None:
    subprocess.run(command(tmp_path, "--seed", "2"), check=True, capture_output=True)
    assert (tmp_path / "cup.onnx").read_bytes() != (trained[0] / "cup.onnx").read_bytes()


@needs_torch
def test_the_report_says_what_the_errors_are_compared_with(trained: tuple[Path, Path]) -> None:
    report = json.loads((trained[0] / "docs" / "training.json").read_text())
    assert report["seed"] == 1
    assert report["held_out"]["frames"] > 10
    errors = report["held_out"]["mean_absolute_error"]
    assert list(errors) == ["linear_x, m/s", "linear_y, m/s", "angular_z, rad/s", "all, network's units"]
    assert all(error["constant"] > 0 and error["policy"] > 0 for error in errors.values())
    assert sum(report["checking_drives"].values()) == 2
    assert (trained[0] / "docs" / "training.png").read_bytes().startswith(b"\x89PNG")


@needs_torch
def test_the_engine_of_the_daemon_runs_what_was_trained(trained: tuple[Path, Path]) -> None:
    manifest = load_manifest(trained[0] / "cup.toml")
    assert manifest.weights == "trained"
    assert [(axis.name, axis.scale, axis.unit) for axis in manifest.axes] == [
        ("linear_x", 0.5, "m/s"),
        ("linear_y", 0.5, "m/s"),
        ("angular_z", 1.0, "rad/s"),
    ]
    engine = OnnxRuntimeEngine(manifest, embedding_for(manifest, "go left around the box to the cup"))
    engine.load()
    engine.warm_up()
    assert {name: array.shape for name, array in engine.inputs.items()} == {
        "images": (1, 3, 224, 224),
        "text_embeddings": (1, 512),
    }
    assert np.isfinite(engine.outputs["actions"]).all()


@needs_torch
def test_the_file_computes_what_the_network_does_for_a_batch_of_any_size() -> None:
    import torch  # noqa: PLC0415 - not everyone has it
    from policy_network import Network, to_onnx  # noqa: PLC0415 - imports torch

    torch.manual_seed(3)
    network = Network()
    for _ in range(3):  # gives the batch norms something to remember
        network(2 * torch.randn(4, 3, 224, 224) + 1, torch.randn(4, 512))
    network.eval()
    images, told = torch.randn(3, 3, 224, 224), torch.randn(3, 512)
    session = ort.InferenceSession(to_onnx(network), providers=["CPUExecutionProvider"])
    (actions,) = session.run(None, {"images": images.numpy(), "text_embeddings": told.numpy()})
    with torch.no_grad():
        np.testing.assert_allclose(actions, network(images, told).numpy(), atol=1e-4)
    assert np.ptp(actions, axis=0).max() > 0.01


@needs_torch
def test_a_stored_picture_is_what_the_network_makes_of_the_daemons_input() -> None:
    import torch  # noqa: PLC0415 - not everyone has it
    from policy_learning import normalised  # noqa: PLC0415 - imports torch

    picture = np.random.default_rng(1).integers(0, 256, (480, 640, 3), np.uint8)
    room = make_room(1_000_000)
    eye = Eye(room)
    eye.look(room.start, 7)
    stored = normalised(halved(eye.squashed())[None])
    pooled = torch.nn.functional.avg_pool2d(torch.from_numpy(eye.image), 2)
    np.testing.assert_allclose(stored.numpy(), pooled.numpy(), atol=0.51 / 255 / 0.224)
    # The eye's image is the daemon's own preprocessing; another picture would not have passed.
    other = np.empty_like(eye.image)
    Preprocessor(IMAGE, 480, 640)(picture, other)
    assert np.abs(other - eye.image).max() > 1


@needs_torch
def test_ctrl_c_leaves_the_old_files_alone(tmp_path: Path) -> None:
    (tmp_path / "cup.onnx").write_text("the old one")
    # A job that a script starts in the background has Ctrl-C ignored, and so have its children.
    heeding = ["env", "--default-signal=INT", *command(tmp_path)]
    run = subprocess.Popen(heeding, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert "held-out drives" in run.stdout.readline()
    run.send_signal(signal.SIGINT)
    _, said = run.communicate(timeout=60)
    assert (run.returncode, said.strip()) == (1, "Stopped; nothing was written.")
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("cup.onnx", "the old one")]


def test_without_torch_one_sentence_says_what_to_install(tmp_path: Path) -> None:
    code = (
        "import runpy, sys; sys.modules['torch'] = None; "
        f"sys.argv = {command(tmp_path)[1:]!r}; runpy.run_path(sys.argv[0], run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (run.returncode, run.stderr.count("\n")) == (1, 1)
    assert "pip install 'mvla-daemon[train]'" in run.stderr


def test_a_wish_moves_the_robot_a_latency_later_and_no_faster_than_allowed() -> None:
    room = make_room(1_000_001)
    world = drive(room, Side.LEFT, lambda _pose, _number: Velocity(5.0), seed=1, longest_ns=400_000_000)
    (first, *_, last) = world.track
    # 35 ms of latency, then the ramp of 1 m/s² and the body's inertia.
    assert first.at_ns == pytest.approx(55_000_000, abs=5_000_000)
    assert 0.1 < last.speed_mps < 0.365 * 1.06


def test_the_expert_reaches_the_cup_on_both_sides_and_a_robot_at_rest_does_not() -> None:
    room = make_room(1_000_002)
    for side in Side:
        world = drive(room, side, lambda pose, _number, side=side: expert(room, pose, side), seed=2)
        assert (world.outcome, world.passed) == (Outcome.REACHED, side)
    still = drive(room, Side.LEFT, lambda _pose, _number: Velocity(), seed=2)
    assert (still.outcome, still.pose) == (Outcome.RUNNING, room.start)


def test_collected_frames_hold_the_experts_answer_to_both_instructions_and_repeat() -> None:
    frames, outcomes = collect(Task(1_000_003, 0.05))
    again, _ = collect(Task(1_000_003, 0.05))
    for name in ("pictures", "labels", "weights", "own"):
        np.testing.assert_array_equal(getattr(frames, name), getattr(again, name))
    assert len(outcomes) == 2
    assert frames.pictures.shape[1:] == (112, 112, 3)
    # The first frame of either drive is taken at the start.
    room = make_room(1_000_003)
    right = int(np.flatnonzero(frames.own == 1)[0])
    for first in (0, right):
        for index, side in enumerate((Side.LEFT, Side.RIGHT)):
            answer = np.array(expert(room, room.start, side).as_tuple()) / (0.5, 0.5, 1.0)
            np.testing.assert_allclose(frames.labels[first, index], answer, atol=1e-6)
    assert frames.weights[0].tolist() == [1, 1]
    assert (frames.weights[np.arange(len(frames)), frames.own] == 1).all()
    assert 0 < (frames.weights == 0).sum() < len(frames)


def test_a_room_in_a_mirror_is_answered_in_a_mirror() -> None:
    """Training shows half of its pictures in a mirror."""
    room = make_room(1_000_004)
    cup = replace(room.cup, y_m=-room.cup.y_m)
    boxes = tuple(replace(box, y_m=-box.y_m, yaw_rad=-box.yaw_rad) for box in room.boxes)
    mirrored = replace(room, cup=cup, boxes=boxes, south_m=-room.north_m, north_m=-room.south_m)
    for x_m, y_m, yaw_rad in ((0.6, 0.2, 0.1), (1.4, -0.7, 0.3), (2.0, 0.5, -0.2)):
        one = expert(room, Pose(x_m, y_m, yaw_rad), Side.LEFT)
        other = expert(mirrored, Pose(x_m, -y_m, -yaw_rad), Side.RIGHT)
        expected = (one.linear_x_mps, -one.linear_y_mps, -one.angular_z_radps)
        np.testing.assert_allclose(other.as_tuple(), expected, atol=1e-9)


def test_the_bundled_policy_reaches_the_cup_of_a_room_that_it_never_saw() -> None:
    report = json.loads(REPORT.read_text())
    assert report["scale"] == "full"
    assert all(error["policy"] < error["constant"] / 2 for error in report["held_out"]["mean_absolute_error"].values())
    assert check(BUNDLED / "cup.onnx", 31_000_000_000, 7) == [Outcome.REACHED, Outcome.REACHED]


def test_the_bundled_policy_is_small_enough_for_one_core() -> None:
    assert (BUNDLED / "cup.onnx").stat().st_size < 4_000_000
    report = json.loads(REPORT.read_text())
    assert math.isclose(report["network"]["model_bytes"], (BUNDLED / "cup.onnx").stat().st_size)
    assert report["network"]["multiply_accumulates"] < 30e6
