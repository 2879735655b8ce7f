"""The self-test's hold on the ground: starts it, gives it orders, and reads what arrived at its end of the wire."""

from __future__ import annotations

import os
import select
import subprocess
from pathlib import Path

from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.ops.child import start_module
from mvla_daemon.selftest.wire_log import WireLog

START_S = 60.0
ANSWER_S = 30.0


class GroundLink:
    """A ground process. `port` is a link in `folder` to its port, the same one when that is plugged in elsewhere."""

    def __init__(self, folder: Path, log: Path, fps: float) -> None:
        self.port = folder / "port"
        self._log = log
        words = ("--log", str(log), "--fps", str(fps), "--parent-pid", str(os.getpid()))
        module = "mvla_daemon.selftest.ground_process"
        self._process = start_module(module, *words, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        path, self.camera = self._answer(START_S)
        self.port.symlink_to(path)
        self.wire = WireLog(log)

    def order(self, words: str) -> None:
        """Have an order carried out."""
        if words == "hang_up":  # the next terminal that anyone opens may get its number, and is not the robot's
            self.port.unlink(missing_ok=True)
        assert self._process.stdin is not None
        self._process.stdin.write(f"{words}\n".encode())
        self._process.stdin.flush()
        done, *more = self._answer(ANSWER_S)
        if done != "done":
            raise DaemonError(f"The self-test's robot does not know {words!r}.", ExitCode.INTERNAL)
        if words == "plug_in":
            self.port.symlink_to(more[1])

    def _answer(self, patience_s: float) -> list[str]:
        assert self._process.stdout is not None
        words = []
        if select.select([self._process.stdout], [], [], patience_s)[0]:
            words = self._process.stdout.readline().decode().split()
        if not words:
            raise DaemonError("The self-test's robot has ended or does not answer; try again.", ExitCode.TRY_AGAIN)
        return words

    def said(self) -> bytes:
        """All that the controller has said, whether it was heard or not."""
        return self._log.with_suffix(".said").read_bytes()

    def close(self) -> None:
        """End the process."""
        self._process.kill()
        self._process.wait()
        for stream in (self._process.stdin, self._process.stdout):
            if stream is not None:
                stream.close()
