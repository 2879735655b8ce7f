"""Exporting policies: exact networks, strict checkpoints, honest manifests, and files that the daemon's engine runs."""

from __future__ import annotations

import argparse
import re
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mvla_daemon.core.messages import Stage
from mvla_daemon.engines.half import cast_to_half
from mvla_daemon.engines.instruction import embedding_for, read_table
from mvla_daemon.engines.manifest import load_manifest
from mvla_daemon.engines.onnxruntime import OnnxRuntimeEngine
from mvla_daemon.errors import DaemonError
from tests import exported

SCRIPTS = Path(__file__).parent.parent / "scripts"
TABLE = Path(__file__).parent.parent / "mvla_daemon" / "bundled" / "cup" / "instructions.npz"
sys.path.insert(0, str(SCRIPTS))

from export_policy import main  # noqa: E402 - scripts are no package
from seed_kinds import KINDS  # noqa: E402

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

needs_torch = pytest.mark.needs("torch", "transformers")
SMALL = ["--kind", "clip-hybrid-small", "--instructions", str(TABLE)]
READ = ["--kind", "clip-robovlms", "--instructions", str(TABLE), "--concat", "image,text"]
READ += ["--between", "none", "--bound", "tanh"]


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def answer(path: Path, image: NDArray[np.float32]) -> list[float]:
    """What the daemon's engine answers to an image, told the first sentence of the table."""
    manifest = load_manifest(path)
    table = manifest.inputs.instruction
    sentence = read_table(table.table)[0][0] if table else None
    with OnnxRuntimeEngine(manifest, embedding_for(manifest, sentence)) as engine:
        engine.load()
        engine.inputs[manifest.inputs.image.tensor][...] = image

        def ignore(_: Stage) -> None:
            pass

        engine.infer(ignore)
        return [float(engine.outputs[axis.tensor][axis.index]) for axis in manifest.axes]


def saved(path: Path, state: dict[str, Any], **more: object) -> Path:
    import torch  # noqa: PLC0415 - not everyone has it

    torch.save({"model_state_dict": state, "optimizer_state_dict": {}, **more}, path)
    return path


@pytest.fixture
def image() -> NDArray[np.float32]:
    return np.random.default_rng(1).normal(size=(1, 3, 224, 224)).astype(np.float32)


@needs_torch
@pytest.mark.parametrize("key", [key for key, kind in KINDS.items() if kind.parameters])
def test_each_known_network_has_its_exact_count_of_parameters(key: str) -> None:
    from export_network import MAKERS, assert_count  # noqa: PLC0415 - imports torch
    from seed_networks import kosmos_lstm  # noqa: PLC0415 - likewise

    counts = {"clip-hybrid-small": 864_259, "gpu-simple": 12_056_450, "gpu-accurate": 133_323_138}
    counts |= {"latency-surrogate": 438_997_250, "kosmos2-lstm": 1_703_973_122}
    assert KINDS[key].parameters == counts[key]
    assert_count(KINDS[key], MAKERS.get(key, kosmos_lstm))
    other = next(kind for kind in KINDS.values() if kind.key != key and kind.parameters)
    with pytest.raises(DaemonError, match="parameters here, not"):
        assert_count(other, MAKERS.get(key, kosmos_lstm))


@needs_torch
def test_random_weights_are_a_policy_only_in_shape_and_say_so_everywhere(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], image: NDArray[np.float32]
) -> None:
    assert main([*SMALL, "--random-weights", "1", "--out", str(tmp_path / "one")]) == 0
    assert "864,259 parameters, RANDOM WEIGHTS, seed 1" in capsys.readouterr().out
    found = []
    for name in ("clip-hybrid-small", "clip-hybrid-small.fp16"):
        path = tmp_path / "one" / f"{name}.toml"
        assert path.read_text().startswith(
            "# Made by scripts/export_policy.py --kind clip-hybrid-small: RANDOM WEIGHTS."
        )
        manifest = load_manifest(path)
        assert (manifest.weights, manifest.training) == ("random", None)
        assert [(axis.name, axis.scale) for axis in manifest.axes] == [
            ("linear_x", 2.0),
            ("linear_y", 2.0),
            ("angular_z", 2.0),
        ]
        assert (manifest.inputs.image.resize, manifest.inputs.image.color) == ("squash", "RGB")
        found.append(answer(path, image))
    np.testing.assert_allclose(*found, atol=2e-3)
    assert main([*SMALL, "--random-weights", "1", "--out", str(tmp_path / "two")]) == 0
    again, whole = (tmp_path / name / "clip-hybrid-small.onnx" for name in ("one", "two"))
    assert again.read_bytes() == whole.read_bytes()
    assert abs(whole.stat().st_size - 3_461_406) < 100  # the project's own file


