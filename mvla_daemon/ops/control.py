"""The operator's hand: a small request and a small answer over a Unix socket that the gate serves between deadlines.

SEQPACKET keeps requests whole, so there is nothing to assemble and nobody to wait for. A client is answered when its
request is there, or dropped after a second.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import struct
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from mvla_daemon.core.messages import SECOND
from mvla_daemon.errors import DaemonError, ExitCode

REQUESTS = ("stop", "arm", "disarm", "status")
MAX_CLIENTS = 8
MAX_REQUEST_BYTES = 64
MAX_REPLY_BYTES = 8192
PATIENCE_NS = 1 * SECOND
"""How long a client may be connected without having asked."""
ASK_AGAIN_S = 0.05


def socket_path(config_path: Path) -> Path:
    """Where the daemon of this configuration listens: systemd's runtime directory, root's, the session's or /tmp."""
    if runtime := os.environ.get("RUNTIME_DIRECTORY"):
        base = Path(runtime.split(":")[0])
    elif os.geteuid() == 0:
        base = Path("/run/mvla-daemon")
    elif session := os.environ.get("XDG_RUNTIME_DIR"):
        base = Path(session) / "mvla-daemon"
    else:
        base = Path(f"/tmp/mvla-daemon-{os.geteuid()}")  # noqa: S108 - made with mode 0700 and checked for its owner
    name = hashlib.sha256(str(config_path.resolve()).encode()).hexdigest()[:12]
    return base / f"{name}.sock"


class Control(Protocol):
    """What the gate knows of its operators."""

    def filenos(self) -> list[int]:
        """What the gate has to watch."""

    def serve(self, readable: set[int], now_ns: int) -> None:
        """Answer who has asked: a bounded amount of work a wake."""


class ControlServer:
    """The gate's side. `operate(request, uid)` does what is asked and returns the answer."""

    def __init__(self, path: Path, operate: Callable[[str, int], dict[str, Any]]) -> None:
        self._path = path
        self._operate = operate
        self._clients: dict[int, tuple[socket.socket, int]] = {}
        self.refused = 0
        try:
            path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
            if path.parent.stat().st_uid != os.geteuid():
                raise PermissionError("its folder belongs to another user")
            if _is_served(path):
                raise DaemonError(
                    "Another daemon runs with this configuration; stop that one first.", ExitCode.UNAVAILABLE
                )
            path.unlink(missing_ok=True)
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            self.socket.bind(str(path))
            path.chmod(0o660)
            self.socket.listen(MAX_CLIENTS)
        except OSError as error:
            raise DaemonError(
                f"The control socket {path} cannot be made ({error}); make its folder writable for this user.",
                ExitCode.NO_PERMISSION,
            ) from error

    def filenos(self) -> list[int]:
        """What select() has to watch."""
        return [self.socket.fileno(), *self._clients]

    def serve(self, readable: set[int], now_ns: int) -> None:
        """Answer who has asked, take one new client, drop those who never asked: a bounded amount of work a wake."""
        for fd in readable.intersection(self._clients):
            self._answer(fd)
        if self.socket.fileno() in readable:
            self._accept(now_ns)
        for fd in [fd for fd, (_, since_ns) in self._clients.items() if now_ns - since_ns > PATIENCE_NS]:
            self._clients.pop(fd)[0].close()
            self.refused += 1

    def _accept(self, now_ns: int) -> None:
        with suppress(OSError):
            client, _ = self.socket.accept()
            if len(self._clients) >= MAX_CLIENTS:
                self.refused += 1
                client.close()
                return
            client.setblocking(False)
            self._clients[client.fileno()] = (client, now_ns)

    def _answer(self, fd: int) -> None:
        client, _ = self._clients.pop(fd)
        with client:
            try:
                request = client.recv(MAX_REQUEST_BYTES).decode("ascii", "replace").strip()
                credentials = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            except OSError:
                return
            answer = {"ok": False, "text": f"unknown request; known are {', '.join(REQUESTS)}"}
            if request in REQUESTS:  # an error of the gate's own is not the client's, and must show
                answer = self._operate(request, struct.unpack("3i", credentials)[1])
            with suppress(OSError):
                client.send(json.dumps(answer).encode()[:MAX_REPLY_BYTES])

    def close(self) -> None:
        """Stop listening and take the socket away."""
        for client, _ in self._clients.values():
            client.close()
        self.socket.close()
        with suppress(OSError):
            self._path.unlink()


def _is_served(path: Path) -> bool:
    """Whether a daemon listens there; the socket of one that was killed is only a name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(str(path)) in {0, errno.EAGAIN}


def ask(config_path: Path, request: str, timeout_s: float = 2.0) -> dict[str, Any]:
    """The client's side: one request, one answer; DaemonError when no daemon answers."""
    path = socket_path(config_path)
    end_s = time.monotonic() + timeout_s
    try:
        while not (answer := _ask_once(path, request, timeout_s)):
            if time.monotonic() > end_s:
                raise DaemonError("The daemon is busy with other clients; ask again.", ExitCode.TRY_AGAIN)
            time.sleep(ASK_AGAIN_S)
        return dict(json.loads(answer))
    except PermissionError as error:
        raise DaemonError(
            f"No permission for {path}; run this as the user that runs the daemon.", ExitCode.NO_PERMISSION
        ) from error
    except (OSError, ValueError) as error:
        raise DaemonError(
            f"No daemon answers for {config_path} (looked at {path}); start `mvla-daemon --config {config_path}`.",
            ExitCode.UNAVAILABLE,
        ) from error


def _ask_once(path: Path, request: str, timeout_s: float) -> bytes:
    """The answer; empty when the daemon is there but has turned us away unread."""
    with (
        socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client,
        suppress(BlockingIOError, BrokenPipeError, ConnectionResetError),
    ):
        client.settimeout(timeout_s)
        client.connect(str(path))
        client.send(request.encode())
        return client.recv(MAX_REPLY_BYTES)
    return b""
