"""The simulated camera's pictures on their way to the policy process: over real sockets and real shared memory."""

from __future__ import annotations

import fcntl
import mmap
import os
import select
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor, wait
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from mvla_daemon.cameras.base import CameraError, PictureError
from mvla_daemon.cameras.simulated import SimulatedCamera
from mvla_daemon.sim import camera_link
from mvla_daemon.sim.camera_link import CameraClient, CameraServer, News
from tests.nobody import as_nobody

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from numpy.typing import NDArray

SLOTS = 4
UNAVAILABLE = 69


@pytest.fixture
def server() -> Iterator[CameraServer]:
    server = CameraServer()
    yield server
    server.close()


@pytest.fixture
def connect(server: CameraServer) -> Iterator[Callable[[], CameraClient]]:
    clients = []

    def connect() -> CameraClient:
        with ThreadPoolExecutor() as threads:
            future = threads.submit(CameraClient, server.path)
            assert select.select([server.socket], [], [], 5)[0]
            assert server.accept() == os.getpid()
            clients.append(future.result(5))
        return clients[-1]

    yield connect
    for client in clients:
        client.close()


def blank() -> NDArray[np.uint8]:
    return np.zeros((480, 640, 3), np.uint8)


def show(server: CameraServer, number: int) -> None:
    """A picture that is its number all over, taken `number` seconds after the beginning."""
    server.writable().fill(number % 256)
    server.publish(number, number * 1_000_000_000)


def looked_at(client: CameraClient) -> News:
    """The newest picture, which must be what its news says."""
    news = client.wait()
    assert news is not None
    pixels = blank()
    assert client.copy(news, pixels)
    assert (pixels == news.number % 256).all()
    assert news.captured_ns == news.number * 1_000_000_000
    return news


def test_pictures_arrive_whole_with_their_numbers_and_times(
    server: CameraServer, connect: Callable[[], CameraClient]
) -> None:
    client = connect()
    for number in range(10):
        show(server, number)
        assert looked_at(client).number == number


def test_who_comes_late_sees_the_newest_only(server: CameraServer, connect: Callable[[], CameraClient]) -> None:
    show(server, 1)  # nobody is there
    client = connect()
    for number in (2, 3, 4):
        show(server, number)
    assert looked_at(client).number == 4


def test_a_picture_that_is_overwritten_while_it_is_copied_is_noticed(
    server: CameraServer, connect: Callable[[], CameraClient]
) -> None:
    client = connect()
    show(server, 1)
    news = client.wait()
    assert news is not None
    for number in range(2, SLOTS + 1):
        show(server, number)
    assert client.copy(news, blank())
    server.writable()[:10] = 77  # the next picture has begun, in the same place
    assert not client.copy(news, blank())
    server.publish(SLOTS + 1, 0)
    assert not client.copy(news, blank())


def test_a_viewer_that_does_not_read_holds_nobody_up_and_finds_its_way_back(
    server: CameraServer, connect: Callable[[], CameraClient]
) -> None:
    slow, quick = connect(), connect()
    for number in range(1, 2001):  # more than any socket holds
        server.writable()[0, 0, 0] = number % 256
        server.publish(number, 0)
        news = quick.wait()
        assert news is not None
        assert news.number == number
    late = slow.wait()
    assert late is not None
    assert late.number < 2000
    assert not slow.copy(late, blank())
    show(server, 2001)
    assert (looked_at(slow).number, looked_at(quick).number) == (2001, 2001)


def test_one_of_two_viewers_goes_and_comes_back(server: CameraServer, connect: Callable[[], CameraClient]) -> None:
    one, other = connect(), connect()
    show(server, 1)
    assert (looked_at(one).number, looked_at(other).number) == (1, 1)
    one.close()
    show(server, 2)
    show(server, 3)
    assert looked_at(other).number == 3
    back = connect()
    show(server, 4)
    assert (looked_at(back).number, looked_at(other).number) == (4, 4)


def test_a_viewer_that_comes_while_pictures_are_told_is_not_forgotten(
    server: CameraServer, connect: Callable[[], CameraClient]
) -> None:
    """The simulator tells on one thread and accepts on another."""
    done = threading.Event()

    def tell() -> None:
        while not done.is_set():
            server.writable()
            server.publish(1, 0)

    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    teller = threading.Thread(target=tell)
    teller.start()
    try:
        clients = [connect() for _ in range(40)]
    finally:
        done.set()
        teller.join()
        sys.setswitchinterval(switch_s)
    show(server, 8)
    assert None not in {client.wait() for client in clients}  # read now is what had filled their sockets
    show(server, 9)
    assert {looked_at(client).number for client in clients} == {9}


