"""The capture thread against a camera that lies, fails, blocks and comes back."""

from __future__ import annotations

import os
import threading
import time
import zlib
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypeAlias

import numpy as np
import pytest

from mvla_daemon.cameras.base import CameraError, Capture, PictureError
from mvla_daemon.cameras.capture import CaptureThread
from mvla_daemon.cameras.file import FileCamera
from mvla_daemon.cameras.slot import Frame, NewestFrameSlot

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

    from numpy.typing import NDArray

    Step: TypeAlias = Callable[[NDArray[np.uint8]], Capture]

MS = 1_000_000
SECOND = 1000 * MS


class ScriptedCamera:
    """Each read does the script's next step; after the last one it blocks until the camera is closed."""

    name = "camera scripted"
    clock = "kernel"

    def __init__(self, *steps: Step, open_errors: tuple[Exception, ...] = ()) -> None:
        self.steps = list(steps)
        self.open_errors = list(open_errors)
        self.opened_ns: list[int] = []
        self.ended = threading.Event()
        self.closed = threading.Event()

    def open(self) -> None:
        self.opened_ns.append(time.monotonic_ns())
        self.closed.clear()
        if len(self.opened_ns) > 1 and self.open_errors:
            raise self.open_errors.pop(0)

    def read(self, into: NDArray[np.uint8]) -> Capture:
        if self.steps:
            return self.steps.pop(0)(into)
        self.ended.set()
        self.closed.wait()
        return picture()(into)

    def close(self) -> None:
        self.closed.set()


def picture(value: int = 100, *, ahead_ns: int = 0, at_ns: int | None = None, number: int = 0) -> Step:
    """A step that gives an even picture, captured `ahead_ns` from now or at `at_ns`."""

    def step(into: NDArray[np.uint8]) -> Capture:
        into[:] = value
        return Capture(time.monotonic_ns() + ahead_ns if at_ns is None else at_ns, number)

    return step


def failing(error: Exception) -> Step:
    def step(into: NDArray[np.uint8]) -> Capture:
        into[:] = 255
        raise error

    return step


@dataclass
class Seen:
    """What came out of a capture thread."""

    frames: list[tuple[Frame, int, int]] = field(default_factory=list)
    """Each frame, its first sample and its true CRC as they were at `on_frame`."""
    events: list[tuple[str, str]] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)

    @property
    def values(self) -> list[int]:
        return [value for _, value, _ in self.frames]

    @property
    def event_names(self) -> list[str]:
        return [name for name, _ in self.events]

    @property
    def faults(self) -> dict[str, int]:
        return {name: count for name, count in self.counts.items() if count and name != "published"}


def captured(
    camera: ScriptedCamera, *, latency_ns: int = 0, min_interval_ns: int = 0, frame_period_ns: int = 0
) -> Seen:
    """Run the camera's whole script and tell what came out."""
    seen = Seen()
    slot = NewestFrameSlot(48, 64)

    def on_frame() -> None:
        frame = slot.take()
        assert frame is not None
        seen.frames.append((frame, int(frame.pixels[0, 0, 0]), zlib.crc32(frame.pixels[::32].tobytes())))

    thread = CaptureThread(
        camera,
        slot,
        on_frame,
        on_event=lambda name, sentence: seen.events.append((name, sentence)),
        latency_ns=latency_ns,
        min_interval_ns=min_interval_ns,
        frame_period_ns=frame_period_ns,
    )
    thread.open_first()
    thread.start()
    assert camera.ended.wait(20)
    thread.stop()
    seen.counts = thread.counts
    assert seen.counts["published"] == len(seen.frames)
    return seen


def test_good_pictures_come_out_in_order_with_their_crc() -> None:
    seen = captured(ScriptedCamera(picture(40, number=7), picture(50, number=8)))
    assert seen.values == [40, 50]
    assert [frame.number for frame, _, _ in seen.frames] == [7, 8]
    assert all(frame.crc == crc for frame, _, crc in seen.frames)
    assert seen.frames[0][0].captured_ns < seen.frames[1][0].captured_ns <= time.monotonic_ns()
    assert (seen.faults, seen.events) == ({}, [])


def test_the_camera_is_read_before_ordinary_programs_run_where_that_is_granted() -> None:
    nice: list[int] = []

    def asking(into: NDArray[np.uint8]) -> Capture:
        nice.append(os.getpriority(os.PRIO_PROCESS, 0))
        return picture()(into)

    captured(ScriptedCamera(asking))
    at_first = os.getpriority(os.PRIO_PROCESS, 0)
    try:
        os.setpriority(os.PRIO_PROCESS, 0, -20)
    except PermissionError:
        pytest.skip("precedence is not granted here")
    os.setpriority(os.PRIO_PROCESS, 0, at_first)
    assert nice == [-20]


def test_hidden_delay_is_taken_off_the_capture_time() -> None:
    at_ns = time.monotonic_ns() + SECOND // 5

    def delayed(into: NDArray[np.uint8]) -> Capture:
        time.sleep(max(0, at_ns - time.monotonic_ns()) / 1e9)
        return picture(at_ns=at_ns)(into)

    seen = captured(ScriptedCamera(delayed), latency_ns=30 * MS)
    assert seen.frames[0][0].captured_ns == at_ns - 30 * MS


