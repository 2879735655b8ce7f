"""The newest-frame slot and the cameras: on clips that OpenCV really wrote, and on devices that are no cameras."""

from __future__ import annotations

import os
import sys
import threading
import time
import zlib
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mvla_daemon.cameras.base import CameraError, PictureError
from mvla_daemon.cameras.file import FileCamera
from mvla_daemon.cameras.slot import NewestFrameSlot
from mvla_daemon.cameras.v4l2 import V4l2Camera, decode_jpeg
from mvla_daemon.errors import DaemonError
from mvla_daemon.opencv import load_opencv
from tests.nobody import as_nobody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

WIDTH, HEIGHT, LENGTH = 64, 48, 12
ROAD = Path(__file__).parents[2] / "shared" / "data" / "road.mp4"


@pytest.fixture(scope="module")
def make_clip(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """Writes a clip whose picture number n is an even grey of 20 n + 10."""
    cv2 = pytest.importorskip("cv2")
    folder = tmp_path_factory.mktemp("clips")

    def make(fps: float, length: int = LENGTH) -> Path:
        path = folder / f"{fps}_{length}.avi"
        writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), fps, (WIDTH, HEIGHT))
        for number in range(length):
            writer.write(np.full((HEIGHT, WIDTH, 3), 20 * number + 10, np.uint8))
        writer.release()
        return path

    return make


@pytest.fixture
def opened(make_clip: Callable[..., Path]) -> Iterator[FileCamera]:
    camera = FileCamera(make_clip(50), WIDTH, HEIGHT, 50)
    camera.open()
    yield camera
    camera.close()


def blank() -> NDArray[np.uint8]:
    return np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def shown_number(pixels: NDArray[np.uint8]) -> int:
    assert int(pixels.max()) - int(pixels.min()) <= 6
    return round((float(pixels.mean()) - 10) / 20)


# --- the slot


def test_slot_gives_each_frame_once_and_the_newest_only() -> None:
    slot = NewestFrameSlot(2, 3)
    assert slot.take() is None
    for value in (1, 2, 3):
        slot.writable()[:] = value
        slot.publish(captured_ns=value * 100, number=value * 10, crc=value * 7, arrived_ns=value * 5)
    frame = slot.take()
    assert frame is not None
    assert (frame.captured_ns, frame.number, frame.sequence, frame.crc) == (300, 30, 3, 21)
    assert frame.pixels.shape == (2, 3, 3)
    assert (frame.pixels == 3).all()
    assert frame.arrived_ns == 15
    assert slot.overwritten == 2
    assert slot.take() is None


def test_taken_pixels_stand_while_the_writer_goes_on() -> None:
    slot = NewestFrameSlot(4, 4)
    slot.writable()[:] = 9
    slot.publish(1, 1, 1, 1)
    frame = slot.take()
    assert frame is not None
    buffers = {id(frame.pixels)}
    for value in range(20, 30):
        slot.writable()[:] = value
        buffers.add(id(slot.writable()))
        slot.publish(value, value, value, value)
        assert (frame.pixels == 9).all()
    assert slot.overwritten == 9
    assert len(buffers) == 3
    newest = slot.take()
    assert newest is not None
    assert (newest.pixels == 29).all()


def test_slot_never_tears_under_a_hammering_writer() -> None:
    slot = NewestFrameSlot(120, 160)
    count = 4000
    done = threading.Event()

    def write() -> None:
        for number in range(1, count + 1):
            slot.writable().fill(number % 251)
            slot.publish(number, number, 0, number)
        done.set()

    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-5)
    writer = threading.Thread(target=write)
    try:
        writer.start()
        taken = 0
        last = 0
        while last < count:
            over = done.is_set()
            frame = slot.take()
            assert frame is not None or not over
            if frame is None:
                continue
            taken += 1
            assert frame.sequence == frame.number > last
            last = frame.sequence
            first = zlib.crc32(frame.pixels.data)
            assert (frame.pixels == frame.number % 251).all()
            assert zlib.crc32(frame.pixels.data) == first
    finally:
        sys.setswitchinterval(switch_s)
        writer.join()
    assert taken + slot.overwritten == count


# --- clips


def test_clip_plays_in_order_and_loops_on_the_clips_own_grid(opened: FileCamera) -> None:
    pixels = blank()
    captured: list[int] = []
    for turn in range(2 * LENGTH + 3):
        capture = opened.read(pixels)
        assert capture.captured_ns <= time.monotonic_ns()
        assert capture.number == shown_number(pixels) == turn % LENGTH
        captured.append(capture.captured_ns)
    gaps_ns = np.diff(captured)
    assert (gaps_ns > 0).all()
    assert (gaps_ns % 20_000_000 == 0).all()
    assert opened.clock == "paced file"


