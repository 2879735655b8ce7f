"""Starting the processes beside the gate, and the gate's grip on the policy process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from typing import Any, TypeAlias

from mvla_daemon.core.admission import Mode
from mvla_daemon.link import BoardReader, create_board, pack_mode, socket_pair
from mvla_daemon.ops.realtime import expose

Process: TypeAlias = "subprocess.Popen[bytes]"


def start_module(
    module: str,
    *arguments: str,
    pass_fds: Sequence[int] = (),
    stdin: int | None = subprocess.DEVNULL,
    stdout: int | None = None,
    stderr: int | None = None,
) -> Process:
    """Run one of our own modules as a process in a session of its own: a terminal's Ctrl-C is for the gate to handle.

    It gets no descriptor but those named, and nothing of what protects the gate.
    """
    process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
        [sys.executable, "-m", module, *arguments],
        pass_fds=pass_fds,
        stdin=stdin,
        stdout=stdout,
        stderr=stderr,
        start_new_session=True,
    )
    expose(process.pid)
    return process


class PolicyChild:
    """One policy process: its socket, its board, its end.

    `settings` (the configuration and what else it needs, as JSON values) goes in through its standard input, so that
    nothing of it shows in a process list; what native libraries print goes to `stdio_fd`.
    """

    def __init__(self, settings: dict[str, Any], telemetry_fd: int, stdio_fd: int) -> None:
        self.socket, theirs = socket_pair()
        board_fd = create_board()
        self.board = BoardReader(board_fd)
        self.ready = False
        fds = (theirs.fileno(), board_fd, telemetry_fd)
        try:
            self.process = start_module(
                "mvla_daemon.policy",
                *(str(number) for number in (os.getpid(), *fds)),
                pass_fds=fds,
                stdin=subprocess.PIPE,
                stdout=stdio_fd,
                stderr=stdio_fd,
            )
        finally:
            theirs.close()
            os.close(board_fd)
        assert self.process.stdin is not None
        # A pipe holds 64 KiB, a configuration one or two: this never waits for the reader.
        with suppress(BrokenPipeError):
            self.process.stdin.write(json.dumps(settings).encode())
            self.process.stdin.close()

    def order(self, epoch: int, mode: Mode) -> None:
        """Tell it what to do. One that reads nothing is noticed by what it does not send."""
        with suppress(OSError):
            self.socket.send(pack_mode(epoch, mode))

    def receive(self) -> bytes | None:
        """One message, None when there is no more; b"" once the other end is gone."""
        try:
            return self.socket.recv(8192)
        except (BlockingIOError, InterruptedError):
            return None
        except ConnectionResetError:
            # It ended with an order unread; the kernel says so once, ahead of what it had still to say.
            return self.receive()
        except OSError:
            return b""

    def ended(self) -> int | None:
        """Its exit status (negative: the signal), or None while it runs."""
        return self.process.poll()

    def kill(self) -> None:
        """End it, whatever it is doing; does not wait for its memory to be freed."""
        with suppress(ProcessLookupError):
            self.process.kill()

    def close(self) -> None:
        """Let go of what the gate holds of it."""
        self.socket.close()
        self.board.close()
