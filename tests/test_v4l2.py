"""A V4L2 camera at the boundary to OpenCV and to the kernel: what is asked of a driver, and what it makes of it."""

from __future__ import annotations

import ctypes
import errno
import fcntl
import struct
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mvla_daemon.cameras import v4l2, v4l2_queries
from mvla_daemon.cameras.base import CameraError
from mvla_daemon.cameras.v4l2 import V4l2Camera

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

cv2 = pytest.importorskip("cv2")
HEIGHT, WIDTH = 48, 64
MS = 1_000_000
SHAPE = (HEIGHT, WIDTH, 3)


def code_of(name: str) -> int:
    return int.from_bytes(name.encode(), "little")


class Driver:
    """A camera in the form of `cv2.VideoCapture`: it takes what it is asked for, but for what is in `insists`.

    `waiting` pictures lie in its buffers; each later one takes 20 ms. `shapes` are those of its pictures, the last one
    again and again.
    """

    def __init__(self, **insists: float) -> None:
        self.insists = {getattr(cv2, f"CAP_PROP_{name}"): value for name, value in insists.items()}
        self.set_to: dict[int, float] = {cv2.CAP_PROP_FOURCC: code_of("YUYV"), cv2.CAP_PROP_BUFFERSIZE: 4}
        self.shapes: list[tuple[int, ...]] = [SHAPE]
        self.waiting = 0
        self.grabs = 0
        self.clock_ns: Callable[[], int] = time.monotonic_ns
        self.opened = 0

    def __call__(self, _path: str, _api: int) -> Driver:
        self.opened += 1
        return self

    def isOpened(self) -> bool:  # noqa: N802 - OpenCV's name
        return True

    def set(self, key: int, value: float) -> bool:
        self.set_to[key] = value
        return True

    def get(self, key: int) -> float:
        if key == cv2.CAP_PROP_POS_MSEC:
            return self.clock_ns() / 1e6
        return self.insists.get(key, self.set_to.get(key, 0.0))

    def grab(self) -> bool:
        self.grabs += 1
        if self.waiting:
            self.waiting -= 1
        else:
            time.sleep(0.02)
        return True

    def retrieve(self, into: Any = None) -> tuple[bool, Any]:
        shape = self.shapes.pop(0) if len(self.shapes) > 1 else self.shapes[0]
        if into is None or into.shape != shape:
            return True, np.full(shape, 90, np.uint8)
        into[:] = 90
        return True, into


@pytest.fixture
def told() -> list[str]:
    return []


@pytest.fixture
def attach(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, told: list[str]) -> Callable[..., V4l2Camera]:
    """Plug in a driver; what its camera tells is in `told`."""
    monkeypatch.setattr(v4l2, "check_node", lambda _path: None)

    def camera(driver: Driver, fps: float = 30, **settings: Any) -> V4l2Camera:
        monkeypatch.setattr(cv2, "VideoCapture", driver)
        return V4l2Camera(str(tmp_path / "video0"), WIDTH, HEIGHT, fps, tell=told.append, **settings)

    return camera


def test_format_size_rate_and_buffers_are_asked_for_and_nothing_is_told_when_given(
    attach: Callable[..., V4l2Camera], told: list[str]
) -> None:
    driver = Driver()
    attach(driver, pixel_format="UYVY", buffers=3).open()
    assert driver.set_to == {
        cv2.CAP_PROP_FOURCC: code_of("UYVY"),
        cv2.CAP_PROP_FRAME_WIDTH: WIDTH,
        cv2.CAP_PROP_FRAME_HEIGHT: HEIGHT,
        cv2.CAP_PROP_BUFFERSIZE: 3,
        cv2.CAP_PROP_FPS: 30,
    }
    assert told == []


def test_what_the_driver_changed_is_told_once_with_both(attach: Callable[..., V4l2Camera], told: list[str]) -> None:
    driver = Driver(FPS=60, BUFFERSIZE=4)
    camera = attach(driver)
    for _ in range(3):
        camera.open()
        camera.close()
    (sentence,) = told
    assert sentence.endswith(
        "video0: asked for 64x48 at 30 fps, buffers = 2; the driver gives 64x48 at 60 fps in YUYV, buffers = 4"
    )
    driver.insists[cv2.CAP_PROP_FPS] = 0
    camera.open()
    assert "at a rate that it does not tell in YUYV, buffers = 4" in told[1]
    driver.insists = {cv2.CAP_PROP_FPS: 29.97}
    camera.open()
    assert len(told) == 2