@needs_torch
@pytest.mark.filterwarnings("ignore:.*torch.jit:DeprecationWarning")
def test_as_torchscript_a_policy_answers_the_same_in_both_precisions(
    tmp_path: Path, image: NDArray[np.float32]
) -> None:
    import torch  # noqa: PLC0415 - not everyone has it

    words = ["--kind", "gpu-simple", "--random-weights", "1", "--torchscript", "--out", str(tmp_path)]
    assert main(words) == 0
    expected = answer(tmp_path / "gpu-simple.toml", image)
    for name, dtype in (("gpu-simple.pt", torch.float32), ("gpu-simple.fp16.pt", torch.float16)):
        found = torch.jit.load(str(tmp_path / name))(torch.from_numpy(image).to(dtype))
        assert found.dtype == dtype
        np.testing.assert_allclose(found.detach().float().numpy()[0], expected, atol=1e-3)


@needs_torch
def test_a_checkpoint_becomes_a_policy_that_computes_what_the_network_does(
    tmp_path: Path, image: NDArray[np.float32]
) -> None:
    import torch  # noqa: PLC0415 - not everyone has it
    from seed_networks import ClipHybridSmall  # noqa: PLC0415 - imports torch

    network = ClipHybridSmall().eval()
    settings = argparse.Namespace(batch_size=2, data_path="data")
    path = saved(tmp_path / "best.pth", network.state_dict(), epoch=10, val_mae=np.float64(0.2121), args=settings)
    assert main([*SMALL, "--checkpoint", str(path), "--out", str(tmp_path / "out")]) == 0
    manifest = load_manifest(tmp_path / "out" / "clip-hybrid-small.toml")
    assert manifest.weights == "trained"
    assert manifest.training is not None
    assert (manifest.training.epoch, manifest.training.val_mae) == (10, 0.2121)
    with torch.no_grad():
        expected = network(torch.from_numpy(image), torch.from_numpy(read_table(TABLE)[1][:1]))[0]
    np.testing.assert_allclose(answer(tmp_path / "out" / "clip-hybrid-small.toml", image), expected, atol=1e-4)


