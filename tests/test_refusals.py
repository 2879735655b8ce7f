"""What cannot work is refused with one sentence that says what to do, the right exit code, and nothing moved."""

from __future__ import annotations

import hashlib
import itertools
import os
import subprocess
import tty
from pathlib import Path

import pytest

from tests.rig import Rig, Scene
from tests.wire import WireReader

pytestmark = pytest.mark.meanwhile

USAGE, NO_INPUT, UNAVAILABLE, CONFIG = 64, 66, 69, 78
SIMULATED = tuple(
    f"--set={value}" for value in ("camera.source=sim://", "camera.width=640", "camera.height=480", "motor.port=sim://")
)


def refused(rig: Rig, code: int, *mentions: str, words: tuple[str, ...] = ()) -> None:
    """Run with these words; it must end with this code and say these things, and never have driven."""
    done = rig.tell("--for", "8", *words)
    assert done.returncode == code, done.stderr
    said = done.stderr.strip().splitlines()[-1]
    assert "Traceback" not in done.stderr
    for mention in mentions:
        assert mention in done.stderr
    assert said.endswith((".", "]")) or ": " in said
    assert {timed.kind for timed in rig.read_wire()} <= {"HELLO", "STOP"}


def test_an_unknown_key(tmp_path: Path, scene: Scene) -> None:
    with Rig(tmp_path, scene) as rig:
        rig.config.write_text(rig.config.read_text().replace("rate_hz", "rate_hertz"))
        refused(rig, CONFIG, "config.toml:2", "rate_hertz", "rate_hz")
        assert rig.read_wire() == []  # nothing was opened


def test_a_missing_configuration(tmp_path: Path, scene: Scene) -> None:
    with Rig(tmp_path, scene) as rig:
        rig.config.unlink()
        refused(rig, CONFIG, str(rig.config))


def test_all_that_is_wrong_at_once(tmp_path: Path, scene: Scene) -> None:
    with Rig(tmp_path, scene) as rig:
        refused(
            rig,
            CONFIG,
            "control.rate_hz",
            "motor.baud",
            words=("--set", "control.rate_hz=0", "--set", "motor.baud=fast"),
        )


def test_a_recording_and_a_real_port(tmp_path: Path, scene: Scene) -> None:
    with Rig(tmp_path, scene) as rig:
        refused(rig, CONFIG, "bench_test", words=("--set", "safety.bench_test=false"))


def test_a_missing_manifest(tmp_path: Path, scene: Scene) -> None:
    with Rig(tmp_path, scene) as rig:
        refused(rig, NO_INPUT, "nothing.toml", words=("--set", "policy.manifest=nothing.toml"))


def test_a_missing_model(tmp_path: Path, scene: Scene, studio: Path) -> None:
    with Rig(tmp_path, scene) as rig:
        manifest = tmp_path / "steady.toml"
        manifest.write_text((studio / "steady.toml").read_text())
        refused(rig, NO_INPUT, "steady.onnx", words=("--set", f"policy.manifest={manifest}"))


def test_another_model_than_the_manifest_says(tmp_path: Path, scene: Scene, studio: Path) -> None:
    with Rig(tmp_path, scene) as rig:
        manifest = tmp_path / "steady.toml"
        manifest.write_text((studio / "steady.toml").read_text())
        (tmp_path / "steady.onnx").write_bytes((studio / "slow.onnx").read_bytes())
        refused(rig, CONFIG, "sha256", words=("--set", f"policy.manifest={manifest}"))


@pytest.mark.parametrize(
    ("old", "new", "keep", "mentions"),
    [
        ('tensor = "images"', 'tensor = "pictures"', 1.0, ("pictures", "images")),
        ("size = [32, 32]", "size = [64, 64]", 1.0, ("64", "32")),
        ("", "", 0.5, ("steady.onnx",)),
    ],
    ids=["wrong name", "wrong shape", "truncated"],
)
def test_a_model_that_is_not_what_the_manifest_says(
    tmp_path: Path, scene: Scene, studio: Path, old: str, new: str, keep: float, mentions: tuple[str, ...]
) -> None:
    with Rig(tmp_path, scene) as rig:
        whole = (studio / "steady.onnx").read_bytes()
        model = whole[: int(keep * len(whole))]
        (tmp_path / "steady.onnx").write_bytes(model)
        text = (studio / "steady.toml").read_text().replace(old, new)
        digests = [hashlib.sha256(data).hexdigest() for data in (whole, model)]
        manifest = tmp_path / "steady.toml"
        manifest.write_text(text.replace(*digests))
        refused(rig, CONFIG, *mentions, words=("--set", f"policy.manifest={manifest}"))