@pytest.mark.parametrize(
    ("insists", "says"),
    [
        ({"FRAME_WIDTH": 640}, "gives 640x48 at 30 fps in MJPG, but the configuration says 64x48 at 30 fps: set"),
        ({"FPS": 15}, "gives 64x48 at 15 fps in MJPG, but the configuration says 64x48 at 30 fps: set"),
    ],
)
def test_another_size_or_a_lower_rate_is_refused_after_motion_jpeg_was_tried(
    attach: Callable[..., V4l2Camera], insists: dict[str, float], says: str
) -> None:
    with pytest.raises(CameraError) as caught:
        attach(Driver(**insists)).open()
    assert says in str(caught.value)
    assert "camera.format" in str(caught.value)
    assert caught.value.exit_code == 78


def test_another_format_than_the_one_asked_for_is_refused(attach: Callable[..., V4l2Camera]) -> None:
    with pytest.raises(CameraError, match=r"at 30 fps in YUYV, but the configuration says .* in MJPG: set") as caught:
        attach(Driver(FOURCC=code_of("YUYV")), pixel_format="MJPG").open()
    assert caught.value.exit_code == 78


@pytest.mark.parametrize("shape", [(HEIGHT, WIDTH), (HEIGHT, WIDTH, 4), (HEIGHT, WIDTH // 2, 3)])
def test_a_format_that_gives_no_usable_picture_is_refused(
    attach: Callable[..., V4l2Camera], shape: tuple[int, ...]
) -> None:
    driver = Driver(FOURCC=code_of("Y16 "))
    driver.shapes = [shape]
    with pytest.raises(CameraError, match=r"pictures in Y16  that cannot be used .* set camera\.format") as caught:
        attach(driver).open()
    assert caught.value.exit_code == 78


def test_a_first_picture_may_be_torn(attach: Callable[..., V4l2Camera]) -> None:
    driver = Driver()
    driver.shapes = [(HEIGHT // 2, WIDTH, 3), (HEIGHT // 3, WIDTH, 3), SHAPE]
    camera = attach(driver)
    camera.open()
    assert camera.read(np.zeros(SHAPE, np.uint8)).number == 1


# --- its clock


def test_the_kernels_times_are_used_where_they_are_monotonic(attach: Callable[..., V4l2Camera]) -> None:
    driver = Driver()
    captured_ns = 0

    def stamp() -> int:
        nonlocal captured_ns
        captured_ns = (time.monotonic_ns() - 7 * MS) // 1000 * 1000
        return captured_ns

    driver.clock_ns = stamp
    camera = attach(driver)
    camera.open()
    assert camera.read(np.zeros(SHAPE, np.uint8)).captured_ns == captured_ns
    assert camera.clock == "kernel"


@pytest.mark.parametrize("clock_ns", [time.time_ns, lambda: 0, lambda: time.monotonic_ns() + 50 * MS])
def test_times_of_another_clock_are_not_used(attach: Callable[..., V4l2Camera], clock_ns: Callable[[], int]) -> None:
    driver = Driver()
    driver.clock_ns = clock_ns
    camera = attach(driver)
    camera.open()
    before_ns = time.monotonic_ns()
    assert before_ns < camera.read(np.zeros(SHAPE, np.uint8)).captured_ns <= time.monotonic_ns()
    assert camera.clock == "read returned"


def test_times_that_were_right_by_chance_are_not_used(attach: Callable[..., V4l2Camera]) -> None:
    """As a driver stamps them that tells the end of the frame beforehand."""
    driver = Driver()
    ahead_ns = iter([-2 * MS, 30 * MS, 31 * MS, 30 * MS])
    driver.clock_ns = lambda: time.monotonic_ns() + next(ahead_ns)
    camera = attach(driver)
    camera.open()
    assert camera.clock == "read returned"


def test_times_that_the_driver_itself_calls_unknown_are_not_used(
    attach: Callable[..., V4l2Camera], monkeypatch: pytest.MonkeyPatch
) -> None:
    camera = attach(Driver())
    monkeypatch.setattr(v4l2, "has_monotonic_times", lambda _path: False)
    camera.open()
    assert camera.clock == "read returned"


def test_without_the_kernels_times_pictures_that_lay_in_buffers_are_passed_over(
    attach: Callable[..., V4l2Camera],
) -> None:
    driver = Driver(BUFFERSIZE=3)
    driver.clock_ns = lambda: 0
    camera = attach(driver, buffers=2)  # what the driver has counts, not what was asked for
    camera.open()
    driver.waiting, driver.grabs = 3, 0
    camera.read(np.zeros(SHAPE, np.uint8))
    assert (driver.grabs, driver.waiting) == (4, 0)
    camera.read(np.zeros(SHAPE, np.uint8))
    assert driver.grabs == 5
    driver.waiting, driver.grabs = 1000, 0  # a driver that never waits must not keep the reader for ever
    camera.read(np.zeros(SHAPE, np.uint8))
    assert driver.grabs == 4


# --- what is asked by ioctl


class Control(ctypes.Structure):
    _fields_ = (("id", ctypes.c_uint32), ("value", ctypes.c_int32))


class Buffer(ctypes.Structure):
    """struct v4l2_buffer of videodev2.h on a 64-bit machine."""

    _fields_ = (
        *((name, ctypes.c_uint32) for name in ("index", "type", "bytesused", "flags", "field")),
        ("timestamp", ctypes.c_int64 * 2),
        ("timecode", ctypes.c_uint32 * 4),
        *((name, ctypes.c_uint32) for name in ("sequence", "memory")),
        ("m", ctypes.c_uint64),
        *((name, ctypes.c_uint32) for name in ("length", "reserved2", "request_fd")),
    )


def iowr(number: int, structure: type[ctypes.Structure]) -> int:
    """_IOWR('V', number, structure) of asm-generic/ioctl.h."""
    return 3 << 30 | ctypes.sizeof(structure) << 16 | ord("V") << 8 | number


@pytest.fixture
def kernel(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> tuple[str, dict[int, int], dict[int, int]]:
    """A device that answers G_CTRL from the first table and QUERYBUF, with flags, from the second."""
    node = tmp_path / "video0"
    node.touch()
    controls: dict[int, int] = {}
    buffers: dict[int, int] = {}

    def answer(_fd: int, request: int, question: bytes) -> bytes:
        if request == iowr(27, Control):
            control = Control.from_buffer_copy(question)
            if control.id in controls:
                return bytes(Control(control.id, controls[control.id]))
        elif request == iowr(9, Buffer):
            buffer = Buffer.from_buffer_copy(question)
            if buffer.type == 1 and buffer.index in buffers:
                buffer.flags = buffers[buffer.index]
                return bytes(buffer)
        raise OSError(errno.EINVAL, "no such thing")

    monkeypatch.setattr(fcntl, "ioctl", answer)
    return str(node), controls, buffers


def test_the_driver_says_what_clock_its_times_are_of(kernel: tuple[str, dict[int, int], dict[int, int]]) -> None:
    node, _, buffers = kernel
    assert v4l2_queries.has_monotonic_times(node) is None
    for flags, monotonic in ((0x2000, True), (0x12001, True), (0, False), (0x4000, False), (0x10001, False)):
        buffers[0] = flags
        assert v4l2_queries.has_monotonic_times(node) is monotonic


def test_buffers_are_counted(kernel: tuple[str, dict[int, int], dict[int, int]]) -> None:
    node, _, buffers = kernel
    assert v4l2_queries.buffer_count(node, 32) is None
    buffers.update(dict.fromkeys(range(5), 0x2000))
    assert v4l2_queries.buffer_count(node, 32) == 5
    assert v4l2_queries.buffer_count(node, 3) == 3


def test_a_camera_that_may_stretch_its_exposure_says_so(
    kernel: tuple[str, dict[int, int], dict[int, int]], attach: Callable[..., V4l2Camera], told: list[str]
) -> None:
    node, controls, buffers = kernel
    assert v4l2_queries.stretches_exposure(node) is None
    controls[0x009A0903] = 0  # V4L2_CID_EXPOSURE_AUTO_PRIORITY
    assert v4l2_queries.stretches_exposure(node) is False
    controls[0x009A0903] = 1
    buffers.update(dict.fromkeys(range(4), 0x2000))
    attach(Driver()).open()
    (sentence,) = told
    assert "asked for 64x48 at 30 fps, buffers = 2; the driver gives 64x48 at 30 fps in YUYV, buffers = 4;" in sentence
    assert f"v4l2-ctl -d {node} -c exposure_dynamic_framerate=0" in sentence


def test_what_is_no_camera_answers_nothing(tmp_path: Path) -> None:
    for path in ("/dev/null", str(tmp_path / "none")):
        assert v4l2_queries.has_monotonic_times(path) is None
        assert v4l2_queries.stretches_exposure(path) is None
        assert v4l2_queries.buffer_count(path, 32) is None
    assert struct.calcsize("P") == 8  # the layouts above are those of a 64-bit machine
