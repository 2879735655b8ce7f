"""The control socket, with real clients: polite ones, silent ones, rude ones, and far too many."""

from __future__ import annotations

import json
import os
import select
import socket
import stat
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from mvla_daemon.errors import DaemonError
from mvla_daemon.ops.control import ControlServer, ask, socket_path

MS = 1_000_000
REQUESTS = ["stop", "arm", "disarm", "status"]
MOST_CLIENTS = 8
REFUSED = (ConnectionError, BlockingIOError)
"""What a client sees that was turned away: a closed door, or a queue that is full."""


@dataclass
class Desk:
    """The server as the gate has it, woken by hand at times of the test's choosing."""

    path: Path
    asked: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = ControlServer(self.path, self.operate)

    def operate(self, request: str, uid: int) -> dict[str, Any]:
        self.asked.append((request, uid))
        return {"ok": True, "text": f"{request} done"}

    def wake(self, now_ms: float = 0) -> int:
        """One wake of the gate; how many requests it answered."""
        before = len(self.asked)
        readable = select.select(self.server.filenos(), [], [], 0)[0]
        self.server.serve(set(readable), round(now_ms * MS))
        return len(self.asked) - before

    def settle(self, now_ms: float = 0) -> None:
        """Wakes until nothing is left to do."""
        while select.select(self.server.filenos(), [], [], 0)[0]:
            self.wake(now_ms)
        self.wake(now_ms)

    def client(self) -> socket.socket:
        client = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        client.setblocking(False)
        try:
            client.connect(str(self.path))
        except BlockingIOError:
            client.close()
            raise
        return client

    def queue(self) -> ExitStack:
        """As many clients as can stand in line, until the stack is closed."""
        stack = ExitStack()
        with suppress(BlockingIOError):
            for _ in range(100):
                stack.enter_context(self.client())
        return stack

    def answer(self, request: bytes) -> dict[str, Any]:
        with self.client() as client:
            client.send(request)
            self.settle()
            return dict(json.loads(client.recv(10_000)))


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    desk = Desk(tmp_path / "run" / "daemon.sock")
    yield desk
    desk.server.close()


@contextmanager
def gate_thread(server: ControlServer) -> Iterator[None]:
    """A gate that does nothing but serve, on the real clock."""
    ended, end = os.pipe()

    def loop() -> None:
        while ended not in (readable := select.select([ended, *server.filenos()], [], [], 0.1)[0]):
            server.serve(set(readable), time.monotonic_ns())

    thread = threading.Thread(target=loop)
    thread.start()
    try:
        yield
    finally:
        os.close(end)
        thread.join()
        os.close(ended)


# --- polite clients ---


@pytest.mark.parametrize("request_", REQUESTS)
def test_each_request_is_done_and_answered(desk: Desk, request_: str) -> None:
    assert desk.answer(request_.encode()) == {"ok": True, "text": f"{request_} done"}
    assert desk.asked == [(request_, os.geteuid())]


@pytest.mark.parametrize(
    "request_", [b"dance", b"STOP", b"stop arm", b"stop\0", b"\xff\xfe", b"status" * 20, b"x" * 5000, b" "]
)
def test_an_unknown_request_is_answered_with_the_known_ones(desk: Desk, request_: bytes) -> None:
    answer = desk.answer(request_)
    assert answer["ok"] is False
    assert all(known in answer["text"] for known in REQUESTS)
    assert desk.asked == []


def test_the_connection_ends_with_the_answer(desk: Desk) -> None:
    with desk.client() as client:
        client.send(b"status")
        desk.settle()
        assert client.recv(10_000)
        assert client.recv(10_000) == b""
        with pytest.raises(BrokenPipeError):
            client.send(b"stop")
    desk.settle()
    assert desk.asked == [("status", os.geteuid())]


def test_who_asks_is_told_by_the_kernel() -> None:
    """Another process, which says nothing of itself; as another user where this one is root."""
    uid = 65534 if os.geteuid() == 0 else os.geteuid()
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        desk = Desk(Path(folder) / "daemon.sock")
        desk.path.chmod(0o666)
        code = f"""
import os, socket
if os.geteuid() == 0:
    os.setuid({uid})
s = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
s.connect({str(desk.path)!r})
s.send(b"stop")
print(s.recv(10000).decode())
"""
        with gate_thread(desk.server):
            done = subprocess.run([sys.executable, "-S", "-c", code], capture_output=True, text=True, check=False)
        desk.server.close()
    assert done.stderr == ""
    assert json.loads(done.stdout)["ok"]
    assert desk.asked == [("stop", uid)]