def test_the_memory_is_the_simulators_to_write_and_nobody_elses(server: CameraServer) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as viewer:
        viewer.connect("\0" + str(server.path)[1:])
        assert server.accept() == os.getpid()
        _, (fd,), _, _ = socket.recv_fds(viewer, 16, 1)
    again = os.open(f"/proc/self/fd/{fd}", os.O_RDWR)
    try:
        size = os.fstat(fd).st_size
        for held in (fd, again):
            with pytest.raises(PermissionError):
                mmap.mmap(held, size)
            with pytest.raises(PermissionError):
                os.pwrite(held, b"x", 4096)
            for wrong_size in (0, size - 1, size + 1):
                with pytest.raises(PermissionError):
                    os.ftruncate(held, wrong_size)
            with pytest.raises(PermissionError):
                fcntl.fcntl(held, fcntl.F_ADD_SEALS, fcntl.F_SEAL_WRITE)
        show(server, 5)
        with mmap.mmap(fd, size, prot=mmap.PROT_READ) as memory:
            assert memory[-1] == 0
            assert memory[4096] == 5
    finally:
        os.close(fd)
        os.close(again)


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")
def test_another_users_viewer_is_sent_away_and_another_users_simulator_is_left(server: CameraServer) -> None:
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as stranger:
        with as_nobody():
            stranger.connect("\0" + str(server.path)[1:])
            strange = CameraServer()
        assert server.accept() is None
        assert stranger.recv(16) == b""
    with pytest.raises(PermissionError, match="another user"):
        CameraClient(strange.path)
    strange.close()


# --- the camera ---


@pytest.fixture
def camera(server: CameraServer) -> Iterator[SimulatedCamera]:
    camera = SimulatedCamera(server.path)
    open_at(server, camera)
    yield camera
    camera.close()


def open_at(server: CameraServer, camera: SimulatedCamera) -> None:
    with ThreadPoolExecutor() as threads:
        opening = threads.submit(camera.open)
        assert select.select([server.socket], [], [], 5)[0]
        server.accept()
        opening.result(5)


def test_the_camera_gives_pictures_and_can_be_opened_again(server: CameraServer, camera: SimulatedCamera) -> None:
    for number in (1, 2):
        show(server, number)
        pixels = blank()
        capture = camera.read(pixels)
        assert (capture.number, capture.captured_ns, int(pixels.min())) == (number, number * 1_000_000_000, number)
        camera.close()
        camera.close()
        with pytest.raises(CameraError, match="closed"):
            camera.read(pixels)
        open_at(server, camera)


def test_a_picture_that_was_overwritten_is_unusable_and_the_next_one_is_not(
    server: CameraServer, camera: SimulatedCamera
) -> None:
    for number in range(1, 2001):  # the newest of which find no room
        server.writable()
        server.publish(number, 0)
    with pytest.raises(PictureError):
        camera.read(blank())
    show(server, 2001)
    assert camera.read(blank()).number == 2001


def test_a_simulator_that_ends_is_a_lost_camera(server: CameraServer, camera: SimulatedCamera) -> None:
    server.close()
    with pytest.raises(CameraError, match="has ended"):
        camera.read(blank())
    camera.close()
    with pytest.raises(CameraError, match="does not answer") as caught:
        camera.open()
    assert caught.value.exit_code == UNAVAILABLE


def test_a_simulator_that_hangs_up_or_never_answers_does_not_answer(
    server: CameraServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(camera_link, "ANSWER_S", 0.05)
    camera = SimulatedCamera(server.path)
    with pytest.raises(CameraError, match="timed out"):
        camera.open()
    monkeypatch.undo()
    with ThreadPoolExecutor() as threads:
        opening = threads.submit(camera.open)
        for _ in range(2):  # the one that timed out is still in the queue
            assert select.select([server.socket], [], [], 5)[0]
            server.socket.accept()[0].close()
        with pytest.raises(CameraError, match="does not answer"):
            opening.result(5)


def test_closing_under_a_read_ends_it(camera: SimulatedCamera) -> None:
    with ThreadPoolExecutor() as threads:
        reading = threads.submit(camera.read, blank())
        wait([reading], 0.05)
        assert not reading.done()
        camera.close()
        with pytest.raises(CameraError):
            reading.result(5)


def read_many(camera: SimulatedCamera) -> None:
    for _ in range(100):
        camera.read(blank())


def test_a_real_simulator_that_is_frozen_goes_on_and_one_that_is_killed_is_gone() -> None:
    command = [sys.executable, "-m", "mvla_daemon.sim.robot_process", "--seed", "3"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        camera = SimulatedCamera(Path(process.stdout.readline().decode().split()[1]))
        camera.open()
        pixels = blank()
        before = camera.read(pixels)
        assert pixels.std() > 10
        assert before.captured_ns <= time.monotonic_ns()
        process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, process.pid, os.WSTOPPED | os.WNOWAIT)
        process.send_signal(signal.SIGCONT)
        assert camera.read(pixels).number > before.number
        process.kill()
        with pytest.raises(CameraError, match="has ended"):
            read_many(camera)
        camera.close()
        with pytest.raises(CameraError, match="does not answer"):
            camera.open()