def test_missed_due_times_are_left_out(opened: FileCamera) -> None:
    pixels = blank()
    before = opened.read(pixels)
    time.sleep(0.13)
    late = opened.read(pixels)
    assert late.captured_ns >= before.captured_ns + 120_000_000
    assert late.number == before.number + 1
    after = opened.read(pixels)
    assert after.captured_ns >= late.captured_ns + 20_000_000
    assert time.monotonic_ns() >= after.captured_ns


def test_decoding_waits_for_the_second_half_of_the_period(make_clip: Callable[..., Path]) -> None:
    camera = FileCamera(make_clip(5), WIDTH, HEIGHT, 5)
    camera.open()
    pixels = blank()
    before = camera.read(pixels)
    pixels[:] = 255
    reader = threading.Thread(target=camera.read, args=(pixels,))
    reader.start()
    try:
        while (pixels == 255).all():
            time.sleep(0.001)
        touched_ns = time.monotonic_ns()  # after a look that may itself have come late, so never too early
    finally:
        reader.join()
    assert touched_ns >= before.captured_ns + 100_000_000
    assert shown_number(pixels) == 1


def test_a_rate_within_one_percent_is_the_same(make_clip: Callable[..., Path]) -> None:
    FileCamera(make_clip(29.97), WIDTH, HEIGHT, 30).open()
    with pytest.raises(CameraError):
        FileCamera(make_clip(29.97), WIDTH, HEIGHT, 30.5).open()


@pytest.mark.parametrize(
    ("width", "height", "fps", "says"),
    [(640, 48, 50, "640x48 at 50 fps"), (64, 480, 50, "64x480 at 50 fps"), (64, 48, 25, "64x48 at 25 fps")],
)
def test_a_clip_of_other_size_or_rate_is_refused_with_both_sides(
    make_clip: Callable[..., Path], width: int, height: int, fps: int, says: str
) -> None:
    with pytest.raises(CameraError) as caught:
        FileCamera(make_clip(50), width, height, fps).open()
    assert caught.value.exit_code == 78
    assert f"64x48 at 50 fps, but the configuration says {says}" in str(caught.value)
    assert "camera.width = 64, camera.height = 48 and camera.fps = 50" in str(caught.value)


def test_a_clip_that_is_not_there_is_no_input(tmp_path: Path) -> None:
    for path, why in ((tmp_path / "none.avi", "No such file"), (tmp_path, "directory")):
        with pytest.raises(CameraError, match=why) as caught:
            FileCamera(path, WIDTH, HEIGHT, 50).open()
        assert caught.value.exit_code == 66


@pytest.mark.parametrize("kept", [0, 100, 4000])
def test_a_clip_without_a_picture_is_refused(make_clip: Callable[..., Path], tmp_path: Path, kept: int) -> None:
    path = tmp_path / "cut.avi"
    path.write_bytes(make_clip(50).read_bytes()[:kept])
    with pytest.raises(CameraError, match="no picture") as caught:
        FileCamera(path, WIDTH, HEIGHT, 50).open()
    assert caught.value.exit_code == 66


def test_a_clip_that_vanishes_from_the_disk_under_the_player_raises(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "shrinks.avi"
    noise = np.random.default_rng(1).integers(0, 256, (240, 320, 3), np.uint8)  # too much for a reader's buffer
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 200, (320, 240))
    for _ in range(20):
        writer.write(noise)
    writer.release()
    camera = FileCamera(path, 320, 240, 200)
    camera.open()
    pixels = np.zeros((240, 320, 3), np.uint8)
    camera.read(pixels)
    path.write_bytes(b"")

    def play() -> None:
        for _ in range(60):
            camera.read(pixels)

    with pytest.raises(CameraError, match="no longer be decoded"):
        play()


def test_a_closed_clip_raises_and_opens_again(opened: FileCamera) -> None:
    pixels = blank()
    opened.read(pixels)
    opened.close()
    opened.close()
    with pytest.raises(CameraError, match="closed"):
        opened.read(pixels)
    opened.open()
    assert opened.read(pixels).number == 0


def test_closing_under_a_read_harms_nobody(make_clip: Callable[..., Path]) -> None:
    camera = FileCamera(make_clip(10), WIDTH, HEIGHT, 10)
    for _ in range(3):
        camera.open()
        pixels = blank()
        reader = threading.Thread(target=camera.read, args=(pixels,))
        reader.start()
        camera.close()
        reader.join()


