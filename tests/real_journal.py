"""A journald of its own, with its socket and its files in a folder: no privileges, and nothing of the machine's own."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

PLACES = ("/usr/lib/systemd/systemd-journald", "/lib/systemd/systemd-journald")
DAEMON = next((path for path in map(Path, PLACES) if path.exists()), None)
PATIENCE_S = 10.0


class NoJournalError(Exception):
    """There is none here, and why."""


class RealJournal:
    """`path` is where it takes records; whoever starts it ends it."""

    def __init__(self, folder: Path) -> None:
        self._run, self._log = folder / "run", folder / "log"
        self.path = self._run / "socket"
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Returns once it takes records."""
        if DAEMON is None or shutil.which("journalctl") is None:
            raise NoJournalError("this machine has no journald")
        self.path.unlink(missing_ok=True)
        for folder in (self._run, self._log):
            folder.mkdir(exist_ok=True)
        folders = {"RUNTIME_DIRECTORY": str(self._run), "LOGS_DIRECTORY": str(self._log)}
        self._process = subprocess.Popen(
            [DAEMON, "test"], env={**os.environ, **folders}, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE
        )
        end_s = time.monotonic() + PATIENCE_S
        while not self.path.exists():
            if self._process.poll() is not None or time.monotonic() > end_s:
                self._process.kill()
                raise NoJournalError(f"journald does not run here: {self._process.communicate()[1].decode()}")
            time.sleep(0.01)

    def freeze(self) -> None:
        """It reads nothing any more."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self._process.pid, os.WSTOPPED | os.WNOWAIT)

    def thaw(self) -> None:
        """It goes on where it was."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def within(self) -> list[str]:
        """Words before a command, to which this is then the machine's journal; NoJournalError without the right."""
        there = "/run/systemd/journal"
        laid = f"mount -t tmpfs none /run && mkdir -p {there} && mount --bind {self._run} {there}"
        words = ["unshare", "--mount", "sh", "-c", f'{laid} && exec "$@"', "sh"]
        try:
            subprocess.run([*words, "true"], check=True, capture_output=True, timeout=PATIENCE_S)
        except (OSError, subprocess.CalledProcessError) as error:
            raise NoJournalError("only root may put another journal in the machine's place") from error
        return words

    def stop(self) -> None:
        """It takes no more, and has written everything down."""
        if self._process is not None:
            self._process.terminate()
            self._process.communicate(timeout=PATIENCE_S)
            self._process = None

    def ask(self, *words: str) -> list[dict[str, Any]]:
        """What `journalctl` finds, as it prints it for machines; `words` may choose another form of that."""
        return [json.loads(line) for line in self.printed("-o", "json", *words).splitlines()]

    def printed(self, *words: str) -> str:
        """What `journalctl` prints."""
        command = ["journalctl", "--no-pager", "--quiet", "--all", "-D", str(self._log), *words]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=PATIENCE_S).stdout

    def wait_for(self, *words: str) -> list[dict[str, Any]]:
        """Until `journalctl` finds something."""
        end_s = time.monotonic() + PATIENCE_S
        while not (found := self.ask(*words)):
            assert time.monotonic() < end_s, f"journalctl finds nothing for {words}"
            time.sleep(0.02)
        return found
