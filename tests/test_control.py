"""The control socket, with real clients: polite ones, silent ones, rude ones, and far too many."""

from __future__ import annotations

import gc
import json
import os
import pwd
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
from mvla_daemon.ops.control import ControlServer, socket_path
from mvla_daemon.ops.control_client import ask, places
from tests.rig import Rig, Scene, Timed, command, environment, freeze, thaw

MS = 1_000_000
REQUESTS = ["stop", "arm", "disarm", "status"]
MOST_CLIENTS = 8
REFUSED = (ConnectionError, BlockingIOError)
"""What a client sees that was turned away: a closed door, or a queue that is full."""


@dataclass
class Desk:
    """The server as the gate has it, woken by hand at times of the test's choosing."""

    path: Path
    asked: list[tuple[str, int, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.server = ControlServer(self.path, self.operate)

    def operate(self, request: str, uid: int, pid: int) -> dict[str, Any]:
        self.asked.append((request, uid, pid))
        return {"ok": True, "text": f"{request} done"}

    def watched(self, now_ms: float = 0) -> list[int]:
        return self.server.watch(round(now_ms * MS))[0]

    def wake(self, now_ms: float = 0) -> int:
        """One wake of the gate; how many requests it answered."""
        before = len(self.asked)
        readable = select.select(self.watched(now_ms), [], [], 0)[0]
        self.server.serve(set(readable), round(now_ms * MS))
        return len(self.asked) - before

    def settle(self, now_ms: float = 0) -> None:
        """Wakes until nothing is left to do, on a clock that goes on just enough for nobody to be kept waiting."""
        while select.select(fds := self.watched(now_ms), [], [], 0)[0] or not fds:
            self.wake(now_ms)
            now_ms += 0.5
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
            for _ in range(200):
                stack.enter_context(self.client())
            raise AssertionError("there is no end to the queue")
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
        readable: list[int] = []
        while ended not in readable:
            now_ns = time.monotonic_ns()
            server.serve(set(readable), now_ns)
            fds, until_ns = server.watch(now_ns)
            readable = select.select([ended, *fds], [], [], max(0, until_ns - now_ns) / 1e9)[0]

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
    counted = {"clients_refused": 0} if request_ == "status" else {}
    assert desk.answer(request_.encode()) == {"ok": True, "text": f"{request_} done", **counted}
    assert desk.asked == [(request_, os.geteuid(), os.getpid())]


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
    assert desk.asked == [("status", os.geteuid(), os.getpid())]


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
        with (
            gate_thread(desk.server),
            subprocess.Popen([sys.executable, "-S", "-c", code], stdout=subprocess.PIPE, text=True) as process,
        ):
            answer, _ = process.communicate()
        desk.server.close()
    assert json.loads(answer)["ok"]
    assert desk.asked == [("stop", uid, process.pid)]


class BrokenDesk(Desk):
    def operate(self, request: str, uid: int, pid: int) -> dict[str, Any]:  # noqa: ARG002 - as the server calls it
        raise OSError(f"{request} for {uid}: the port is gone")


def test_an_error_of_the_gate_itself_is_not_hidden_as_a_clients(tmp_path: Path) -> None:
    desk = BrokenDesk(tmp_path / "run" / "daemon.sock")
    with desk.client() as client:
        client.send(b"stop")
        with pytest.raises(OSError, match="the port is gone"):
            desk.settle()
    desk.server.close()


# --- the socket's file ---


@pytest.mark.alone
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


def test_a_client_that_never_asks_is_dropped_after_a_second(desk: Desk) -> None:
    with desk.client() as silent:
        desk.wake(now_ms=100)
        fds, until_ns = desk.server.watch(100 * MS)
        assert (len(fds), until_ns) == (2, 1100 * MS)
        desk.wake(now_ms=1099.9)
        assert len(desk.watched(1099.9)) == 2
        desk.wake(now_ms=1100)
        assert len(desk.watched(1100)) == 1
        assert silent.recv(10) == b""
    assert desk.server.refused == 1


def test_the_one_that_has_been_silent_longest_gives_way(desk: Desk) -> None:
    with ExitStack() as stack:
        silent = [stack.enter_context(desk.client()) for _ in range(MOST_CLIENTS)]
        desk.settle(now_ms=100)
        assert len(desk.watched(200)) == 1 + MOST_CLIENTS
        silent += [stack.enter_context(desk.client()) for _ in range(2)]
        desk.settle(now_ms=200)
        assert len(desk.watched(300)) == 1 + MOST_CLIENTS
        assert [client.recv(10) for client in silent[:2]] == [b"", b""]
        for client in silent[2:]:
            client.send(b"status")
        desk.settle(now_ms=300)
        assert all(json.loads(client.recv(10_000))["ok"] for client in silent[2:])
    assert desk.server.refused == 2


@pytest.mark.parametrize("crowd", [8, 50, 64])
def test_half_open_clients_do_not_keep_a_stop_out(desk: Desk, crowd: int) -> None:
    """It stands in line behind them, at a quarter of a millisecond each, and nobody is thrown out who has asked."""
    with ExitStack() as stack:
        for _ in range(crowd):
            stack.enter_context(desk.client())
        with desk.client() as operator:
            operator.send(b"stop")
            now_ms = 5000.0
            while not desk.asked:
                desk.wake(now_ms)
                now_ms += 0.1
            assert json.loads(operator.recv(10_000))["ok"]
        assert now_ms - 5000 < 1 + crowd / 4


def test_a_wake_does_a_bounded_amount_of_work(desk: Desk) -> None:
    with ExitStack() as stack:
        for _ in range(MOST_CLIENTS):
            stack.enter_context(desk.client())
        for client in range(MOST_CLIENTS):
            desk.wake(now_ms=client)
            assert len(desk.watched(client)) == 2 + client
        clients = [stack.enter_context(desk.client()) for _ in range(3)]
        for client in clients:
            client.send(b"status")
        assert [desk.wake(now_ms=100 + wake) for wake in range(5)] == [1, 1, 1, 0, 0]


def test_those_who_ask_without_end_get_a_share_of_the_time(desk: Desk) -> None:
    """By the gate's clock: a few at once, then four a millisecond, and a gate that does not spin meanwhile."""
    wakes, at_ms, end_ms = 0, 0.0, 100.0
    with ExitStack() as stack:
        waiting = [stack.enter_context(desk.client()) for _ in range(50)]
        for client in waiting:
            client.send(b"status")
        while at_ms < end_ms:
            wakes += 1
            if desk.wake(at_ms):
                waiting.append(stack.enter_context(desk.client()))
                waiting[-1].send(b"status")
            fds, until_ns = desk.server.watch(round(at_ms * MS))
            at_ms = at_ms + 0.02 if fds else until_ns / MS
    assert 400 <= len(desk.asked) <= 400 + 9
    assert wakes <= 2 * len(desk.asked)


def test_clients_that_never_read_do_not_block_anything(desk: Desk) -> None:
    with ExitStack() as stack:
        for _ in range(50):
            deaf = stack.enter_context(desk.client())
            deaf.send(b"status")
            desk.settle()
        assert len(desk.asked) == 50
        assert len(desk.watched(100)) == 1


def open_sockets() -> set[str]:
    """This process's, without those that only wait for the garbage collector."""
    gc.collect()
    found = set()
    for fd in Path("/proc/self/fd").iterdir():
        with suppress(FileNotFoundError):  # the one that lists them
            found.add(str(fd.readlink()))
    return {name for name in found if name.startswith("socket:")}


@pytest.mark.parametrize("said", [b"", b"stop", b"dance"])
@pytest.mark.alone
def test_clients_that_hang_up_are_forgotten(desk: Desk, said: bytes) -> None:
    before = open_sockets()
    for accepted_first in (False, True):
        client = desk.client()
        if accepted_first:
            desk.wake()
        if said:
            client.send(said)
        client.close()
        desk.settle()
    assert len(desk.watched(100)) == 1
    assert open_sockets() == before
    assert [request for request, *_ in desk.asked] == (["stop"] * 2 if said == b"stop" else [])


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
    assert len(desk.watched(time.monotonic_ns() / MS + 9000)) == 1
    with gate_thread(desk.server), desk.client() as operator:
        operator.setblocking(True)
        operator.send(b"stop")
        assert json.loads(operator.recv(10_000))["ok"]


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
        assert ask(config, "stop") == {"ok": True, "text": "stop done"}
    assert (len(desk.asked), len(other.asked)) == (1, 0)
    desk.server.close()
    other.server.close()


def test_a_configuration_has_one_socket_however_it_is_named(config: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config.touch()
    (config.parent / "link.toml").symlink_to(config)
    monkeypatch.chdir(config.parent)
    names = [config, Path("config.toml"), Path("./x/../config.toml"), config.parent / "link.toml"]
    assert len({socket_path(name) for name in names}) == 1


@pytest.mark.parametrize("there", ["nothing", "stale"])
def test_ask_without_a_daemon_says_where_it_looked_and_how_to_start_one(config: Path, there: str) -> None:
    path = socket_path(config)
    path.parent.mkdir()
    config.touch()
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        if there != "nothing":
            server.bind(str(path))
        with pytest.raises(DaemonError, match="No daemon answers") as caught:
            ask(config, "status", timeout_s=0.1)
    assert caught.value.exit_code == 69
    assert f"start `mvla-daemon --config {config}`" in str(caught.value)
    assert f"looked at {path}, /run/mvla-daemon/{path.name}" in str(caught.value)
    assert "no such file" not in str(caught.value)


def test_a_configuration_that_is_not_there_is_said(config: Path) -> None:
    with pytest.raises(DaemonError, match=r"No daemon answers .* there is no such file") as caught:
        ask(config, "stop", timeout_s=0.1)
    assert caught.value.exit_code == 69


def test_a_daemon_that_does_not_answer_in_time_is_named_with_what_to_do(config: Path) -> None:
    desk = Desk(socket_path(config))
    with pytest.raises(DaemonError) as caught:
        ask(config, "stop", timeout_s=0.05)
    assert caught.value.exit_code == 69
    assert f"process {os.getpid()}" in str(caught.value)
    assert "did not answer within 0.05 s" in str(caught.value)
    assert "the robot moves, use its own switch" in str(caught.value)
    desk.server.close()


@pytest.mark.parametrize("said", [b"armed", b"[1]", b"\xff"])
def test_what_is_no_daemon_is_not_taken_for_one(config: Path, said: bytes) -> None:
    with strange_server(config, [said]), pytest.raises(DaemonError, match="no daemon of this version") as caught:
        ask(config, "stop")
    assert caught.value.exit_code == 69


@contextmanager
def strange_server(config: Path, replies: list[bytes]) -> Iterator[None]:
    """One that says these things to its visitors in turn, and b"" by closing the door on them."""
    path = socket_path(config)
    path.parent.mkdir()

    def serve() -> None:
        for reply in replies:
            client, _ = server.accept()
            with client:
                if reply:
                    client.recv(100)
                    client.send(reply)

    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as server:
        server.bind(str(path))
        server.listen()
        thread = threading.Thread(target=serve)
        thread.start()
        yield
        thread.join()


def test_ask_comes_again_when_the_daemon_had_no_hand_free(config: Path) -> None:
    with strange_server(config, [b"", b"", b'{"ok": true}']):
        assert ask(config, "stop") == {"ok": True}


def test_ask_waits_in_line_when_the_daemons_queue_is_full(config: Path) -> None:
    desk = Desk(socket_path(config))
    with desk.queue(), ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask, config, "stop", 10)
        with gate_thread(desk.server):
            assert asking.result()["ok"]
    assert [request for request, *_ in desk.asked] == ["stop"]
    desk.server.close()


def test_a_daemon_that_stays_busy_is_not_taken_for_an_absent_one(config: Path) -> None:
    desk = Desk(socket_path(config))
    with desk.queue(), pytest.raises(DaemonError, match="busy with other clients; ask again") as caught:
        ask(config, "stop", timeout_s=0.1)
    assert caught.value.exit_code == 75
    desk.server.close()


# --- who may, and where to look ---

ANOTHER, GROUP = 65534, 65533
as_root = pytest.mark.skipif(os.geteuid() != 0, reason="only root can be somebody else")


@pytest.fixture
def open_folder() -> Iterator[Path]:
    """Where other users may go, unlike pytest's own folders."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Path(folder)


def ask_as(uid: int, config: Path, *, groups: tuple[int, ...] = (), **environment: str) -> tuple[int, str]:
    """Another process, of another user: exit code and refusal, or 0 and the answer."""
    code = f"""
import os, sys, pathlib
from mvla_daemon.errors import DaemonError
from mvla_daemon.ops.control_client import ask
os.setgroups({list(groups)})
os.setgid({uid})
os.setuid({uid})
try:
    print(ask(pathlib.Path({str(config)!r}), "stop", 5)["text"])
except DaemonError as error:
    print(error)
    sys.exit(error.exit_code)
"""
    kept = {key: os.environ[key] for key in ("PATH", "LANG") if key in os.environ}
    done = subprocess.run(
        [sys.executable, "-c", code], env=kept | environment, capture_output=True, text=True, check=False
    )
    assert done.stderr == ""
    return done.returncode, done.stdout


@as_root
@pytest.mark.parametrize(
    ("group", "mode", "groups", "exit_code", "words"),
    [
        (0, 0o700, (), 77, "Only root may: use `sudo`, or let a group in with `sudo chgrp -R GROUP {folder} && sudo"),
        (0, 0o755, (), 77, "Only root may: use `sudo`, or let a group in"),
        (0, 0o750, (), 77, "Only root may: use `sudo`, or let a group in"),
        (GROUP, 0o750, (), 77, "The members of group 65533 may: `sudo usermod -aG 65533 "),
        (GROUP, 0o755, (), 77, "The members of group 65533 may: `sudo usermod -aG 65533 "),
        (GROUP, 0o750, (GROUP,), 0, "stop done"),
        (GROUP, 0o2750, (GROUP,), 0, "stop done"),
    ],
)
def test_the_folders_group_may_and_others_are_told_how_to_get_the_right(
    open_folder: Path, group: int, mode: int, groups: tuple[int, ...], exit_code: int, words: str
) -> None:
    folder = open_folder / "run"
    folder.mkdir()
    os.chown(folder, 0, group)
    folder.chmod(mode)
    config = open_folder / "config.toml"
    path = folder / socket_path(config).name
    desk = Desk(path)
    assert path.stat().st_gid == group
    with gate_thread(desk.server):
        code, said = ask_as(ANOTHER, config, groups=groups, RUNTIME_DIRECTORY=str(folder))
    desk.server.close()
    assert (code, words.format(folder=folder) in said) == (exit_code, True), said
    assert [uid for _, uid, _ in desk.asked] == ([ANOTHER] if exit_code == 0 else [])
    if exit_code:
        assert f"may not use the control socket {path}" in said
        assert "may not stop the robot" in said


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777])
def test_a_folder_that_others_may_write_into_is_not_trusted(tmp_path: Path, mode: int) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    folder.chmod(mode)
    with pytest.raises(DaemonError, match="others may write into its folder") as caught:
        Desk(folder / "daemon.sock")
    assert caught.value.exit_code == 77


@as_root
def test_a_user_finds_the_systems_daemon_before_his_own(open_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    config = open_folder / "config.toml"
    session = open_folder / "session"
    looked_at = [f"{folder}/{socket_path(config).name}" for folder in ("/run/mvla-daemon", session / "mvla-daemon")]
    code, said = ask_as(ANOTHER, config, XDG_RUNTIME_DIR=str(session))
    assert code in {69, 77}  # a folder that another daemon of root's has left may be closed to this user
    assert f"looked at {looked_at[0]}, {looked_at[1]}" in said
    desk = Desk(socket_path(config))
    assert str(desk.path) == looked_at[0]
    with gate_thread(desk.server):
        assert ask_as(0, config, XDG_RUNTIME_DIR=str(session)) == (0, "stop done\n")
        code, said = ask_as(ANOTHER, config, XDG_RUNTIME_DIR=str(session))
    desk.server.close()
    assert code == 77
    assert looked_at[0] in said


@as_root
@pytest.mark.parametrize(("maker", "found"), [(ANOTHER, True), (GROUP, False)])
def test_root_finds_the_daemon_of_the_configurations_owner_and_of_nobody_who_pretends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, maker: int, *, found: bool
) -> None:
    monkeypatch.delenv("RUNTIME_DIRECTORY", raising=False)
    monkeypatch.delenv("SUDO_UID", raising=False)
    config = tmp_path / "config.toml"
    config.touch()
    os.chown(config, ANOTHER, ANOTHER)
    folder = tmp_path / "temporary"
    folder.mkdir(mode=0o700)
    monkeypatch.setattr("mvla_daemon.ops.control.temporary_folder", lambda _uid: folder)
    monkeypatch.setattr("mvla_daemon.ops.control_client.temporary_folder", lambda _uid: folder, raising=False)
    os.chown(folder, maker, maker)
    paths = places(config)
    assert (folder / socket_path(config).name in paths) is found
    assert paths[0].parent == Path("/run/mvla-daemon")


@as_root
def test_root_finds_the_daemon_of_whoever_called_sudo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SUDO_UID", "4711")
    assert any(path.parent == Path("/run/user/4711/mvla-daemon") for path in places(tmp_path / "config.toml"))


# --- the commands ---


def run_command(config: Path, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-W", "error", "-m", "mvla_daemon", "--config", str(config), *words],
        capture_output=True,
        text=True,
        check=False,
    )


class Clerk(Desk):
    """Answers as the gate does."""

    def operate(self, request: str, uid: int, pid: int) -> dict[str, Any]:
        super().operate(request, uid, pid)
        if request == "status":
            return {"ok": True, "state": "latched", "reason": "operator", "counts": {"admitted": 7}}
        refusal = "" if request == "stop" else "it is night"
        return {"ok": not refusal, "text": refusal, "state": "stopping"}


def test_the_commands_need_no_configuration_that_can_be_read(config: Path) -> None:
    """Somebody is editing it; the daemon runs with what it was."""
    config.write_text("[control\n")
    clerk = Clerk(socket_path(config))
    with gate_thread(clerk.server):
        stop, arm = run_command(config, "stop"), run_command(config, "arm")
        status, as_json = run_command(config, "status"), run_command(config, "status", "--json")
        stop_as_json = run_command(config, "stop", "--json")
    clerk.server.close()
    assert (stop.returncode, stop.stdout, stop.stderr) == (0, "stopping\n", "")
    assert (arm.returncode, arm.stdout, arm.stderr) == (75, "", "mvla-daemon: arm was refused: it is night.\n")
    assert "state             latched\n" in status.stdout
    assert (as_json.returncode, as_json.stderr) == (0, "")
    assert json.loads(as_json.stdout) == {
        "state": "latched",
        "reason": "operator",
        "counts": {"admitted": 7},
        "clients_refused": 0,
    }
    assert as_json.stdout.count("\n") == 1
    assert stop_as_json.returncode == 64
    assert [request for request, *_ in clerk.asked] == ["stop", "arm", "status", "status"]


# --- a whole daemon ---

STATUS_KEYS = {
    *("version", "pid", "state", "reason", "since_s", "missing", "refusal", "session", "controller"),
    *("policy_ready", "policy_restarts", "stops_in_window", "counts", "link", "clients_refused"),
    *("dropped_records", "dropped_records_by_sink"),
}


@pytest.fixture(scope="module")
def rig(tmp_path_factory: pytest.TempPathFactory, scene: Scene) -> Iterator[Rig]:
    with Rig(tmp_path_factory.mktemp("operator"), scene) as rig:
        rig.start_driving()
        yield rig


def test_the_status_has_the_keys_that_scripts_rely_on(rig: Rig) -> None:
    answer = rig.tell("status", "--json")
    assert (answer.returncode, answer.stderr) == (0, "")
    status = json.loads(answer.stdout)
    assert set(status) == STATUS_KEYS
    assert (status["state"], status["reason"], status["pid"]) == ("armed", None, rig.pid)
    readme = (Path(__file__).parent.parent / "README.md").read_text()
    assert [key for key in STATUS_KEYS if f"| `{key}` |" not in readme] == []


def test_who_asked_for_what_and_what_came_of_it_is_in_the_log(rig: Rig) -> None:
    known = len(rig.events("operator"))
    with subprocess.Popen(command(rig.config, "arm"), env=environment(rig.folder), stderr=subprocess.PIPE) as arm:
        _, said = arm.communicate()
    assert arm.returncode == 75
    assert b"arm was refused: the robot is armed already." in said
    rig.wait_until(lambda: len(rig.events("operator")) > known, "record")
    record = rig.events("operator")[known]
    user = pwd.getpwuid(os.geteuid()).pw_name
    assert [record[key] for key in ("request", "operator_uid", "operator", "operator_pid")] == [
        *("arm", os.geteuid(), user, arm.pid)
    ]
    assert (record["refusal"], record["level"]) == ("the robot is armed already", "warning")
    assert (
        record["event"]
        == f"arm asked for by user {user} ({os.geteuid()}), process {arm.pid}: refused, {record['refusal']}"
    )


def test_requests_that_change_nothing_do_not_flood_the_log_and_a_stop_is_always_told(rig: Rig) -> None:
    known = len(rig.events("operator"))
    for _ in range(100):
        assert not rig.ask("arm")["ok"]
    before = len(rig.read_wire())
    assert rig.ask("stop") == {"ok": True, "text": "", "state": "stopping"}
    rig.wait_for("STOP", after=before)
    rig.wait_until(lambda: any(record["request"] == "stop" for record in rig.events("operator")[known:]), "record")
    records = rig.events("operator")[known:]
    told = [record for record in records if record["request"] == "arm"]
    assert len(told) < 100
    assert len(told) + sum(int(str(record.get("untold", 0))) for record in records) == 100
    rig.arm()


def test_a_stop_works_with_the_policy_process_frozen_and_in_every_state_that_follows(rig: Rig) -> None:
    pid, before = rig.policy_pid(), len(rig.read_wire())
    freeze(pid)
    try:
        states = [rig.ask("stop")["state"]]
        rig.wait_until(lambda: 13 in [timed.frame.number("reason") for timed in stops_of(rig, before)], "STOP operator")
        rig.wait_until(lambda: states.append(rig.ask("stop")["state"]) or states[-1] == "latched", "latch")
    finally:
        thaw(pid)
    assert set(states) == {"stopping", "latched"}
    assert not [timed for timed in rig.read_wire()[before:] if timed.kind == "ARM"]


def stops_of(rig: Rig, after: int) -> list[Timed]:
    return [timed for timed in rig.read_wire()[after:] if timed.kind == "STOP"]
