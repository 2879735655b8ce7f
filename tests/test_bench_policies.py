"""`mvla-daemon bench --policies`: FP32 against FP16 on each engine, beside what was published."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from matplotlib.image import imread

from mvla_daemon.bench import device
from mvla_daemon.bench.bound import ROBOTS, cache_bytes, measured_bandwidth, published_bandwidth
from mvla_daemon.bench.contest import Contest
from mvla_daemon.bench.latency import Block, Spread
from mvla_daemon.bench.published import published_for
from mvla_daemon.bench.record import as_json
from mvla_daemon.bench.report import Report
from mvla_daemon.bench.subject import subjects_of, weights_of
from mvla_daemon.bench.table import table
from mvla_daemon.cli import main
from mvla_daemon.config_load import load_config
from tests.gpu_double import DOUBLE
from tests.onnx_models import image_table, picture_model, told_model, write_manifest
from tests.rig import ROOT, command, environment

OK, USAGE, NO_INPUT, UNAVAILABLE, CONFIG = 0, 64, 66, 69, 78
SURROGATE = 438_997_250
PARTS = ["min", "mean", "median", "p90", "p95", "p99", "n"]


def bench(folder: Path, *words: str, **variables: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(ROOT / "config.toml", "bench", *words),
        cwd=ROOT,
        env={**environment(folder), **variables},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )


def policy(folder: Path, name: str = "hallway") -> Path:
    folder.mkdir(exist_ok=True)
    picture_model().save(folder / "hallway.onnx")
    return write_manifest(folder, name=name)


def record(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "bench.json").read_text())
    return found


@pytest.mark.meanwhile
def test_every_policy_is_measured_in_both_precisions_and_told_as_table_json_and_picture(tmp_path: Path) -> None:
    manifest, out = policy(tmp_path / "random"), tmp_path / "out"
    words = ("--engines", "onnxruntime", "--tries", "20", "--out", str(out))
    done = bench(tmp_path, "--policies", "configured", str(manifest.parent), *words)
    assert (done.returncode, done.stderr) == (OK, "")
    cup, hallway = record(out)["policies"]
    assert (cup["name"], cup["weights"], cup["parameters"]) == ("cup", "trained", 499_219)
    assert (hallway["name"], hallway["weights"], hallway["published"]) == ("hallway", "random", None)
    for one in (cup, hallway):
        assert [(row["engine"], row["precision"]) for row in one["rows"]] == [
            ("onnxruntime", "FP32"),
            ("onnxruntime", "FP16"),
        ]
        for row in one["rows"]:
            judge(row)
        (pair,) = one["fp32_to_fp16"]
        means = [row["ms"]["latency"]["mean"] for row in one["rows"]]
        assert pair["speed_up"] == pytest.approx(means[0] / means[1])
        assert {bound["label"] for bound in one["memory_bounds"]} == {"measured", "published"}
    assert cup["rows"][0]["difference_from_fp32"] == 0
    assert 0 < cup["rows"][1]["difference_from_fp32"] < 0.01
    assert cup["weight_bytes"] == {"FP32": 4 * 499_219, "FP16": 2 * 499_219}
    rows = [line.split() for line in done.stdout.splitlines() if line.startswith(("cup ", "hallway "))]
    assert len(rows) == 4
    assert all(row[1] == "RANDOM" for row in rows if row[0] == "hallway")
    assert done.stdout.count("RANDOM WEIGHTS") >= 5
    assert done.stdout.count("no copies, preprocessing outside") == 4
    assert np.ptp(imread(out / "bench.png")[..., :3]) > 0.5
    assert imread(out / "bench.png").shape[1] == 1600


def judge(row: dict[str, Any]) -> None:
    """What holds of every measurement, however fast the machine is."""
    assert (row["label"], row["n"], row["copies_inside"], row["preprocessing_inside"]) == ("measured", 20, False, False)
    assert sorted(row["ms"]) == ["compute", "latency"]
    for spread in row["ms"].values():
        assert list(spread) == PARTS
        assert 0 < spread["min"] <= spread["median"] <= spread["p90"] <= spread["p95"] <= spread["p99"]
        assert spread["min"] <= spread["mean"]
    assert row["ms"]["compute"]["mean"] <= row["ms"]["latency"]["mean"]
    assert row["fps"] == pytest.approx(1000 / row["ms"]["latency"]["mean"])
    assert row["cycle_share"] == pytest.approx(row["ms"]["latency"]["mean"] / 20)
    assert row["peak_mib"] > row["policy_mib"] > 0


@pytest.mark.meanwhile
def test_tensorrt_has_its_devices_times_and_both_precisions(tmp_path: Path) -> None:
    manifest, out = policy(tmp_path / "random"), tmp_path / "out"
    words = ("--engines", "tensorrt", "--tries", "5", "--out", str(out))
    path = f"{DOUBLE}:{ROOT}"
    done = bench(tmp_path, "--policies", str(manifest), *words, PYTHONPATH=path, XDG_CACHE_HOME=str(tmp_path))
    assert (done.returncode, done.stderr) == (OK, "")
    rows = record(out)["policies"][0]["rows"]
    assert [row["precision"] for row in rows] == ["FP32", "FP16"]
    for row in rows:
        assert sorted(row["ms"]) == ["compute", "d2h", "enqueue", "h2d", "latency"]
        assert row["copies_inside"]
    assert [line.split()[3] for line in done.stdout.splitlines() if "H2D Latency" in line] == ["1.000", "1.000"]


@pytest.mark.needs("torch")
@pytest.mark.meanwhile
def test_torch_without_a_torchscript_file_is_said_not_substituted(tmp_path: Path) -> None:
    done = bench(tmp_path, "--policies", "configured", "--engines", "torch", "--out", str(tmp_path / "out"))
    assert done.returncode == UNAVAILABLE
    assert done.stderr == "mvla-daemon: Nothing was measured: there is no cup.pt (TorchScript) beside the model.\n"


@pytest.mark.needs("torch")
def test_torch_measures_the_torchscript_file_and_tells_how_far_its_answer_is(tmp_path: Path) -> None:
    manifest, out = policy(tmp_path / "random"), tmp_path / "out"
    trace = (
        "import torch, sys; f = lambda x: x.mean((2, 3)); torch.jit.trace(f, torch.zeros(1, 3, 6, 8)).save(sys.argv[1])"
    )
    subprocess.run([sys.executable, "-c", trace, str(manifest.parent / "hallway.pt")], check=True, timeout=120)
    words = ("--engines", "onnxruntime,torch", "--tries", "5", "--out", str(out))
    done = bench(tmp_path, "--policies", str(manifest), *words)
    assert (done.returncode, done.stderr) == (OK, "")
    rows = [row for row in record(out)["policies"][0]["rows"] if row["engine"] == "torch"]
    assert [row["precision"] for row in rows] == ["FP32", "FP16"]
    assert rows[0]["difference_from_fp32"] < 1e-3
    assert rows[1]["difference_from_fp32"] < 1.0  # of a mean brightness of 127, to which FP16 is exact within 0.06


@pytest.mark.meanwhile
def test_a_model_that_no_engine_takes_is_a_failed_row_and_an_exit_code(tmp_path: Path) -> None:
    manifest, out = policy(tmp_path / "random"), tmp_path / "out"
    write_manifest(manifest.parent, inputs={"image": image_table(tensor="pictures")})
    done = bench(tmp_path, "--policies", str(manifest), "--engines", "onnxruntime", "--out", str(out))
    assert done.returncode == CONFIG
    assert "hallway on onnxruntime in FP32: " in done.stderr
    assert "'pictures'" in done.stderr
    assert [row["label"] for row in record(out)["policies"][0]["rows"]] == ["failed", "failed"]


@pytest.mark.parametrize(
    ("words", "code", "sentence"),
    [
        (["--policies", "configured", "--engines", "tensorrt"], UNAVAILABLE, "--engines tensorrt: "),
        (["--policies", "configured", "--engines", "abacus"], USAGE, "the bench knows onnxruntime, tensorrt, torch"),
        (["--policies", "configured", "--null"], USAGE, "leave out one or the other"),
        (["--engines", "onnxruntime"], USAGE, "--policies"),
        (["--policies", "nowhere.toml"], NO_INPUT, "nowhere.toml"),
        (["--policies", "docs"], NO_INPUT, "no manifest is in this folder"),
        (["--policies", "config.toml"], CONFIG, "config.toml"),
    ],
    ids=["no TensorRT", "unknown engine", "of the daemon", "no policies", "no file", "empty folder", "no manifest"],
)
def test_what_cannot_be_measured_is_one_sentence(
    capsys: pytest.CaptureFixture[str], words: list[str], code: int, sentence: str
) -> None:
    if "tensorrt" in words and not device.missing_modules("tensorrt"):
        pytest.skip("TensorRT is here")
    names = [str(ROOT / word) if word in {"docs", "config.toml"} else word for word in words]
    assert main(["--config", str(ROOT / "config.toml"), "bench", *names]) == code
    assert sentence in capsys.readouterr().err


def test_what_the_checkpoint_said_of_itself_is_told_as_published(tmp_path: Path) -> None:
    picture_model().save(tmp_path / "hallway.onnx")
    manifest = write_manifest(tmp_path, weights="trained", training={"epoch": 4, "val_mae": 0.222})
    config = load_config(ROOT / "config.toml", [])
    (subject,) = subjects_of(config, [str(manifest), str(tmp_path)])
    assert (subject.val_mae, subject.whose, subject.precisions) == (0.222, "trained weights", ("FP32", "FP16"))
    contests = tuple(Contest(subject, "torch", precision, why="no file") for precision in subject.precisions)
    report = Report("", "", ("torch",), {}, 1, 1, contests, ROBOTS[0], 0)
    assert "trained weights, val_mae 0.222 (published, by its checkpoint)" in table(report)
    assert json.loads(as_json(report))["policies"][0]["val_mae"] == 0.222


def test_a_spread_is_what_it_is_in_the_head_and_a_part_that_does_not_exist_is_a_dash() -> None:
    spread = Spread.of([float(n) for n in range(100, 0, -1)])
    assert spread == Spread(1.0, 50.5, 50.5, 90.0, 95.0, 99.0, 100)
    lines = Block(10.0, {"latency": spread}).lines()
    assert lines[2].split() == ["Latency", "1.000", "50.500", "50.500", "90.000", "95.000", "99.000"]
    assert lines[3].split() == ["Enqueue", "Time", *"------"]


def test_weights_are_counted_without_reading_the_file_that_holds_them(tmp_path: Path) -> None:
    model = told_model().save(tmp_path / "told.onnx")
    onnx.save(
        onnx.load(model), tmp_path / "outside.onnx", save_as_external_data=True, location="weights", size_threshold=0
    )
    (tmp_path / "weights").unlink()
    assert weights_of(tmp_path / "outside.onnx").parameters == weights_of(model).parameters == 12


def test_what_was_published_goes_with_the_name_or_with_the_surrogates_size() -> None:
    assert published_for("gpu-simple", 12_056_450) is None
    claim = published_for("latency_surrogate", SURROGATE)
    assert claim is not None
    assert claim == published_for("my-policy", SURROGATE + 4 * 4096)
    assert (claim.latency_ms("FP32"), claim.latency_ms("FP16")) == (2.503, 1.306)
    told = " ".join(claim.lines(SURROGATE))
    for word in ("1.92x", "2163 -> 1086 MB", "random weights", "input already on the GPU", "6.5 %", "0.7 TB/s"):
        assert word in told
    assert "another network" not in told
    assert "another network" in claim.lines(1000)[-1]
    kosmos = published_for("kosmos2-lstm", None)
    assert kosmos is not None
    assert "another network" not in " ".join(kosmos.lines(1_706_742_558))  # its ONNX file: a table of positions too


def test_memory_bounds_a_policy_by_its_weights() -> None:
    orin, _ = ROBOTS
    assert published_bandwidth("NVIDIA Jetson Orin NX Engineering Reference Developer Kit") == orin
    assert published_bandwidth("an abacus") is None
    l4 = published_bandwidth("NVIDIA L4")
    assert l4 is not None
    assert l4.gb_per_s == 300.0
    # Their names begin like one that is known, their memories do not.
    for other in ("NVIDIA L40S", "NVIDIA GeForce RTX 3090 Ti", "NVIDIA GeForce RTX 4090 Laptop GPU"):
        assert published_bandwidth(other) is None
    assert orin.bound_ms(3.4e9) == pytest.approx(33.2, abs=0.1)  # Kosmos-2 in FP16
    assert measured_bandwidth("here").gb_per_s > 0


def test_the_largest_cache_is_found(tmp_path: Path) -> None:
    for name, size in (("index0", "32K\n"), ("index3", "32M\n"), ("index4", "odd\n")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "size").write_text(size)
    assert cache_bytes(tmp_path) == 32 << 20
    assert cache_bytes(tmp_path / "nowhere") == 0


def test_a_processs_memory_on_gpus_is_the_sum_of_its_rows() -> None:
    rows = ["7, 100", "8, 50", "7, 20", "odd"]
    assert (device.memory_of(7, rows), device.memory_of(9, rows)) == (120.0, None)
