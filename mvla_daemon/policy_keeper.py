"""Keeps one policy process running beside the gate, and gives up on one that does not stay alive."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

from mvla_daemon.core.admission import Mode
from mvla_daemon.core.messages import SECOND
from mvla_daemon.link import Doing
from mvla_daemon.ops.child import PolicyChild

MAX_RESTARTS = 5
RESTART_WINDOW_NS = 60 * SECOND


class Keeper(Protocol):
    """What the gate knows of the policy's side; `sim/lockstep.py` has one without a process."""

    ready: bool
    restarts: int
    given_up: str

    def filenos(self) -> list[int]:
        """What the gate has to watch."""

    def messages(self, readable: set[int]) -> Iterable[bytes]:
        """What has come from the policy's side, one message after the other."""

    def watch(self, readable: set[int], now_ns: int, *, may_start: bool) -> str:
        """Look after it; how it ended, if it did so by itself just now. A new one only where it `may_start`."""

    def on_ready(self) -> None:
        """It has said that it is ready."""

    def order(self, epoch: int, mode: Mode) -> None:
        """What it is to do, now or once it is ready."""

    def renew(self) -> None:
        """It is not trusted any more: have a new one."""

    def doing(self) -> Doing | None:
        """What it last wrote on its board."""


class PolicyKeeper:
    """`start` makes a new policy process; `given_up` is the sentence once too many of them have ended."""

    def __init__(self, start: Callable[[], PolicyChild]) -> None:
        self._start = start
        self._order = (0, Mode.IDLE)
        self._restarts_ns: deque[int] = deque(maxlen=MAX_RESTARTS)
        self._dismissed = False
        self._pidfd = -1
        self._fds: list[int] = []
        self.child: PolicyChild | None = None
        self.ready = False
        self.restarts = 0
        self.given_up = ""

    def begin(self) -> None:
        """Start the first policy process."""
        self.child = self._start()
        self._pidfd = os.pidfd_open(self.child.process.pid)
        self.ready = False
        self._dismissed = False
        self._fds = [self._pidfd, self.child.socket.fileno()]

    def filenos(self) -> list[int]:
        """What select() has to watch: the process's end, and the socket of one that is still trusted."""
        return self._fds

    def order(self, epoch: int, mode: Mode) -> None:
        """What the policy process is to do, now or once it is ready."""
        self._order = (epoch, mode)
        if self.child is not None and self.ready:
            self.child.order(epoch, mode)

    def on_ready(self) -> None:
        """It has loaded: tell it what it is to do."""
        self.ready = True
        self.order(*self._order)

    def renew(self) -> None:
        """Replace it; the new one starts once the old one's end is seen, however long its memory takes to free.

        For one that has ended by itself, and was reported so by `watch`, that is under way already.
        """
        if self.child is not None and not self._dismissed:
            self.child.kill()
            self.ready = False
            self._dismissed = True
            self._fds = [self._pidfd]

    def messages(self, readable: set[int]) -> Iterable[bytes]:
        """What has come over its socket; after the socket's end its own end, or its silence, will be noticed."""
        if self.child is None or readable.isdisjoint(self._fds[1:]):
            return ()
        return self._received(self.child)

    def _received(self, child: PolicyChild) -> Iterator[bytes]:
        data: bytes | None = None
        while not self._dismissed and (data := child.receive()):
            yield data
        if data == b"":
            self._fds = [self._pidfd]  # select() would report the socket for ever

    def doing(self) -> Doing | None:
        """What it last wrote on its board, whether it still runs or not."""
        return None if self.child is None else self.child.board.read()

    def watch(self, readable: set[int], now_ns: int, *, may_start: bool) -> str:
        """Look after the process; how it ended, if it did so by itself just now.

        It is replaced at a later wake, once it `may_start`: first the robot is stopped for it, and its board is read.
        """
        if self.child is None:
            return ""
        if self._fds:
            status = self.child.ended() if self._pidfd in readable else None
            if status is None:
                return ""
            if not self._dismissed:
                self._dismissed = True
                self._fds = [self._pidfd]
                self.ready = False
                return "the policy process ended " + (f"by signal {-status}" if status < 0 else f"with status {status}")
            self._fds = []
        if may_start:
            self._replace(now_ns)
        return ""

    def _replace(self, now_ns: int) -> None:
        self.stop()
        if len(self._restarts_ns) == MAX_RESTARTS and now_ns - self._restarts_ns[0] < RESTART_WINDOW_NS:
            self.given_up = (
                f"The policy process ended {MAX_RESTARTS + 1} times within a minute; look for what it said in the log, "
                f"mend that and start again."
            )
        else:
            self._restarts_ns.append(now_ns)
            self.restarts += 1
            try:
                self.begin()
            except OSError as error:
                self.given_up = f"The policy process could not be started again ({error}); free memory or processes."

    def stop(self) -> None:
        """End it for good."""
        if self.child is not None:
            self.child.kill()
            self.child.process.wait()
            self.child.close()
            os.close(self._pidfd)
            self._fds = []
            self.child = None
            self.ready = False
