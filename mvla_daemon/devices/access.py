"""Who may open a device, and who has it open; nothing is opened to find out."""

from __future__ import annotations

import grp
import os
import pwd
import stat
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from mvla_daemon.devices.machine import Machine

_PTY_MAJORS = range(136, 144)
"""Linux' device numbers of Unix98 ptys (Documentation/admin-guide/devices.txt)."""


@dataclass(frozen=True, slots=True)
class Access:
    """`allowed` is whether this user may read and write it; owner and group are names, or numbers without one."""

    allowed: bool
    owner: str
    group: str
    mode: str

    def fix(self, path: str, group: str) -> str:
        """What to type to be let in; `group` is whose members such devices are for, dialout or video."""
        if self.group != "root" and int(self.mode, 8) & 0o060 == 0o060:
            return f"sudo usermod -aG {self.group} $USER   # then log in again"
        return f"sudo chgrp {group} {path} && sudo chmod 660 {path}"


@dataclass(frozen=True, slots=True)
class Holder:
    """A process that has a device open."""

    pid: int
    name: str

    def __str__(self) -> str:
        return f"{self.name} (process {self.pid})"


@dataclass(frozen=True, slots=True)
class Holders:
    """Those that are seen; `unseen` counts the processes of other users, into which one may not look."""

    found: Sequence[Holder]
    unseen: int


def access(path: Path) -> Access | None:
    """What this user may do with a device; None when it is gone."""
    try:
        about = path.stat()
        allowed = os.access(path, os.R_OK | os.W_OK, effective_ids=True)
    except OSError:
        return None
    owner, group = str(about.st_uid), str(about.st_gid)
    with suppress(KeyError):
        owner = pwd.getpwuid(about.st_uid).pw_name
    with suppress(KeyError):
        group = grp.getgrgid(about.st_gid).gr_name
    return Access(allowed, owner, group, f"{stat.S_IMODE(about.st_mode):o}")


def holders(machine: Machine, path: Path) -> Holders:
    """Who has a character device open, this process aside.

    By its number, since a device may have several names, also a container's. A pty's number is its file system's only.
    """
    try:
        about = path.stat()
    except OSError:
        return Holders((), 0)
    if not stat.S_ISCHR(about.st_mode):
        return Holders((), 0)
    found, unseen = [], 0
    for process in machine.glob("/proc/[0-9]*"):
        if process.name == str(os.getpid()):
            continue
        opened = _opens(process / "fd", about)
        if opened is None:
            unseen += 1
        elif opened:
            found.append(Holder(int(process.name), _name(machine, process)))
    return Holders(found, unseen)


def _opens(folder: Path, device: os.stat_result) -> bool | None:
    """Whether one of a process's descriptors is this device; None where one may not look."""
    try:
        entries = list(os.scandir(folder))
    except PermissionError:
        return None
    except OSError:
        return False  # it has ended
    for entry in entries:
        with suppress(OSError):
            about = entry.stat()
            is_same = stat.S_ISCHR(about.st_mode) and about.st_rdev == device.st_rdev
            if is_same and (about.st_dev == device.st_dev or os.major(about.st_rdev) not in _PTY_MAJORS):
                return True
    return False


def _name(machine: Machine, process: Path) -> str:
    """The program's name, and for a Python program that of its module or script."""
    words = (machine.text(process / "cmdline") or "").split("\0")
    if "-m" in words[:-1]:
        return words[words.index("-m") + 1]
    if len(words) > 1 and Path(words[0]).name.startswith("python"):
        return Path(next((word for word in words[1:] if not word.startswith("-")), words[0])).name
    return machine.text(process / "comm") or "?"