def test_repeated_and_backward_times_are_no_frames() -> None:
    times_ns: list[int] = []

    def shifted(value: int, by_ns: int) -> Step:
        """A picture captured so much after the script's first read, which is after the opening however slow that is."""

        def step(into: NDArray[np.uint8]) -> Capture:
            times_ns.append(time.monotonic_ns())
            return picture(value, at_ns=times_ns[0] + by_ns)(into)

        return step

    seen = captured(ScriptedCamera(shifted(101, 0), shifted(102, 0), shifted(103, -1), shifted(104, 1)))
    assert seen.values == [101, 104]
    assert seen.faults == {"time_repeated": 2}


def test_a_little_future_is_now_and_more_is_refused() -> None:
    seen = captured(
        ScriptedCamera(picture(101, ahead_ns=4 * MS), picture(102, ahead_ns=SECOND), picture(103, ahead_ns=50 * MS))
    )
    assert seen.values == [101]
    frame = seen.frames[0][0]
    assert frame.captured_ns <= frame.arrived_ns
    assert seen.faults == {"time_future": 2}


def test_one_leap_into_the_future_does_not_bar_what_follows() -> None:
    seen = captured(ScriptedCamera(picture(101, ahead_ns=3600 * SECOND), picture(102), picture(103)))
    assert seen.values == [102, 103]


@pytest.mark.parametrize(("value", "faults"), [(0, {"black": 1}), (15, {"black": 1}), (16, {})])
def test_a_black_picture_is_refused(value: int, faults: dict[str, int]) -> None:
    seen = captured(ScriptedCamera(picture(value)))
    assert seen.faults == faults


def test_one_lamp_in_the_dark_is_no_black_picture() -> None:
    def lamp(into: NDArray[np.uint8]) -> Capture:
        capture = picture(3)(into)
        into[16:33, 16:33] = 200
        return capture

    assert captured(ScriptedCamera(lamp)).faults == {}


def test_a_damaged_picture_is_left_out_and_the_camera_stays_open() -> None:
    camera = ScriptedCamera(picture(101), failing(PictureError("cut short")), picture(102))
    seen = captured(camera)
    assert seen.values == [101, 102]
    assert seen.faults == {"malformed": 1}
    assert (seen.events, len(camera.opened_ns)) == ([], 1)


def test_a_frozen_picture_is_published_with_its_crc_for_the_gate_to_judge() -> None:
    seen = captured(ScriptedCamera(*(picture(99) for _ in range(5))))
    assert len({frame.crc for frame, _, _ in seen.frames}) == 1
    assert len(seen.frames) == 5


def test_no_more_than_two_frames_in_a_control_period() -> None:
    seen = captured(ScriptedCamera(*(picture(100 + turn) for turn in range(6))), min_interval_ns=10 * SECOND)
    assert seen.values == [100, 101]
    assert seen.faults == {"too_fast": 4}


def test_frames_a_control_period_apart_all_pass() -> None:
    def spaced(value: int) -> Step:
        def step(into: NDArray[np.uint8]) -> Capture:
            time.sleep(0.01)
            return picture(value)(into)

        return step

    seen = captured(ScriptedCamera(*(spaced(100 + turn) for turn in range(6))), min_interval_ns=5 * MS)
    assert seen.values == [100, 101, 102, 103, 104, 105]


def test_a_lost_camera_is_said_once_reopened_and_back() -> None:
    camera = ScriptedCamera(
        picture(101),
        failing(CameraError("the cable is out")),
        picture(102),
        open_errors=(CameraError("not there"), OSError("nor now")),
    )
    seen = captured(camera)
    assert seen.values == [101, 102]
    assert seen.events[0] == ("camera_lost", "the cable is out")
    assert seen.event_names == ["camera_lost", "camera_back"]
    assert "camera scripted is back after" in seen.events[1][1]
    assert np.all(np.diff(camera.opened_ns)[1:] >= [200 * MS, 400 * MS])
    assert seen.faults == {"lost": 1}


def test_a_camera_that_opens_and_fails_at_once_is_one_loss_with_growing_pauses() -> None:
    gone = CameraError("no picture any more")
    camera = ScriptedCamera(*(failing(gone),) * 3, picture(101), failing(gone), picture(102))
    seen = captured(camera)
    assert seen.event_names == ["camera_lost", "camera_back"] * 2
    assert seen.faults == {"lost": 4}
    gaps_ns = np.diff(camera.opened_ns)
    assert np.all(gaps_ns >= [100 * MS, 200 * MS, 400 * MS, 100 * MS])
    assert gaps_ns[3] < gaps_ns[2]  # small again after a good picture


def test_whatever_a_driver_raises_it_is_opened_again() -> None:
    seen = captured(ScriptedCamera(failing(ValueError("odd")), picture(101)))
    assert seen.values == [101]
    assert seen.events[0] == ("camera_lost", "camera scripted failed: ValueError('odd')")


