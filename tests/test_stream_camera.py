"""Cameras behind GStreamer and FFmpeg: how they are read, with an OpenCV that lies, hangs and ends."""

from __future__ import annotations

import queue
import threading
import time
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mvla_daemon.cameras.base import CameraError, PictureError
from mvla_daemon.cameras.capture import CaptureThread
from mvla_daemon.cameras.gstreamer import csi_elements, pipeline_camera
from mvla_daemon.cameras.rtsp import rtsp_camera
from mvla_daemon.cameras.slot import NewestFrameSlot
from mvla_daemon.cameras.stream import Stream, StreamCamera
from mvla_daemon.cameras.stream_clock import StreamClock

if TYPE_CHECKING:
    from collections.abc import Callable

    from numpy.typing import NDArray

pytest.importorskip("cv2")
HEIGHT, WIDTH = 48, 64
MS = 1_000_000
SECOND = 1000 * MS
HANG, END = "hang", "end"
PATIENCE_S = 20.0


class Video:
    """OpenCV's capture of a stream: gives what is put in, and waits as long as nothing is."""

    def __init__(self) -> None:
        self.pictures: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.release = threading.Event()
        self.position_ms = 0.0
        self._now: Any = None

    def put(self, value: int, position_ms: float, shape: tuple[int, ...] = (HEIGHT, WIDTH, 3)) -> None:
        self.pictures.put((position_ms, np.full(shape, value, np.uint8)))

    def grab(self) -> bool:
        given = self.pictures.get()
        if given is HANG:
            self.release.wait()
        if given in (HANG, END):
            return False
        self.position_ms, self._now = given
        return True

    def get(self, _key: int) -> float:
        return self.position_ms

    def retrieve(self, into: NDArray[np.uint8] | None = None) -> tuple[bool, Any]:
        if into is None or into.shape != self._now.shape:
            return True, self._now
        into[:] = self._now
        return True, into


def camera_of(
    *videos: Video | Callable[[], Any], settle_ns: int = 0, open_s: float = PATIENCE_S, read_s: float = PATIENCE_S
) -> StreamCamera:
    """A camera that gets the next of `videos` at each opening."""
    left = list(videos)

    def open_next(_cv2: Any) -> Any:
        one = left.pop(0)
        return one if isinstance(one, Video) else one()

    stream = Stream("camera x", open_next, "see its cable", "see its power", settle_ns, open_s, read_s)
    return StreamCamera(stream, WIDTH, HEIGHT)


def opened(video: Video, **limits: Any) -> StreamCamera:
    """Open it with the two pictures that an opening takes."""
    video.put(1, 0)
    video.put(2, 20)
    camera = camera_of(video, **limits)
    camera.open()
    return camera


def blank() -> NDArray[np.uint8]:
    return np.zeros((HEIGHT, WIDTH, 3), np.uint8)


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.001)


# --- its clock


def test_pictures_that_waited_in_a_queue_keep_the_age_that_they_have() -> None:
    clock = StreamClock()
    for number in range(10):
        assert clock.captured_ns(number * 40 * MS, SECOND + number * 40 * MS) == SECOND + number * 40 * MS
    for number in range(10, 20):  # half a second of nothing, then all at once
        captured_ns = clock.captured_ns(number * 40 * MS, SECOND + 900 * MS + number)
        assert captured_ns == pytest.approx(SECOND + number * 40 * MS, abs=0.2 * MS)


def test_a_picture_that_was_late_on_its_way_is_older_than_its_arrival() -> None:
    clock = StreamClock()
    clock.captured_ns(0, SECOND)
    assert clock.captured_ns(33 * MS, SECOND + 60 * MS) == pytest.approx(SECOND + 33 * MS, abs=0.1 * MS)
    assert clock.captured_ns(66 * MS, SECOND + 66 * MS) == pytest.approx(SECOND + 66 * MS, abs=0.1 * MS)


@pytest.mark.parametrize("ppm", [-150, 150])
def test_a_camera_whose_clock_runs_otherwise_does_not_age(ppm: int) -> None:
    clock = StreamClock()
    for number in range(0, 3600 * 25, 25):  # an hour, a picture a second
        returned_ns = number * 40 * MS
        stream_ns = returned_ns + returned_ns * ppm // 1_000_000
        assert 0 <= returned_ns - clock.captured_ns(stream_ns, returned_ns) <= MS