@needs_torch
def test_a_checkpoint_that_does_not_fit_lists_every_key_and_nothing_is_written(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    import torch  # noqa: PLC0415 - not everyone has it
    from seed_networks import ClipHybridSmall  # noqa: PLC0415 - imports torch

    state = ClipHybridSmall().state_dict()
    del state["text_encoder.0.bias"]
    state["extra.weight"] = torch.zeros(2, 2)
    state["fusion_layer.5.weight"] = torch.zeros(2, 256)
    state["image_encoder.0.bias"][3] = float("nan")
    path = saved(tmp_path / "best.pth", state)
    assert main([*SMALL, "--checkpoint", str(path), "--out", str(tmp_path / "out")]) == 78
    said = capsys.readouterr().err
    for problem in (
        "missing: text_encoder.0.bias [256]",
        "unexpected: extra.weight [2, 2]",
        "misshaped: fusion_layer.5.weight is [2, 256], the network's is [3, 256]",
        "not finite: image_encoder.0.bias [64]",
    ):
        assert problem in said
    assert not (tmp_path / "out").exists()


class Malice:
    """Runs a command wherever it is unpickled carelessly."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str, ...]]:
        return subprocess.getoutput, (f"touch {self.trace}",)


@needs_torch
def test_nothing_in_a_checkpoint_is_run_and_what_is_none_is_one_sentence(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    paths = [saved(tmp_path / "evil.pth", {}, args=Malice(tmp_path / "trace")), tmp_path / "bad.pth"]
    paths[1].write_bytes(b"no checkpoint")
    import torch  # noqa: PLC0415 - not everyone has it

    torch.save([1, 2], tmp_path / "list.pth")
    for path in (*paths, tmp_path / "list.pth", tmp_path / "none.pth"):
        exit_code = main([*SMALL, "--checkpoint", str(path), "--out", str(tmp_path / "out")])
        assert exit_code == (66 if path.name == "none.pth" else 78)
    said = capsys.readouterr().err
    assert said.count("\n") == 4
    assert "weights_only" not in said  # PyTorch's advice to load the file unsafely
    assert not (tmp_path / "trace").exists()
    assert not (tmp_path / "out").exists()


@needs_torch
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--kind", "kosmos2-clip-hybrid", "--random-weights", "1"], "only a checkpoint knows the network"),
        ([*READ, "--random-weights", "1"], "only a checkpoint knows the network of clip-robovlms"),
        (["--kind", "clip-hybrid-small", "--random-weights", "1"], "needs --instructions"),
        ([*SMALL[:1], "gpu-simple", *SMALL[2:], "--random-weights", "1"], "takes no --instructions"),
        (["--kind", "gpu-simple", "--random-weights", "1", "--feature", "last"], "takes no --feature"),
        (["--kind", "kosmos2-lstm", "--checkpoint", "a.pth"], "needs --feature, which no checkpoint tells"),
        ([*READ[:4], "--checkpoint", "a.pth"], "needs --concat, which no checkpoint tells"),
        (["--kind", "kosmos2-lstm", "--random-weights", "1", "--say", "go"], "--say and --tokenizer go together"),
    ],
)
def test_what_is_missing_or_makes_no_sense_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], sentence: str
) -> None:
    assert main([*words, "--out", str(tmp_path / "out")]) == 64
    said = capsys.readouterr().err
    assert sentence in said
    assert said.count("\n") == 1
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("words", [SMALL, [*SMALL, "--random-weights", "1", "--checkpoint", "a.pth"]])
def test_weights_come_from_one_place_that_was_named(tmp_path: Path, words: list[str]) -> None:
    with pytest.raises(SystemExit):
        main([*words, "--out", str(tmp_path)])


def test_without_torch_one_sentence_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export_policy.find_spec", lambda name: None if name == "torch" else object())
    assert main([*SMALL, "--random-weights", "1", "--out", str(tmp_path / "out")]) == 69


# --- Kosmos-2 and CLIP, a few thousand parameters of each


@needs_torch
def test_kosmos_is_told_its_picture_as_its_own_class_tells_it() -> None:
    import torch  # noqa: PLC0415 - not everyone has it

    policy, images = exported.tiny_kosmos_lstm("mean"), torch.randn(1, 3, 224, 224)
    before, after = policy.sight.before, policy.sight.after
    ids = torch.tensor([[*before, *[5] * 4, *after]])
    places = torch.tensor([[0] * len(before) + [1] * 4 + [0] * len(after)])
    with torch.no_grad():
        whole = policy.kosmos(pixel_values=images, input_ids=ids, image_embeds_position_mask=places).last_hidden_state
        np.testing.assert_allclose(policy.see(images), whole.mean(dim=1), atol=1e-5)
        last = exported.tiny_kosmos_lstm("last")
        np.testing.assert_allclose(last.see(images), whole[:, -1], atol=1e-5)
        assert (last.see(images) - last.see(-images)).abs().max() > 1e-4


@needs_torch
def test_kosmos_with_its_lstm_is_exported_and_cast(tmp_path: Path) -> None:
    import onnxruntime as ort  # noqa: PLC0415
    from export_onnx import write_onnx  # noqa: PLC0415 - imports torch

    write_onnx(exported.tiny_kosmos_lstm("mean"), KINDS["kosmos2-lstm"], tmp_path / "k.onnx")  # compares by itself
    cast_to_half(tmp_path / "k.onnx", tmp_path / "h.onnx")
    given = {"images": np.random.default_rng(1).normal(size=(1, 3, 224, 224)).astype(np.float32)}
    sessions = (ort.InferenceSession(str(tmp_path / f"{name}.onnx"), _quiet()) for name in ("k", "h"))
    exact, rounded = (session.run(None, given)[0] for session in sessions)
    assert exact.shape == (1, 2)
    np.testing.assert_allclose(exact, rounded, atol=2e-3)


def _quiet() -> Any:
    import onnxruntime as ort  # noqa: PLC0415

    options = ort.SessionOptions()
    options.log_severity_level = 3
    return options


@needs_torch
def test_weights_over_two_gigabytes_go_to_one_file_beside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("export_onnx._MOST_IN_ONE_FILE", 0)
    assert main([*SMALL, "--random-weights", "1", "--out", str(tmp_path)]) == 0
    assert (tmp_path / "clip-hybrid-small.onnx.data").stat().st_size > 3_400_000
    assert (tmp_path / "clip-hybrid-small.onnx").stat().st_size < 20_000
    modes = {(tmp_path / f"clip-hybrid-small.onnx{end}").stat().st_mode for end in ("", ".data")}
    assert len(modes) == 1
    manifest = load_manifest(tmp_path / "clip-hybrid-small.toml")
    assert {path.name for path in manifest.sha256} == {
        "clip-hybrid-small.onnx",
        "clip-hybrid-small.onnx.data",
        "instructions.npz",
    }


@needs_torch
def test_a_head_that_only_its_checkpoint_knows_is_read_from_it(tmp_path: Path, image: NDArray[np.float32]) -> None:
    import torch  # noqa: PLC0415 - not everyone has it

    robovlms = exported.TinyRobovlms()
    path = saved(tmp_path / "best.pth", robovlms.state_dict(), epoch=3, val_mae=0.3)
    assert main([*READ, "--checkpoint", str(path), "--out", str(tmp_path / "out")]) == 0
    with torch.no_grad():
        expected = robovlms(torch.from_numpy(image), torch.from_numpy(read_table(TABLE)[1][:1]))[0]
    np.testing.assert_allclose(answer(tmp_path / "out" / "clip-robovlms.toml", image), expected, atol=1e-4)
    training = load_manifest(tmp_path / "out" / "clip-robovlms.toml").training
    assert training is not None
    assert training.epoch == 3


@needs_torch
def test_kosmos_clip_fusion_and_lstm_are_read_from_a_checkpoint() -> None:
    import torch  # noqa: PLC0415 - not everyone has it
    from checkpoints import fill  # noqa: PLC0415 - imports torch
    from read_network import read_network  # noqa: PLC0415 - likewise

    hybrid = exported.TinyHybrid()
    state, images = hybrid.state_dict(), torch.randn(1, 3, 224, 224)
    network = read_network(Path("a.pth"), state, ["kosmos", "projected"], True, True, hybrid.sight).eval()
    fill(network, state, Path("a.pth"))
    with torch.no_grad():
        np.testing.assert_allclose(network(images), hybrid(images), atol=1e-5)


@needs_torch
@pytest.mark.parametrize(
    ("spoil", "concat", "sentence"),
    [
        ({}, "kosmos,image", r"has no kosmos, only image \(64\), projected \(24\), text \(512\)"),
        ({}, "text,text", "no block of fusion.*takes the 1024 numbers before it"),
        ({"fusion.9.weight": (7, 7)}, "image,text", "fusion.9 takes 7 numbers, but the layer before gives 32"),
        ({"norm.running_mean": (7,)}, "image,text", r"norm: running_mean \[7\]"),
        ({"other.0.weight": (2, 32)}, "image,text", "more than one block of"),
        ({"action_head.2.weight": (5, 16), "action_head.2.bias": (5,)}, "image,text", "gives 5 numbers, not 2 actions"),
    ],
)
def test_no_layer_is_made_up_and_none_is_left_out(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], spoil: dict[str, tuple[int, ...]], concat: str, sentence: str
) -> None:
    import torch  # noqa: PLC0415 - not everyone has it

    state = {**exported.TinyRobovlms().state_dict(), **{key: torch.zeros(shape) for key, shape in spoil.items()}}
    words = [concat if word == "image,text" else word for word in READ]
    path = saved(tmp_path / "best.pth", state)
    assert main([*words, "--checkpoint", str(path), "--out", str(tmp_path / "out")]) == 78
    assert re.search(sentence, capsys.readouterr().err)
    assert not (tmp_path / "out").exists()