class BrokenDesk(Desk):
    def operate(self, request: str, uid: int) -> dict[str, Any]:
        raise OSError(f"{request} for {uid}: the port is gone")


def test_an_error_of_the_gate_itself_is_not_hidden_as_a_clients(tmp_path: Path) -> None:
    desk = BrokenDesk(tmp_path / "run" / "daemon.sock")
    with desk.client() as client:
        client.send(b"stop")
        with pytest.raises(OSError, match="the port is gone"):
            desk.settle()
    desk.server.close()


# --- the socket's file ---


def test_only_this_user_can_reach_the_socket(tmp_path: Path) -> None:
    before = os.umask(0)
    try:
        desk = Desk(tmp_path / "run" / "daemon.sock")
    finally:
        os.umask(before)
    assert stat.S_IMODE(desk.path.stat().st_mode) == 0o660
    assert stat.S_IMODE(desk.path.parent.stat().st_mode) == 0o700
    desk.server.close()
    assert not desk.path.exists()


def test_the_socket_of_a_daemon_that_was_killed_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "run" / "daemon.sock"
    code = "import sys; from pathlib import Path; from mvla_daemon.ops.control import ControlServer\n"
    code += "server = ControlServer(Path(sys.argv[1]), lambda request, uid: {}); print(flush=True); sys.stdin.read()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    ) as killed:
        assert killed.stdout is not None
        assert killed.stdout.readline() == b"\n"
        killed.kill()
    assert path.is_socket()
    desk = Desk(path)
    assert desk.answer(b"status")["ok"]
    desk.server.close()


@pytest.mark.parametrize("busy", [False, True])
def test_the_socket_of_a_daemon_that_lives_is_left_alone(desk: Desk, *, busy: bool) -> None:
    with desk.queue() if busy else nullcontext(), pytest.raises(DaemonError, match="stop that one first") as caught:
        Desk(desk.path)
    assert caught.value.exit_code == 69
    desk.settle()
    assert desk.answer(b"stop")["ok"]


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can give a folder away")
def test_a_folder_of_another_user_is_not_trusted(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    os.chown(folder, 65534, 65534)
    with pytest.raises(DaemonError, match="belongs to another user") as caught:
        Desk(folder / "daemon.sock")
    assert caught.value.exit_code == 77


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "run").write_text("a file")
    with pytest.raises(DaemonError, match="cannot be made") as caught:
        Desk(tmp_path / "run" / "daemon.sock")
    assert caught.value.exit_code == 77


# --- rude clients ---


def test_silent_clients_fill_the_desk_for_a_second_and_no_longer(desk: Desk) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(desk.client()) for _ in range(MOST_CLIENTS)]
        desk.settle(now_ms=100)
        assert len(desk.server.filenos()) == 1 + MOST_CLIENTS
        with desk.client() as late:
            late.send(b"stop")
            desk.settle(now_ms=200)
            with pytest.raises(ConnectionError):
                late.recv(10_000)
        assert desk.server.refused == 1
        desk.wake(now_ms=1100)
        assert len(desk.server.filenos()) == 1 + MOST_CLIENTS
        desk.wake(now_ms=1101)
        assert len(desk.server.filenos()) == 1
        assert desk.server.refused == 1 + MOST_CLIENTS
        assert all(client.recv(10) == b"" for client in silent)
        assert desk.answer(b"stop")["ok"]


def test_a_wake_does_a_bounded_amount_of_work(desk: Desk) -> None:
    with ExitStack() as stack:
        for _ in range(MOST_CLIENTS):
            stack.enter_context(desk.client()).send(b"status")
        for known in range(MOST_CLIENTS):
            assert len(desk.server.filenos()) <= 1 + max(1, known)
            assert desk.wake() <= 1
        desk.wake()
        assert len(desk.asked) == MOST_CLIENTS


def test_clients_that_never_read_do_not_block_anything(desk: Desk) -> None:
    with ExitStack() as stack:
        for _ in range(50):
            deaf = stack.enter_context(desk.client())
            deaf.send(b"status")
            desk.settle()
        assert len(desk.asked) == 50
        assert len(desk.server.filenos()) == 1


@pytest.mark.parametrize("said", [b"", b"stop", b"dance"])
def test_clients_that_hang_up_are_forgotten(desk: Desk, said: bytes) -> None:
    before = len(list(Path("/proc/self/fd").iterdir()))
    for accepted_first in (False, True):
        client = desk.client()
        if accepted_first:
            desk.wake()
        if said:
            client.send(said)
        client.close()
        desk.settle()
    assert len(desk.server.filenos()) == 1
    assert len(list(Path("/proc/self/fd").iterdir())) == before
    assert [request for request, _ in desk.asked] == (["stop"] * 2 if said == b"stop" else [])


