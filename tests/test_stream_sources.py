"""Pipelines in a real GStreamer and network cameras of a real server, where the machine has them."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from mvla_daemon.cameras.base import CameraError
from mvla_daemon.cameras.capture import CaptureThread
from mvla_daemon.cameras.rtsp import rtsp_camera
from mvla_daemon.cameras.slot import NewestFrameSlot

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

pytest.importorskip("cv2")
TESTS = Path(__file__).parent
SYSTEMS_PYTHON = "/usr/bin/python3"
HEIGHT, WIDTH = 240, 320
MS = 1_000_000
PATIENCE_S = 30.0
CAPS = f"video/x-raw,width={WIDTH},height={HEIGHT},framerate=30/1"

READ_PIPELINE = """
import json, sys, time
import numpy as np
from mvla_daemon.cameras.gstreamer import pipeline_camera
from mvla_daemon.errors import DaemonError
elements, pictures, pause_s = sys.argv[1], int(sys.argv[2]), float(sys.argv[3])
camera, pixels = pipeline_camera(elements, 320, 240), np.zeros((240, 320, 3), np.uint8)
told = {"captures": [], "ages_ms": [], "refusal": ""}
try:
    camera.open()
    told["clock"] = camera.clock
    for number in range(pictures):
        if number == pictures // 2:
            time.sleep(pause_s)
        capture = camera.read(pixels)
        told["ages_ms"].append((time.monotonic_ns() - capture.captured_ns) / 1e6)
        told["captures"].append(capture.captured_ns)
    told["spread"] = int(pixels.max()) - int(pixels.min())
except DaemonError as error:
    told["refusal"], told["code"] = str(error), error.exit_code
camera.close()
print(json.dumps(told))
"""


@cache
def why_no_gstreamer() -> str:
    """What the system's Python lacks to read a pipeline; empty when nothing."""
    return _lacks(
        "import numpy, cv2, sys; sys.exit('GStreamer:                   YES' not in cv2.getBuildInformation())"
    )


@cache
def why_no_server() -> str:
    return _lacks("import gi; gi.require_version('GstRtspServer', '1.0'); from gi.repository import GstRtspServer")


def _lacks(code: str) -> str:
    if not Path(SYSTEMS_PYTHON).exists():
        return f"there is no {SYSTEMS_PYTHON}"
    done = subprocess.run([SYSTEMS_PYTHON, "-c", code], capture_output=True, timeout=PATIENCE_S, check=False)
    return f"{SYSTEMS_PYTHON} has not what it takes: {code.partition(';')[0]}" if done.returncode else ""