@pytest.mark.skipif(not ROAD.exists(), reason="the recorded road is not here")
def test_the_recorded_road_plays_as_it_was_filmed() -> None:
    pytest.importorskip("cv2")
    camera = FileCamera(ROAD, 960, 540, 25)
    camera.open()
    pixels = np.zeros((540, 960, 3), np.uint8)
    captures = [camera.read(pixels) for _ in range(8)]
    assert [capture.number for capture in captures] == list(range(8))
    assert all(gap % 40_000_000 == 0 for gap in np.diff([capture.captured_ns for capture in captures]))
    assert pixels.max() > 100


def test_without_opencv_a_sentence_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    clip = tmp_path / "clip.avi"
    clip.touch()
    for camera in (FileCamera(clip, 64, 48, 50), V4l2Camera("/dev/video0", 64, 48, 50)):
        with pytest.raises(DaemonError) as caught:
            camera.open()
        assert caught.value.exit_code == 69
        assert "pip install 'mvla-daemon[opencv]'" in str(caught.value)
        assert "--system-site-packages" in str(caught.value)


# --- V4L2


def test_an_absent_camera_is_named(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    camera = V4l2Camera(str(tmp_path / "video9"), 640, 480, 30)
    for _ in range(2):
        with pytest.raises(CameraError, match=r"video9 is not there .*plug it in, or set camera\.source") as caught:
            camera.open()
        assert caught.value.exit_code == 69
        camera.close()
    with pytest.raises(CameraError, match="closed"):
        camera.read(blank())


@pytest.mark.parametrize("device", ["/dev/null", __file__])
def test_what_is_no_camera_is_said_to_be_none(device: str) -> None:
    pytest.importorskip("cv2")
    with pytest.raises(CameraError, match=f"{device} is not a camera") as caught:
        V4l2Camera(device, 640, 480, 30).open()
    assert caught.value.exit_code == 69


def test_a_camera_of_another_group_says_which_group(tmp_path: Path) -> None:
    pytest.importorskip("cv2")
    locked = tmp_path / "locked"
    locked.mkdir(mode=0)
    with as_nobody(), pytest.raises(CameraError, match="group video") as caught:
        V4l2Camera(str(locked / "video0"), 640, 480, 30).open()
    locked.chmod(0o700)
    assert caught.value.exit_code == 77


def test_a_jpeg_is_taken_whole_or_not_at_all() -> None:
    cv2 = pytest.importorskip("cv2")
    scene = cv2.resize(np.random.default_rng(2).integers(0, 256, (6, 8, 3), np.uint8), (WIDTH, HEIGHT))
    data = np.ascontiguousarray(cv2.imencode(".jpg", scene)[1]).reshape(-1)
    into = blank()
    for padded in (data, np.concatenate([data, np.zeros(500, np.uint8)])):
        into[:] = 0
        decode_jpeg(load_opencv(), padded, into)
        assert np.abs(into.astype(int) - scene).mean() < 6
    untouched = np.full((HEIGHT, WIDTH, 3), 77, np.uint8)
    for kept in (0, 2, 100, 400, data.size // 2, data.size * 3 // 4, data.size - 2, data.size - 1):
        with pytest.raises(PictureError):
            decode_jpeg(load_opencv(), data[:kept], untouched)
    with pytest.raises(PictureError):
        decode_jpeg(load_opencv(), data, np.zeros((HEIGHT, WIDTH + 1, 3), np.uint8))
    assert (untouched == 77).all()


@pytest.mark.skipif("MVLA_TEST_CAMERA" not in os.environ, reason="MVLA_TEST_CAMERA names no camera")
def test_a_real_camera_gives_pictures_with_the_kernels_times() -> None:
    device, width, height, fps = os.environ["MVLA_TEST_CAMERA"].split(",")  # for instance /dev/video0,640,480,30
    camera = V4l2Camera(device, int(width), int(height), float(fps))
    camera.open()
    pixels = np.zeros((int(height), int(width), 3), np.uint8)
    last_ns = 0
    for number in range(1, 20):
        capture = camera.read(pixels)
        assert capture.number == number
        assert last_ns < capture.captured_ns <= time.monotonic_ns()
        last_ns = capture.captured_ns
        assert pixels.max() > pixels.min()
    assert camera.clock == "kernel"
    camera.close()
    with pytest.raises(CameraError, match=r"camera\.width"):
        V4l2Camera(device, int(width) + 7, int(height), float(fps)).open()