def hammer(path: Path, seed: int) -> tuple[int, int]:
    """One client's twenty visits: how many were answered, how many refused; anything else is an error."""
    answered = refused = 0
    for visit in range(20):
        with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
            client.settimeout(10)
            try:
                client.connect(str(path))
                if (seed + visit) % 5 == 0:  # half open, and gone again
                    refused += 1
                    continue
                client.send(b"status")
                answer = client.recv(10_000)
            except REFUSED:
                refused += 1
                continue
            answered += bool(answer) and json.loads(answer)["ok"]
            refused += not answer
    return answered, refused


def test_fifty_clients_are_each_answered_or_refused(desk: Desk) -> None:
    with gate_thread(desk.server), ThreadPoolExecutor(50) as pool, ExitStack() as stack:
        for _ in range(3):
            stack.enter_context(desk.client())  # and some who just stand there
        counts = list(pool.map(hammer, [desk.path] * 50, range(50)))
    assert sum(answered + refused for answered, refused in counts) == 1000
    assert sum(answered for answered, _ in counts) == len(desk.asked) > 0
    desk.settle(now_ms=time.monotonic_ns() / MS + 2000)
    assert desk.answer(b"stop")["ok"]
    assert len(desk.server.filenos()) == 1


# --- the client's side ---


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A configuration's path, and systemd's way of saying where sockets go."""
    monkeypatch.setenv("RUNTIME_DIRECTORY", f"{tmp_path / 'run'}:/nowhere/else")
    return tmp_path / "config.toml"


def test_ask_reaches_the_daemon_of_its_configuration(config: Path, tmp_path: Path) -> None:
    desk, other = Desk(socket_path(config)), Desk(socket_path(tmp_path / "other.toml"))
    assert desk.path.parent == tmp_path / "run"
    with gate_thread(desk.server), gate_thread(other.server):
        assert ask(config, "status") == {"ok": True, "text": "status done"}
    assert (len(desk.asked), len(other.asked)) == (1, 0)
    desk.server.close()
    other.server.close()


def test_a_configuration_has_one_socket_however_it_is_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.touch()
    (config.parent / "link.toml").symlink_to(config)
    monkeypatch.chdir(config.parent)
    names = [config, Path("config.toml"), Path("./x/../config.toml"), config.parent / "link.toml"]
    assert len({socket_path(name) for name in names}) == 1


@pytest.mark.parametrize("there", ["nothing", "stale", "deaf"])
def test_ask_without_a_daemon_says_how_to_start_one(config: Path, there: str) -> None:
    path = socket_path(config)
    path.parent.mkdir()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        if there != "nothing":
            server.bind(str(path))
        if there == "deaf":
            server.listen(1)
        with pytest.raises(DaemonError, match="No daemon answers") as caught:
            ask(config, "status", timeout_s=0.1)
    assert caught.value.exit_code == 69
    assert f"start `mvla-daemon --config {config}`" in str(caught.value)
    assert str(path) in str(caught.value)


def test_a_daemon_that_does_not_answer_in_time_is_no_daemon(config: Path) -> None:
    desk = Desk(socket_path(config))
    with pytest.raises(DaemonError) as caught:
        ask(config, "stop", timeout_s=0.05)
    assert caught.value.exit_code == 69
    desk.server.close()


def test_ask_comes_again_when_the_daemon_had_no_hand_free(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(socket_path(config))
    with ExitStack() as silent, gate_thread(desk.server):
        for _ in range(MOST_CLIENTS):
            silent.enter_context(desk.client())
        monkeypatch.setattr(time, "sleep", lambda _: silent.close())  # they leave while it waits
        assert ask(config, "stop")["ok"]
    assert desk.server.refused > 0
    desk.server.close()


def test_ask_comes_again_when_the_daemons_queue_was_full(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    desk = Desk(socket_path(config))
    with ExitStack() as gate, desk.queue() as queue:

        def at_last(_: float) -> None:
            queue.close()
            monkeypatch.undo()
            gate.enter_context(gate_thread(desk.server))

        monkeypatch.setattr(time, "sleep", at_last)
        assert ask(config, "stop")["ok"]
        assert time.sleep is not at_last, "it was let in though the queue was full"
    assert [request for request, _ in desk.asked] == ["stop"]
    desk.server.close()


def test_a_daemon_that_stays_busy_is_not_taken_for_an_absent_one(config: Path) -> None:
    desk = Desk(socket_path(config))
    with desk.queue(), pytest.raises(DaemonError, match="busy with other clients; ask again") as caught:
        ask(config, "stop", timeout_s=0.1)
    assert caught.value.exit_code == 75
    desk.server.close()