def test_pictures_from_before_a_reopening_are_never_used() -> None:
    camera = ScriptedCamera()

    def buffered(into: NDArray[np.uint8]) -> Capture:
        return picture(102, at_ns=camera.opened_ns[-1] - 50 * MS)(into)

    camera.steps = [picture(101), failing(CameraError("gone")), buffered, picture(103)]
    seen = captured(camera)
    assert seen.values == [101, 103]
    assert seen.faults == {"lost": 1, "old": 1}
    assert seen.event_names == ["camera_lost", "camera_back"]


def paced(gaps_ms: list[int]) -> ScriptedCamera:
    """A camera whose pictures are so far apart by their capture times, all of them after its opening."""
    camera = ScriptedCamera()

    def step(at_ms: int) -> Step:
        def read(into: NDArray[np.uint8]) -> Capture:
            at_ns = camera.opened_ns[0] + at_ms * MS // 100
            time.sleep(max(0, at_ns - time.monotonic_ns()) / 1e9)
            return picture(at_ns=at_ns)(into)

        return read

    camera.steps = [step(at_ms) for at_ms in np.cumsum([100, *gaps_ms]).tolist()]
    return camera


def test_a_camera_that_slows_down_in_the_dark_is_told_of_once_and_again_when_it_is_on_time() -> None:
    """In a hundredth of the time: 30 pictures a second, 7.5 in the dark, single gaps of pictures that got lost."""
    gaps_ms = [33] * 16 + [33, 33, 33, 100, 33, 33, 100, 33] * 2 + [133] * 24 + [33] * 16
    seen = captured(paced(gaps_ms), frame_period_ns=33 * MS // 100)
    assert seen.event_names == ["camera_slow", "camera_on_time"]
    assert "camera scripted gives 751.9 pictures a second instead of 3030.3: in low light" in seen.events[0][1]
    assert "3030.3 pictures a second again" in seen.events[1][1]


def test_a_rate_that_nobody_promised_is_not_told_of() -> None:
    assert captured(paced([133] * 24)).events == []


def test_stopping_does_not_wait_for_a_driver_that_never_returns() -> None:
    release = threading.Event()
    inside = threading.Event()

    class StuckCamera(ScriptedCamera):
        def read(self, into: NDArray[np.uint8]) -> Capture:
            inside.set()
            release.wait()
            return picture()(into)

    slot = NewestFrameSlot(48, 64)
    called: list[str] = []
    thread = CaptureThread(
        StuckCamera(), slot, lambda: called.append("frame"), on_event=lambda name, _: called.append(name)
    )
    thread.open_first()
    thread.start()
    assert inside.wait(5)
    thread.stop()  # returns: the camera is still inside its read
    alive = [other for other in threading.enumerate() if other.name == "capture"]
    assert alive
    release.set()
    for other in alive:
        other.join(5)
        assert not other.is_alive()
    assert called == []
    assert slot.take() is None


def test_stopping_ends_the_pause_before_a_reopening() -> None:
    lost = threading.Event()
    camera = ScriptedCamera(failing(CameraError("gone")), open_errors=(CameraError("not there"),) * 100)
    thread = CaptureThread(camera, NewestFrameSlot(4, 4), lambda: None, on_event=lambda *_: lost.set())
    thread.open_first()
    thread.start()
    assert lost.wait(5)
    thread.stop()
    assert not [other for other in threading.enumerate() if other.name == "capture"]
    assert camera.closed.is_set()


def test_the_first_opening_fails_in_the_callers_hands() -> None:
    class AbsentCamera(ScriptedCamera):
        def open(self) -> None:
            raise CameraError("not there")

    thread = CaptureThread(AbsentCamera(), NewestFrameSlot(4, 4), lambda: None, on_event=lambda *_: None)
    with pytest.raises(CameraError, match="not there") as caught:
        thread.open_first()
    assert caught.value.exit_code == 69
    thread.stop()


def test_a_clip_goes_through_the_thread_picture_by_picture(tmp_path: Path) -> None:
    cv2 = pytest.importorskip("cv2")
    path = tmp_path / "clip.avi"
    writer = cv2.VideoWriter(str(path), cv2.VideoWriter_fourcc(*"MJPG"), 100, (64, 48))
    for number in range(5):
        writer.write(np.full((48, 64, 3), 40 * number + 30, np.uint8))
    writer.release()
    slot = NewestFrameSlot(48, 64)
    shown: list[tuple[int, int]] = []
    enough = threading.Event()

    def on_frame() -> None:
        frame = slot.take()
        assert frame is not None
        shown.append((frame.number, round((float(frame.pixels.mean()) - 30) / 40)))
        if len(shown) >= 12:
            enough.set()

    thread = CaptureThread(FileCamera(path, 64, 48, 100), slot, on_frame, on_event=lambda *_: None)
    thread.open_first()
    thread.start()
    assert enough.wait(10)
    thread.stop()
    assert shown[:12] == [(turn % 5, turn % 5) for turn in range(12)]
    assert thread.counts["lost"] == 0
