"""The machine as its files show it: /proc, /sys, /etc and /dev below a root, and short commands that cannot hang.

What is missing, unreadable or odd is None or empty: whoever looks at a machine must not fail because of it.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

_FOLDERS = ("usr/local/sbin", "usr/local/bin", "usr/sbin", "usr/bin", "sbin", "bin")
_READ_BYTES = 1 << 18
COMMAND_S = 3.0
"""For a system's own small tools, on a busy machine."""


@dataclass(frozen=True, slots=True)
class Machine:
    """A root folder; that of another machine's files, laid out below a folder, is looked at in the same way."""

    root: Path = Path("/")

    def path(self, absolute: str) -> Path:
        """Where an absolute path of that machine is here."""
        return self.root / absolute.lstrip("/")

    def name(self, path: Path) -> str:
        """What that machine calls one of our paths."""
        return f"/{path.relative_to(self.root)}" if path != self.root else "/"

    def text(self, absolute: str | Path) -> str | None:
        """The beginning of a file (256 KiB) without spaces around it; None when it cannot be read.

        Read without waiting: some of /sys answer EAGAIN (a Jetson's thermal zones of parts that are switched off).
        """
        path = absolute if isinstance(absolute, Path) else self.path(absolute)
        try:
            fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                return os.read(fd, _READ_BYTES).decode("utf-8", "replace").strip("\0 \t\n")
            finally:
                os.close(fd)
        except (OSError, ValueError):
            return None

    def number(self, absolute: str | Path) -> int | None:
        """A file's content as a whole number; None when it is none."""
        try:
            return int(self.text(absolute) or "")
        except ValueError:
            return None

    def glob(self, pattern: str) -> list[Path]:
        """The paths that an absolute pattern matches, sorted; numbers within names in their order."""
        try:
            found = list(self.root.glob(pattern.lstrip("/")))
        except OSError:
            return []
        return sorted(found, key=lambda path: [(len(part), part) for part in path.parts])

    def exists(self, absolute: str) -> bool:
        """Whether there is such a file, as far as this user may see."""
        return os.path.exists(self.path(absolute))  # noqa: PTH110 - Path.exists raises where a folder is closed

    def run(self, *words: str) -> str | None:
        """What one of that machine's own commands prints within 3 s; None when it is missing, fails or hangs."""
        program = self.program(words[0])
        return None if program is None else output([str(program), *words[1:]], COMMAND_S)

    def program(self, name: str) -> Path | None:
        """Where a command of that machine is."""
        return next((path for folder in _FOLDERS if os.access(path := self.root / folder / name, os.X_OK)), None)


def output(words: Sequence[str], timeout_s: float) -> str | None:
    """What a command prints; None when it cannot be started, fails, or takes longer (it is killed then)."""
    environment = {**os.environ, "LC_ALL": "C"}
    try:
        done = subprocess.run(  # noqa: S603 - a fixed command of the system's
            words,
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            timeout=timeout_s,
            check=False,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None