def read_pipeline(elements: str, pictures: int, pause_s: float = 0) -> dict[str, Any]:
    if why_no_gstreamer():
        pytest.skip(f"no OpenCV with GStreamer (apt install python3-opencv): {why_no_gstreamer()}")
    done = subprocess.run(
        [SYSTEMS_PYTHON, "-c", READ_PIPELINE, elements, str(pictures), str(pause_s)],
        env={**os.environ, "PYTHONPATH": str(TESTS.parent)},
        capture_output=True,
        text=True,
        timeout=PATIENCE_S,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    told: dict[str, Any] = json.loads(done.stdout)
    return told


# --- GStreamer


@pytest.mark.meanwhile
def test_a_pipeline_gives_its_newest_picture_with_its_own_time() -> None:
    """After half a second without a read, what comes first is what was made last, and its age is true."""
    told = read_pipeline(f"videotestsrc is-live=true pattern=snow ! {CAPS}", 12, 0.5)
    assert told["refusal"] == ""
    assert told["clock"] == "stream"
    gaps_ms = np.diff(told["captures"]) / MS
    assert np.median(gaps_ms) == pytest.approx(1000 / 30, abs=10)
    assert gaps_ms[5] > 400
    assert np.median(told["ages_ms"]) < 100
    assert told["ages_ms"][6] < 300
    assert told["spread"] > 200


@pytest.mark.meanwhile
def test_a_pipeline_that_ends_is_lost() -> None:
    told = read_pipeline(f"videotestsrc is-live=true num-buffers=6 ! {CAPS}", 12)
    assert 0 < len(told["captures"]) <= 4
    assert told["refusal"] == (
        "pipeline videotestsrc gives no picture any more: its source has ended, is unplugged or hangs"
    )


@pytest.mark.meanwhile
def test_a_pipeline_that_cannot_be_used_is_refused() -> None:
    for elements, code, says in (
        ("videotestsrc is-live=true ! video/x-raw,width=640,height=240", 78, "gives 640x240, but the configuration"),
        ("videotestsrc is-live=true ! nosuchelement ! videoconvert", 69, "gst-launch-1.0"),
    ):
        told = read_pipeline(elements, 2)
        assert (told["code"], told["captures"]) == (code, [])
        assert says in told["refusal"]


# --- RTSP


@contextmanager
def serving(port: int = 0) -> Iterator[int]:
    command = [SYSTEMS_PYTHON, str(TESTS / "rtsp_server.py"), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout is not None
            yield int(server.stdout.readline())
        finally:
            server.kill()


@contextmanager
def capturing(address: str) -> Iterator[tuple[CaptureThread, NewestFrameSlot, list[str]]]:
    slot, events = NewestFrameSlot(HEIGHT, WIDTH), list[str]()
    camera = rtsp_camera(address, WIDTH, HEIGHT)
    capture = CaptureThread(camera, slot, lambda: None, on_event=lambda name, said: events.append(f"{name} {said}"))
    capture.open_first()
    capture.start()
    try:
        yield capture, slot, events
    finally:
        capture.stop()


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + PATIENCE_S
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


@pytest.mark.meanwhile
def test_a_network_camera_is_read_lost_and_found_again() -> None:
    if why_no_server():
        pytest.skip(f"no RTSP server (apt install gir1.2-gst-rtsp-server-1.0): {why_no_server()}")
    with ExitStack() as at_end, ExitStack() as server:
        port = server.enter_context(serving())
        capture, slot, events = at_end.enter_context(capturing(f"rtsp://me:secret@127.0.0.1:{port}/cam"))
        wait_until(lambda: capture.counts["published"] > 10)
        frame = slot.take()
        assert frame is not None
        assert frame.pixels.max() > 200
        assert frame.arrived_ns - frame.captured_ns < 1000 * MS
        server.close()
        wait_until(lambda: len(events) == 1)
        lost_ns = time.monotonic_ns()
        server.enter_context(serving(port))
        wait_until(lambda: len(events) == 2)
        frame = slot.take()
        assert frame is not None
        assert frame.captured_ns > lost_ns
        assert [event.split()[0] for event in events] == ["camera_lost", "camera_back"]
        assert "secret" not in "".join(events)


@pytest.mark.meanwhile
def test_a_network_camera_that_never_answers_holds_up_nobody() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        camera = rtsp_camera(f"rtsp://me:secret@127.0.0.1:{server.getsockname()[1]}/cam", WIDTH, HEIGHT)
        began_s = time.monotonic()
        with pytest.raises(CameraError, match="see its power, the network") as caught:
            camera.open()
        assert time.monotonic() - began_s < 9
        assert "secret" not in str(caught.value)
        closer = threading.Timer(0.2, camera.close)
        closer.start()
        began_s = time.monotonic()
        with pytest.raises(CameraError, match="is closed"):
            camera.open()
        assert time.monotonic() - began_s < 2
        closer.join()


def test_what_a_refused_network_camera_prints_has_no_password() -> None:
    """FFmpeg's own lines would come past the log: here everything that the process prints is looked at."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    code = (
        "import sys\nfrom mvla_daemon.cameras.rtsp import rtsp_camera\n"
        "try: rtsp_camera(sys.argv[1], 320, 240).open()\n"
        "except Exception as error: print(error, int(error.exit_code))\n"
    )
    address = f"rtsp://me:secret@127.0.0.1:{port}/secret?password=secret"
    done = subprocess.run(
        [sys.executable, "-c", code, address], capture_output=True, text=True, timeout=PATIENCE_S, check=True
    )
    assert done.stdout.startswith(f"camera rtsp://127.0.0.1:{port} cannot be opened")
    assert done.stdout.endswith("69\n")
    assert "secret" not in done.stdout + done.stderr
