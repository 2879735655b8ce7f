"""The operator's side of the control socket: finding the daemon of a configuration, asking it, saying why it cannot."""

from __future__ import annotations

import errno
import grp
import json
import os
import pwd
import socket
import stat
import struct
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.ops.control import MAX_REPLY_BYTES, SYSTEM_FOLDER, socket_name, temporary_folder

ASK_AGAIN_S = 0.01


def places(config_path: Path) -> list[Path]:
    """Where a daemon of this configuration may listen, the system's first.

    After that the folders of this user, of the one who called sudo and of the configuration's owner; a folder of
    another user's making is not among them.
    """
    folders = [Path(runtime.split(":")[0])] if (runtime := os.environ.get("RUNTIME_DIRECTORY")) else []
    folders.append(SYSTEM_FOLDER)
    if session := os.environ.get("XDG_RUNTIME_DIR"):
        folders.append(Path(session) / "mvla-daemon")
    for uid in dict.fromkeys(_users(config_path)):
        folders += [
            folder
            for folder in (Path(f"/run/user/{uid}/mvla-daemon"), temporary_folder(uid))
            if _owner(folder) in {uid, None}
        ]
    return [folder / socket_name(config_path) for folder in dict.fromkeys(folders)]


def _users(config_path: Path) -> list[int]:
    users = [os.geteuid()]
    with suppress(ValueError):
        users.append(int(os.environ.get("SUDO_UID", "")))
    with suppress(OSError):
        users.append(config_path.stat().st_uid)
    return [uid for uid in users if uid != 0]  # root's daemon is the system's


def _owner(folder: Path) -> int | None:
    """Whose it is; None where it is not, or cannot be seen."""
    try:
        return folder.lstat().st_uid
    except OSError:
        return None


def ask(config_path: Path, request: str, timeout_s: float = 2.0) -> dict[str, Any]:
    """One request, one answer; DaemonError when no daemon answers, or this user may not ask it."""
    looked_at = places(config_path)
    forbidden: Path | None = None
    for path in looked_at:
        answer = _ask(path, request, timeout_s)
        if isinstance(answer, dict):
            return answer
        if answer in {errno.EACCES, errno.EPERM}:
            forbidden = forbidden or path
    where = f"looked at {', '.join(map(str, looked_at))}"
    if forbidden is not None:
        raise DaemonError(f"{_how_to_get_the_right(forbidden)} ({where})", ExitCode.NO_PERMISSION)
    if not config_path.is_file():
        where += "; and there is no such file"
    raise DaemonError(
        f"No daemon answers for {config_path} ({where}); start `mvla-daemon --config {config_path}`.",
        ExitCode.UNAVAILABLE,
    )


def _ask(path: Path, request: str, timeout_s: float) -> dict[str, Any] | int:
    """The answer of the daemon that listens there; where nobody can be asked, the errno that says why."""
    end_s = time.monotonic() + timeout_s
    try:
        while not (said := _visit(path, request, timeout_s)):
            if time.monotonic() >= end_s:
                raise DaemonError("The daemon is busy with other clients; ask again.", ExitCode.TRY_AGAIN)
            time.sleep(ASK_AGAIN_S)
        answer = json.loads(said)
    except OSError as error:
        return error.errno or errno.EIO
    except ValueError:
        answer = None
    if not isinstance(answer, dict):
        raise DaemonError(
            f"What answers at {path} is no daemon of this version; start it again with this one.", ExitCode.UNAVAILABLE
        )
    return answer


def _visit(path: Path, request: str, timeout_s: float) -> bytes:
    """The answer; empty when the daemon is there but had no hand free."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client:
        # Not settimeout(): without it the kernel keeps those who wait to be let in in order.
        patience = struct.pack("@ll", int(timeout_s), round(timeout_s % 1 * 1e6))
        for option in (socket.SO_SNDTIMEO, socket.SO_RCVTIMEO):
            client.setsockopt(socket.SOL_SOCKET, option, patience)
        try:
            client.connect(str(path))
        except BlockingIOError:
            return b""
        try:
            client.send(request.encode())
            return client.recv(MAX_REPLY_BYTES)
        except (BrokenPipeError, ConnectionResetError):
            return b""
        except BlockingIOError:
            peer = client.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i"))
            pid = struct.unpack("3i", peer)[0]
            raise DaemonError(
                f"The daemon at {path} (process {pid}) did not answer within {timeout_s:g} s, so nothing is known of "
                f"what it did. If the robot moves, use its own switch; a frozen daemon is ended with `kill -KILL "
                f"{pid}`, and then the motor controller stops by itself.",
                ExitCode.UNAVAILABLE,
            ) from None


# --- refusals ---


def _how_to_get_the_right(path: Path) -> str:
    user = _name_of_user(os.geteuid())
    barrier = path.parent  # what keeps this user out: the folder, or in a folder that is open the socket
    try:
        about = path.stat()
        barrier, needed = path, stat.S_IWGRP
    except OSError:
        needed = stat.S_IXGRP
        try:
            about = barrier.stat()
        except OSError:
            return f"User {user} may not look for the daemon at {path}; only its owner may, or root with `sudo`."
    owners = "root" if about.st_uid == 0 else f"user {_name_of_user(about.st_uid)} and root"
    group = _name_of_group(about.st_gid)
    rule = f"User {user} may not use the control socket {path}, and who may not open it may not stop the robot."
    if about.st_mode & needed and about.st_gid != 0:
        return f"{rule} The members of group {group} may: `sudo usermod -aG {group} {user}`, then log in anew."
    return (
        f"{rule} Only {owners} may: use `sudo`, or let a group in with "
        f"`sudo chgrp -R GROUP {path.parent} && sudo chmod 2750 {path.parent}`."
    )


def _name_of_user(uid: int) -> str:
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _name_of_group(gid: int) -> str:
    try:
        return grp.getgrgid(gid).gr_name
    except KeyError:
        return str(gid)