def test_a_missing_clip(tmp_path: Path, scene: Scene) -> None:
    with Rig(tmp_path, scene) as rig:
        refused(rig, NO_INPUT, "nothing.avi", words=("--set", "camera.source=file://nothing.avi"))


def test_a_clip_of_another_size(tmp_path: Path, scene: Scene) -> None:
    with Rig(tmp_path, scene) as rig:
        refused(rig, CONFIG, "160", "320", words=("--set", "camera.width=320"))


def test_an_absent_camera(tmp_path: Path, scene: Scene) -> None:
    with Rig(tmp_path, scene) as rig:
        refused(rig, UNAVAILABLE, "/dev/video77", words=("--set", "camera.source=/dev/video77"))


def test_an_absent_port(tmp_path: Path, scene: Scene) -> None:
    with Rig(tmp_path, scene) as rig:
        refused(rig, UNAVAILABLE, "/dev/ttyNOTHING", words=("--set", "motor.port=/dev/ttyNOTHING"))


def test_a_port_that_is_no_port(tmp_path: Path, scene: Scene) -> None:
    with Rig(tmp_path, scene) as rig:
        refused(rig, UNAVAILABLE, "/dev/null", words=("--set", "motor.port=/dev/null"))


def test_a_port_where_nobody_is_home(tmp_path: Path, scene: Scene) -> None:
    with Rig(tmp_path, scene) as rig:
        """It hears HELLO and nothing else, as a modem or a GPS would."""
        ours, theirs = os.openpty()
        tty.setraw(ours)
        tty.setraw(theirs)
        try:
            refused(rig, UNAVAILABLE, "identify", words=("--set", f"motor.port={os.ttyname(theirs)}"))
            heard = WireReader().feed(os.read(ours, 65536))
        finally:
            os.close(ours)
            os.close(theirs)
        assert len(heard) > 10
        assert {frame.kind for frame in heard} == {"HELLO"}


def test_a_port_that_another_daemon_has(tmp_path: Path, scene: Scene) -> None:
    with Rig(tmp_path, scene) as rig:
        rig.start_driving()
        (tmp_path / "second").mkdir()
        with Rig(tmp_path / "second", scene, port=rig.port) as second:
            done = second.tell("--for", "5")
        assert done.returncode == UNAVAILABLE
        assert "in use" in done.stderr
        before = len(rig.read_wire())
        rig.wait_for("VELOCITY", after=before, count=5)
        # Not one frame of another's is among ours: each has the next number, and nobody said HELLO again.
        wire = [timed.frame for timed in rig.read_wire()]
        assert [frame.seq for frame in wire] == list(range(1, len(wire) + 1))
        assert "HELLO" not in [
            frame.kind for frame in itertools.dropwhile(lambda frame: frame.kind != "VELOCITY", wire)
        ]


def test_a_command_that_does_not_exist(tmp_path: Path, scene: Scene) -> None:
    with Rig(tmp_path, scene) as rig:
        done = rig.tell("dance")
        assert done.returncode == USAGE
        assert "dance" in done.stderr


@pytest.mark.parametrize(
    ("words", "mentions"),
    [
        (("--fault", "SIGSTOP@1s"), ("--fault", "camera.source", "sim://")),
        (("--fault", "SIGSTOP", *SIMULATED), ("--fault 'SIGSTOP'", "SIGSTOP@4s")),
        (("--fault", "", *SIMULATED), ("--fault ''", "SIGSTOP@4s")),
        (("--lockstep", "--set", "motor.port=sim://"), ("--lockstep", "camera.source")),
        (("--wire", "wire.bin", *SIMULATED), ("--wire", "--lockstep")),
        (("--lockstep", "--fault", "SIGSTOP@1s", *SIMULATED), ("--fault", "--lockstep")),
        (("--lockstep", "--for", "3", *SIMULATED), ("--for", "--lockstep")),
        (("--seed", "one"), ("--seed",)),
    ],
)
def test_words_that_cannot_be_meant(
    tmp_path: Path, scene: Scene, words: tuple[str, ...], mentions: tuple[str, ...]
) -> None:
    """One line and nothing before it: a daemon that had started would have said so."""
    with Rig(tmp_path, scene) as rig:
        done = rig.tell(*words)
        assert done.returncode == USAGE
        (said,) = done.stderr.splitlines()
        assert all(mention in said for mention in mentions), said
        assert not (rig.folder / "wire.bin").exists()
        assert rig.read_wire() == []


@pytest.mark.parametrize("word", ["stop", "arm", "disarm", "status"])
def test_asking_where_no_daemon_runs(tmp_path: Path, scene: Scene, word: str) -> None:
    with Rig(tmp_path, scene) as rig:
        done: subprocess.CompletedProcess[str] = rig.tell(word)
        assert done.returncode == UNAVAILABLE
        assert "No daemon answers" in done.stderr