def test_a_queue_that_grows_shows_as_age() -> None:
    """A reader that is too slow by a hundredth: 36 s behind after an hour, were it not stopped for."""
    clock = StreamClock()
    ages_ms = [
        (returned_ns - clock.captured_ns(returned_ns * 99 // 100, returned_ns)) / MS
        for returned_ns in range(0, 20 * SECOND, 40 * MS)
    ]
    assert ages_ms[0] == 0
    assert 190 < ages_ms[-1] < 200


def test_only_a_stream_that_stays_behind_is_behind() -> None:
    clock = StreamClock()
    clock.captured_ns(0, SECOND)
    for at_ms in range(0, 4900, 50):  # times that jumped back by 0.2 s
        clock.captured_ns((at_ms - 200) * MS, SECOND + at_ms * MS)
        assert not clock.is_behind(SECOND + at_ms * MS)
    clock.captured_ns(4950 * MS, SECOND + 5000 * MS)  # it was a stall
    assert not clock.is_behind(SECOND + 9999 * MS)
    clock.captured_ns(9700 * MS, SECOND + 10_001 * MS)
    assert clock.is_behind(SECOND + 10_001 * MS)


# --- reading


def test_only_the_newest_picture_is_given() -> None:
    video = Video()
    camera = opened(video)
    for number in range(3, 9):
        video.put(number, number * 20)
    wait_until(video.pictures.empty)
    time.sleep(0.02)
    pixels = blank()
    capture = camera.read(pixels)
    assert (pixels == 8).all()
    assert camera.clock == "stream"
    assert capture.number == 6
    video.put(9, 9 * 20)
    assert camera.read(pixels).captured_ns > capture.captured_ns
    assert (pixels == 9).all()
    camera.close()


def test_a_stream_without_times_has_those_of_its_reads() -> None:
    video = Video()
    video.put(1, 0)
    video.put(2, 0)
    camera = camera_of(video)
    camera.open()
    before_ns = time.monotonic_ns()
    video.put(3, 0)
    capture = camera.read(blank())
    assert before_ns <= capture.captured_ns <= time.monotonic_ns()
    assert camera.clock == "read returned"
    camera.close()


def test_pictures_from_before_the_opening_are_thrown_away() -> None:
    """Servers begin with what they have: those pictures come at once, and then one each 20 ms."""
    video = Video()
    for number in range(50):
        video.put(100 + number, number * 20)
    camera = camera_of(video, settle_ns=50 * MS)
    opener = threading.Thread(target=camera.open)
    opener.start()
    number = 50
    while opener.is_alive():
        video.put(10, number * 20)
        number += 1
        time.sleep(0.02)
    opener.join()
    video.put(200, number * 20)
    pixels = blank()
    wait_until(video.pictures.empty)
    capture = camera.read(pixels)
    assert pixels[0, 0, 0] in {10, 200}
    assert time.monotonic_ns() - capture.captured_ns < SECOND
    camera.close()


def test_a_picture_of_another_size_is_no_picture_and_the_stream_goes_on() -> None:
    video = Video()
    camera = opened(video)
    video.put(3, 40, shape=(HEIGHT, WIDTH))
    with pytest.raises(PictureError):
        camera.read(blank())
    video.put(4, 60)
    camera.read(blank())
    camera.close()


def test_a_stream_of_another_size_is_refused_with_both() -> None:
    video = Video()
    video.put(1, 0, shape=(HEIGHT, 2 * WIDTH, 3))
    with pytest.raises(CameraError, match="gives 128x48, but the configuration says 64x48 in BGR") as caught:
        camera_of(video).open()
    assert caught.value.exit_code == 78


def test_a_stream_that_ends_is_lost_after_its_last_picture() -> None:
    video = Video()
    camera = opened(video)
    video.put(3, 40)
    video.pictures.put(END)
    camera.read(blank())
    with pytest.raises(CameraError, match="camera x gives no picture any more: see its cable"):
        camera.read(blank())
    camera.close()
    with pytest.raises(CameraError, match="closed"):
        camera.read(blank())


@pytest.mark.meanwhile
def test_a_stream_whose_times_jump_back_is_old_and_then_opened_again() -> None:
    video = Video()
    camera = opened(video)
    began_s = time.monotonic()

    def feed() -> None:
        while camera.clock == "stream" and time.monotonic() < began_s + PATIENCE_S / 2:
            video.put(3, (time.monotonic() - began_s) * 1000 - 200)
            time.sleep(0.05)

    ages_ms: list[float] = []

    def read_on() -> None:
        while True:
            captured_ns = camera.read(blank()).captured_ns
            ages_ms.append((time.monotonic_ns() - captured_ns) / MS)

    feeder = threading.Thread(target=feed)
    feeder.start()
    try:
        with pytest.raises(CameraError, match="behind for seconds, or its times have jumped"):
            read_on()
    finally:
        camera.clock = "ended"
        feeder.join()
    assert min(ages_ms) > 190
    assert 4 < time.monotonic() - began_s < 8


def test_what_a_library_raises_is_told_without_its_words() -> None:
    def failing() -> Any:
        raise ValueError("rtsp://me:secret@host")

    with pytest.raises(CameraError, match="camera x failed: ValueError") as caught:
        camera_of(failing).open()
    assert "secret" not in str(caught.value)


# --- hanging


def test_a_read_that_hangs_ends_in_its_time_and_the_next_opening_does_not_wait_for_it() -> None:
    stuck, fine = Video(), Video()
    for video in (stuck, fine):
        video.put(1, 0)
        video.put(2, 20)
    camera = camera_of(stuck, fine, read_s=0.05)
    camera.open()
    stuck.pictures.put(HANG)
    with pytest.raises(CameraError, match=r"gave no picture for 0\.05 s: see its cable"):
        camera.read(blank())
    camera.close()
    camera.open()
    fine.put(3, 40)
    camera.read(blank())
    camera.close()
    stuck.release.set()


@pytest.mark.alone
def test_an_opening_that_hangs_ends_in_its_time_and_not_more_than_three_are_left_hanging() -> None:
    release = threading.Event()

    def hanging() -> Any:
        release.wait()
        raise CameraError("too late")

    video = Video()
    video.put(1, 0)
    video.put(2, 20)
    camera = camera_of(hanging, hanging, hanging, video, open_s=0.02)
    before = threading.active_count()
    for _ in range(3):
        with pytest.raises(CameraError, match=r"no picture within 0\.02 s: see its power"):
            camera.open()
    for _ in range(2):
        with pytest.raises(CameraError, match="3 earlier attempts still hang inside OpenCV; start the daemon again"):
            camera.open()
    assert threading.active_count() == before + 3
    release.set()
    wait_until(lambda: threading.active_count() == before)
    camera.open()
    camera.close()


@pytest.mark.parametrize("when", ["opening", "reading"])
def test_closing_ends_a_wait_at_once(when: str) -> None:
    video = Video()
    if when == "reading":
        camera = opened(video)
        wait: Callable[[], Any] = lambda: camera.read(blank())  # noqa: E731 - one or the other
    else:
        camera = camera_of(video)
        wait = camera.open
    video.pictures.put(HANG)
    caught: list[str] = []

    def waiting() -> None:
        with pytest.raises(CameraError) as error:
            wait()
        caught.append(str(error.value))

    thread = threading.Thread(target=waiting)
    thread.start()
    time.sleep(0.02)
    camera.close()
    thread.join(PATIENCE_S / 2)
    assert not thread.is_alive()
    assert caught == ["camera x is closed"]
    video.release.set()


@pytest.mark.alone
def test_a_capture_thread_ends_while_the_library_hangs() -> None:
    stuck = Video()
    stuck.pictures.put(HANG)
    slot = NewestFrameSlot(HEIGHT, WIDTH)
    capture = CaptureThread(camera_of(stuck), slot, lambda: None, on_event=lambda *_: None)
    capture.start()
    wait_until(stuck.pictures.empty)
    began_s = time.monotonic()
    capture.stop()
    assert time.monotonic() - began_s < 1
    assert not [thread for thread in threading.enumerate() if thread.name == "capture"]
    stuck.release.set()


# --- what is asked of OpenCV


def test_the_pipeline_of_a_csi_camera() -> None:
    assert csi_elements(1, 1280, 720, 59.94, 4) == (
        "nvarguscamerasrc sensor-id=1 sensor-mode=4 ! "
        "video/x-raw(memory:NVMM),width=1280,height=720,framerate=2997/50 ! nvvidconv ! video/x-raw,format=BGRx"
    )
    assert csi_elements(0, 640, 480, 30, None).startswith("nvarguscamerasrc sensor-id=0 ! ")


def test_without_gstreamer_a_pipeline_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "  GStreamer:                   NO\n")
    with pytest.raises(CameraError, match=r"python3-opencv.*--system-site-packages") as caught:
        pipeline_camera("v4l2src", WIDTH, HEIGHT).open()
    assert caught.value.exit_code == 69


def test_without_ffmpeg_a_network_camera_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    cv2 = pytest.importorskip("cv2")
    monkeypatch.setattr(cv2, "getBuildInformation", lambda: "    FFMPEG:                      NO\n")
    with pytest.raises(CameraError, match="gst:rtspsrc") as caught:
        rtsp_camera("rtsp://me:secret@host/1", WIDTH, HEIGHT).open()
    assert caught.value.exit_code == 69
    assert "secret" not in str(caught.value)


def test_no_name_of_a_camera_has_its_password() -> None:
    for address in ("rtsp://me:secret@host:554/secret?password=secret", "rtsp://me:secret@[fe80::1]/1"):
        name = rtsp_camera(address, WIDTH, HEIGHT).name
        assert "secret" not in name
        assert name in {"camera rtsp://host:554", "camera rtsp://[fe80::1]"}
    assert pipeline_camera("rtspsrc user-pw=secret ! decodebin", WIDTH, HEIGHT).name == "pipeline rtspsrc"
