"""The operator's hand: a small request and a small answer over a Unix socket that the gate serves between deadlines.

SEQPACKET keeps requests whole, so there is nothing to assemble and nobody to wait for. Whoever may open the socket may
stop the robot: the permissions of its folder are the rule, and the socket is its folder's group's too.

A wake of the gate serves at most two clients, and all clients together get less than half of a processor. When there
are too many, the one that has been there longest without asking gives way: nobody keeps a stop out by standing there.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import socket
import stat
import struct
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

from mvla_daemon.core.messages import MS, SECOND
from mvla_daemon.errors import DaemonError, ExitCode

REQUESTS = ("stop", "arm", "disarm", "status")
SYSTEM_FOLDER = Path("/run/mvla-daemon")
MAX_CLIENTS = 8
"""How many may be connected without having asked."""
QUEUE = 64
"""How many more may stand in line; their requests wait with them."""
MAX_REQUEST_BYTES = 64
MAX_REPLY_BYTES = 8192
PATIENCE_NS = 1 * SECOND
"""How long a client may be connected without having asked."""
SERVICE_NS = MS // 4
"""One service (a client let in, an answer) in this time on the average; with the wake for it one takes 0.1 ms."""
BURST_NS = 8 * SERVICE_NS


def socket_name(config_path: Path) -> str:
    """What the socket of this configuration's daemon is called, in whatever folder it is."""
    return hashlib.sha256(str(config_path.resolve()).encode()).hexdigest()[:12] + ".sock"


def socket_path(config_path: Path) -> Path:
    """Where the daemon of this configuration listens: systemd's runtime directory, root's, the session's or /tmp."""
    if runtime := os.environ.get("RUNTIME_DIRECTORY"):
        folder = Path(runtime.split(":")[0])
    elif os.geteuid() == 0:
        folder = SYSTEM_FOLDER
    elif session := os.environ.get("XDG_RUNTIME_DIR"):
        folder = Path(session) / "mvla-daemon"
    else:
        folder = temporary_folder(os.geteuid())
    return folder / socket_name(config_path)


def temporary_folder(uid: int) -> Path:
    """Where a user's daemon listens that has no other place."""
    return Path(f"/tmp/mvla-daemon-{uid}")  # noqa: S108 - made with mode 0700 and checked for its owner


class Control(Protocol):
    """What the gate knows of its operators."""

    def watch(self, now_ns: int) -> tuple[list[int], int]:
        """The descriptors that the gate has to watch, and when to serve though none of them is readable."""

    def serve(self, readable: set[int], now_ns: int) -> None:
        """Answer who has asked: a bounded amount of work a wake."""


class ControlServer:
    """The gate's side. `operate(request, uid, pid)` does what is asked and returns the answer."""

    def __init__(self, path: Path, operate: Callable[[str, int, int], dict[str, Any]]) -> None:
        self._path = path
        self._operate = operate
        self._clients: dict[int, tuple[socket.socket, int]] = {}
        """By descriptor: who has not asked yet, and since when; in the order in which they came."""
        self._booked_ns = 0
        self.refused = 0
        try:
            _check_folder(path.parent)
            if _is_served(path):
                raise DaemonError(
                    "Another daemon runs with this configuration; stop that one first.", ExitCode.UNAVAILABLE
                )
            path.unlink(missing_ok=True)
            self.socket = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK)
            self.socket.bind(str(path))
            if path.stat().st_gid != path.parent.stat().st_gid:
                os.chown(path, -1, path.parent.stat().st_gid)
            path.chmod(0o660)
            self.socket.listen(QUEUE)
            self._alone = [self.socket.fileno()]
        except OSError as error:
            raise DaemonError(
                f"The control socket {path} cannot be made ({error}); make its folder this user's own, writable for "
                f"nobody else, with a group that this user is in.",
                ExitCode.NO_PERMISSION,
            ) from error

    def watch(self, now_ns: int) -> tuple[list[int], int]:
        """Nothing while those who ask too much have to wait; else the socket and its clients, until one is overdue."""
        rested_ns = self._booked_ns - BURST_NS
        if now_ns < rested_ns:
            return [], rested_ns
        if not self._clients:
            return self._alone, now_ns + PATIENCE_NS
        oldest_ns = next(since_ns for _, since_ns in self._clients.values())
        return [*self._alone, *self._clients], oldest_ns + PATIENCE_NS

    def serve(self, readable: set[int], now_ns: int) -> None:
        """Answer the one who has waited longest, let one in, drop those who never asked."""
        if not self._clients and readable.isdisjoint(self._alone):
            return
        for fd in [fd for fd in self._clients if fd in readable][:1]:
            self._book(now_ns)
            self._answered(self._clients.pop(fd)[0])
        if not readable.isdisjoint(self._alone):
            self._book(now_ns)
            self._let_in(now_ns)
        for fd in [fd for fd, (_, since_ns) in self._clients.items() if now_ns - since_ns >= PATIENCE_NS]:
            self._refuse(fd)

    def _book(self, now_ns: int) -> None:
        self._booked_ns = max(self._booked_ns, now_ns) + SERVICE_NS

    def _let_in(self, now_ns: int) -> None:
        try:
            client, _ = self.socket.accept()
        except OSError:  # it has gone again, or there is no descriptor left for it
            return
        client.setblocking(False)
        if self._answered(client):
            return
        if len(self._clients) >= MAX_CLIENTS:
            self._refuse(next(iter(self._clients)))
        self._clients[client.fileno()] = (client, now_ns)

    def _refuse(self, fd: int) -> None:
        self._clients.pop(fd)[0].close()
        self.refused += 1

    def _answered(self, client: socket.socket) -> bool:
        """Whether this client is done with; the others have not asked yet."""
        try:
            request = client.recv(MAX_REQUEST_BYTES).decode("ascii", "replace").strip()
            peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
        except BlockingIOError:
            return False
        except OSError:
            client.close()
            return True
        with client:
            pid, uid, _ = struct.unpack("3i", peer)
            answer: dict[str, Any] = {"ok": False, "text": f"unknown request; known are {', '.join(REQUESTS)}"}
            if request in REQUESTS:  # an error of the gate's own is not the client's, and must show
                answer = self._operate(request, uid, pid)
            if request == "status":
                answer["clients_refused"] = self.refused
            with suppress(OSError):
                client.send(json.dumps(answer).encode()[:MAX_REPLY_BYTES])
        return True

    def close(self) -> None:
        """Stop listening and take the socket away."""
        for client, _ in self._clients.values():
            client.close()
        self.socket.close()
        with suppress(OSError):
            self._path.unlink()


def _check_folder(folder: Path) -> None:
    """Make the folder, for this user alone; one that is there already may let a group in."""
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    about = folder.lstat()
    if about.st_uid != os.geteuid():
        raise PermissionError("its folder belongs to another user")
    if about.st_mode & 0o022 and not about.st_mode & stat.S_ISVTX:  # in a sticky one they cannot take the socket away
        raise PermissionError("others may write into its folder")


def _is_served(path: Path) -> bool:
    """Whether a daemon listens there; the socket of one that was killed is only a name."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_NONBLOCK) as probe:
        return probe.connect_ex(str(path)) in {0, errno.EAGAIN}
