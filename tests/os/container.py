"""A Debian with a systemd of its own in a container, and nothing but a serial line between it and this machine.

Its root is read-only below a layer in memory: every boot begins from the same files, and nothing has to be cleaned up.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import IO

from tests.os.container_image import REPOSITORY, CannotError

PORT = "/dev/ttyMOTOR"
DIALOUT = 20  # Debian's number of the group that may open serial ports
BOOT_S = 60.0
END_S = 30.0
POWER_OFF = "RTMIN+4"  # systemd(1), "SIGNALS"
ENVIRONMENT = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}
Done = subprocess.CompletedProcess[str]


class Container:
    """`wheels` and a copy of the project are in it as /mnt/wheels and /mnt/project."""

    def __init__(self, root: Path, wheels: Path, folder: Path, line: str) -> None:
        self._root = root
        self._wheels = wheels
        self._folder = folder
        self._line = line
        self._nspawn: subprocess.Popen[bytes] | None = None
        self._console: IO[bytes] | None = None
        self._init = 0

    def boot(self) -> None:
        """Start it, until its systemd has started all; `CannotError` where that is impossible."""
        project = copy_project(self._folder / "project")
        # What udev would do to a real port.
        os.chown(self._line, 0, DIALOUT)
        Path(self._line).chmod(0o660)
        self._console = (self._folder / "console.log").open("wb")
        self._nspawn = subprocess.Popen(
            [
                # It ends with this process, and what else this machine does is not what is judged.
                *("setpriv", "--pdeathsig", "KILL", "nice", "--adjustment=-10"),
                *("systemd-nspawn", "--quiet", "--boot", f"--directory={self._root}", "--volatile=overlay"),
                *("--register=no", "--keep-unit", "--private-network", "--console=pipe"),
                # A machine's own systemd may raise limits; a container's may not unless it is told so.
                "--capability=CAP_SYS_RESOURCE,CAP_IPC_LOCK",
                f"--bind={self._line}:{PORT}",
                f"--bind-ro={self._wheels}:/mnt/wheels",
                f"--bind-ro={project}:/mnt/project",
            ],
            env={**os.environ, "SYSTEMD_NSPAWN_UNIFIED_HIERARCHY": "1"},
            stdin=subprocess.DEVNULL,
            stdout=self._console,
            stderr=subprocess.STDOUT,
        )
        try:
            self._wait_until_booted()
        except BaseException:
            self.close()
            raise

    def _wait_until_booted(self) -> None:
        assert self._nspawn is not None
        end_s = time.monotonic() + BOOT_S
        children = Path(f"/proc/{self._nspawn.pid}/task/{self._nspawn.pid}/children")
        state = ""
        while state not in {"running", "degraded"}:
            if self._nspawn.poll() is not None or time.monotonic() > end_s:
                raise CannotError(f"the container did not boot ({state or 'no systemd'}): {self.console()}")
            if not self._init and (pids := children.read_text().split()):
                self._init = int(pids[0])
            if self._init:
                state = self.run("systemctl", "is-system-running", check=False).stdout.strip()
            time.sleep(0.1)

    def close(self) -> None:
        """Power it off, whatever it is doing."""
        if self._nspawn is not None:
            if self._init and self._nspawn.poll() is None:
                subprocess.run(["kill", "-s", POWER_OFF, str(self._init)], check=False)
            try:
                self._nspawn.wait(END_S)
            except subprocess.TimeoutExpired:
                self._nspawn.kill()
                self._nspawn.wait()
        if self._console is not None:
            self._console.close()

    def console(self) -> str:
        """The last lines of what it said while it booted."""
        lines = (self._folder / "console.log").read_text(errors="replace").splitlines()
        return " / ".join(lines[-5:])

    def run(self, *words: str, check: bool = True, timeout_s: float = 60.0, say: str = "", **environment: str) -> Done:
        """Run a program in it, as its root, with `say` as its input."""
        enter = ("nsenter", f"--target={self._init}", "--mount", "--uts", "--ipc", "--net", "--pid", "--cgroup")
        done = subprocess.run(
            [*enter, "--root", "--wd", *words],
            env=ENVIRONMENT | environment,
            input=say,
            capture_output=True,
            text=True,
            check=False,
            timeout=timeout_s,
        )
        assert done.returncode == 0 or not check, f"{words} ended with {done.returncode}: {done.stdout}{done.stderr}"
        return done

    def run_as(self, user: str, *words: str) -> Done:
        """Run a program in it as one of its users."""
        return self.run("runuser", "-u", user, "--", *words, check=False)

    def read(self, path: str) -> str:
        """A text file of it."""
        return self.run("cat", path).stdout

    def write(self, path: str, text: str) -> None:
        """Write a text file, with its folder."""
        self.run("sh", "-c", f"mkdir -p $(dirname {path}) && cat > {path}", say=text)

    def lay(self, source: Path, place: str) -> None:
        """Copy a file of this machine into it."""
        shutil.copyfile(source, f"/proc/{self._init}/root{place}")


def copy_project(into: Path) -> Path:
    """The project's files as they are now, without what was built."""
    words = ("git", "ls-files", "-z", "--cached", "--others", "--exclude-standard")
    listed = subprocess.run(words, cwd=REPOSITORY, capture_output=True, check=True).stdout
    for name in filter(None, listed.decode().split("\0")):
        if (REPOSITORY / name).is_file():
            (into / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(REPOSITORY / name, into / name)
    return into
