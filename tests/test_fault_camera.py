"""Faults of the camera, each in the middle of a drive, judged by what arrives at the motor controller."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from mvla_daemon.cameras import v4l2, v4l2_nodes
from mvla_daemon.cameras.base import CameraError
from mvla_daemon.cameras.capture import CaptureThread
from mvla_daemon.cameras.slot import NewestFrameSlot
from mvla_daemon.cameras.v4l2 import V4l2Camera
from tests.proving import CAMERA_LOST, FRAME_FROZEN, FRAME_STALE, LONG, drives_on, latched, provoke, stop_record
from tests.rig import PATIENCE_S, GroundRig, reasons

HEIGHT, WIDTH = 120, 160


# --- on the wire ---


@pytest.mark.beside
def test_a_camera_that_is_gone_is_stale_then_lost_and_is_opened_again(ground: GroundRig) -> None:
    told = len(ground.events("camera_back"))
    provoke(ground, lambda: ground.order("camera gone"), FRAME_STALE, CAMERA_LOST)
    assert latched(ground) == "camera_lost"
    ground.order("camera back")
    ground.wait_until(lambda: len(ground.events("camera_back")) > told, "camera")
    ground.arm()


@pytest.mark.beside
def test_a_read_that_blocks_is_stale_then_lost_and_holds_up_nobody(ground: GroundRig) -> None:
    wire = provoke(ground, lambda: ground.order("camera silent on"), FRAME_STALE)
    assert ground.ask("status")["reason"] in {"frame_stale", "camera_lost"}
    pid, before = ground.policy_pid(), len(ground.read_wire()) - len(wire)
    ground.wait_until(lambda: reasons(ground, before)[-1] == CAMERA_LOST, "loss of the camera")
    ground.order("camera silent off")
    ground.arm()
    assert ground.policy_pid() == pid  # its loop did not wait for the read


@pytest.mark.beside
def test_a_picture_that_a_driver_repeats_for_ever_is_frozen(ground: GroundRig) -> None:
    began_ns = 0

    def freeze() -> None:
        nonlocal began_ns
        began_ns = time.monotonic_ns()
        ground.order("camera freeze on")

    wire = provoke(ground, freeze, FRAME_FROZEN)
    stop = next(timed for timed in wire if timed.kind == "STOP")
    assert stop.at_ns - began_ns >= 400_000_000  # for frozen_after_ms it may be a coincidence
    assert latched(ground) == "frame_frozen"


@pytest.mark.parametrize(
    "fault",
    [
        "camera black on",
        pytest.param("camera repeat on", marks=LONG),
        "camera backwards on",
        "camera skew 100",  # a picture that arrives late may be as young as it says
    ],
)
@pytest.mark.beside
def test_no_command_comes_from_a_picture_that_is_black_or_of_an_impossible_time(ground: GroundRig, fault: str) -> None:
    """The last good picture is held until it is too old; the bad ones are never counted as frozen."""
    wire = provoke(ground, lambda: ground.order(fault), FRAME_STALE)
    held = itertools.takewhile(lambda kind: kind == "VELOCITY", (timed.kind for timed in wire))
    # One for each T until max_frame_age; one of a cycle that was under way, one of a picture that came before the first
    # bad one, and one that was written before the camera heard of it.
    assert len(list(held)) <= 200 // 50 + 3


@pytest.mark.beside
def test_a_camera_that_slows_down_in_the_dark_is_stopped_for_as_stale(ground: GroundRig) -> None:
    """What 7.5 pictures a second are for a max_frame_age of 100 ms: each is held until it is too old, no longer."""
    told = 0

    def slow_down() -> None:
        nonlocal told
        told = len(ground.events("stop"))
        ground.order("camera fps 3.75")

    provoke(ground, slow_down, FRAME_STALE)
    assert stop_record(ground, told)["reason"] == "frame_stale"


@pytest.mark.beside
def test_a_few_milliseconds_ahead_is_a_clocks_rounding(ground: GroundRig) -> None:
    drives_on(ground, lambda: ground.order("camera skew 4"))


# --- at the boundary to OpenCV and the file system: what takes a real USB camera ---


class Video:
    """What `cv2.VideoCapture` does with a device: it stays open however often a read fails.

    `script` has for each picture an array, or None for a grab that fails; the last one is repeated.
    """

    opened: list[str]
    script: list[np.ndarray[Any, Any] | None]
    fourcc = 0.0

    def __init__(self, path: str, _api: int) -> None:
        self.is_there = os.path.exists(path)  # noqa: PTH110 - as OpenCV gets it
        if self.is_there:
            self.opened.append(os.path.realpath(path))
        self._set = {cv2.CAP_PROP_FOURCC: self.fourcc, cv2.CAP_PROP_POS_MSEC: 0.0}
        self._now: np.ndarray[Any, Any] | None = None

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return self.is_there

    def set(self, key: int, value: float) -> bool:
        self._set[key] = value
        return True

    def get(self, key: int) -> float:
        return time.monotonic_ns() / 1e6 if key == cv2.CAP_PROP_POS_MSEC else self._set.get(key, 0.0)

    def grab(self) -> bool:
        self._now = self.script.pop(0) if len(self.script) > 1 else self.script[0]
        time.sleep(0.002)
        return self._now is not None

    def retrieve(self, into: np.ndarray[Any, Any] | None = None) -> tuple[bool, Any]:
        assert self._now is not None
        if into is None or into.shape != self._now.shape:
            return True, self._now
        into[:] = self._now
        return True, into


@pytest.fixture
def devices(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A /dev of our own with one USB camera, known by the port it hangs on."""
    (tmp_path / "dev/v4l/by-path").mkdir(parents=True)
    (tmp_path / "dev/video0").touch()
    (tmp_path / "dev/v4l/by-path/usb-port-2").symlink_to(tmp_path / "dev/video0")

    def there(path: str) -> Path:
        return Path(f"{tmp_path}{path}") if path.startswith("/dev/") else Path(path)

    def check(path: str) -> None:
        if not Path(path).exists():
            raise CameraError(f"camera {path} is not there")

    monkeypatch.setattr(v4l2_nodes, "Path", there)
    monkeypatch.setattr(v4l2, "check_node", check)
    monkeypatch.setattr(cv2, "VideoCapture", Video)
    Video.opened = []
    return tmp_path / "dev"


def picture(value: int) -> np.ndarray[Any, Any]:
    return np.full((HEIGHT, WIDTH, 3), value, np.uint8)


def test_a_camera_that_comes_back_under_another_number_is_found_by_its_port(devices: Path) -> None:
    """`isOpened()` stays true, each read fails at once; then the node is gone, and the camera is video2."""
    Video.script = [*map(picture, range(100, 104)), None]  # three of them at the opening
    Video.fourcc = 0.0
    slot = NewestFrameSlot(HEIGHT, WIDTH)
    events: list[str] = []
    camera = V4l2Camera(str(devices / "video0"), WIDTH, HEIGHT, 50)
    capture = CaptureThread(camera, slot, lambda: None, on_event=lambda name, _: events.append(name))
    capture.open_first()
    capture.start()
    try:
        _wait(lambda: events == ["camera_lost"])
        (devices / "video0").unlink()
        (devices / "v4l/by-path/usb-port-2").unlink()
        (devices / "video0").touch()  # another camera has got its number
        (devices / "video2").touch()
        Video.script = [picture(102), picture(103)]
        (devices / "v4l/by-path/usb-port-2").symlink_to(devices / "video2")
        _wait(lambda: events == ["camera_lost", "camera_back"])
    finally:
        capture.stop()
    assert Video.opened[0] == str(devices / "video0")
    assert Video.opened[-1] == str(devices / "video2")
    assert capture.counts["lost"] >= 1


def jpeg(height: int = HEIGHT) -> np.ndarray[Any, Any]:
    random = np.random.default_rng(3)
    scene = cv2.resize(random.integers(0, 256, (6, 8, 3), np.uint8), (WIDTH, height))
    return np.ascontiguousarray(cv2.imencode(".jpg", scene)[1]).reshape(-1)


@pytest.mark.parametrize(
    ("fourcc", "bad"),
    [
        ("MJPG", jpeg()[: jpeg().size // 2]),
        ("MJPG", jpeg(HEIGHT // 2)),
        ("MJPG", np.zeros(2000, np.uint8)),
        ("YUYV", np.full((HEIGHT, WIDTH // 2, 3), 90, np.uint8)),
        ("YUYV", np.full((HEIGHT, WIDTH, 4), 90, np.uint8)),
        ("YUYV", np.full((HEIGHT, WIDTH), 90, np.uint8)),
    ],
    ids=["cut short", "of another size", "no JPEG", "of another size", "of four channels", "of one channel"],
)
def test_a_damaged_picture_is_never_published_and_the_camera_stays_open(
    devices: Path, fourcc: str, bad: np.ndarray[Any, Any]
) -> None:
    good = jpeg() if fourcc == "MJPG" else picture(80)
    Video.script = [good, good, good, bad, bad, good, bad]
    Video.fourcc = float(int.from_bytes(fourcc.encode(), "little"))
    slot = NewestFrameSlot(HEIGHT, WIDTH)
    numbers: list[int] = []

    def on_frame() -> None:
        frame = slot.take()
        assert frame is not None
        numbers.append(frame.number)

    camera = V4l2Camera(str(devices / "video0"), WIDTH, HEIGHT, 50)
    capture = CaptureThread(camera, slot, on_frame, on_event=lambda *_: None)
    capture.open_first()  # takes the first three
    capture.start()
    try:
        _wait(lambda: capture.counts["malformed"] >= 5)
    finally:
        capture.stop()
    assert numbers == [3]
    assert len(Video.opened) == 1


def _wait(true: Any) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.002)
