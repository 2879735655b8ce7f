"""The daemon under test: starts it, reads what it says, and does to it what the faults ask for."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from mvla_daemon.config import Config
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.ops import realtime
from mvla_daemon.ops.control_client import ask

_READ_BYTES = 65536
_POLICY = b"mvla_daemon.policy"


class DaemonLink:
    """A running daemon. `records` are those of its log, `state` the newest phase that it has told of.

    `sabotage` is where the policy process takes its orders.
    """

    def __init__(self, config: Config, ground: Sequence[str], sabotage: Path, log: Path) -> None:
        self.records: list[dict[str, Any]] = []
        self.state = "disarmed"
        self.renewals = -1
        """How often the policy process was replaced; the first one is not counted."""
        self.words: list[str] = []
        """What it said in plain text: the sentence of its end."""
        self._config = config
        self._sabotage = sabotage
        self._log = log.open("ab")
        self._pending = b""
        self._saboteur = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_NONBLOCK)
        self._saboteur.bind("")
        pid = os.getpid()
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and our own module
            [sys.executable, "-m", "mvla_daemon", "--config", str(config.path), "--ground", *ground, str(sabotage)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            start_new_session=True,
            preexec_fn=lambda: realtime.die_with_parent(pid),  # noqa: PLW1509 - this process has a single thread
        )
        assert self._process.stderr is not None
        os.set_blocking(self._process.stderr.fileno(), False)

    @property
    def pid(self) -> int:
        """The gate's process."""
        return self._process.pid

    @property
    def ended(self) -> int | None:
        """Its exit code (negative: the signal), or None while it runs."""
        return self._process.poll()

    @property
    def is_real_time(self) -> bool:
        """Whether the gate was granted what the configuration asks for."""
        try:
            return bool(os.sched_getscheduler(self.pid) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO)
        except ProcessLookupError:
            return False

    def policy_pid(self) -> int | None:
        """Its policy process, if there is one."""
        with suppress(OSError):
            for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
                with suppress(OSError):
                    if _POLICY in Path(f"/proc/{child}/cmdline").read_bytes().split(b"\0"):
                        return int(child)
        return None

    # --- what it says ---

    def listen(self) -> None:
        """Take in what it and its saboteur have said since."""
        assert self._process.stderr is not None
        with suppress(BlockingIOError):
            while data := os.read(self._process.stderr.fileno(), _READ_BYTES):
                self._log.write(data)
                *lines, self._pending = (self._pending + data).split(b"\n")
                for line in lines:
                    self._take(line.decode("utf-8", "replace"))
        with suppress(BlockingIOError):
            while answer := self._saboteur.recv(_READ_BYTES):
                if not answer.startswith(b"done"):
                    raise DaemonError(f"The saboteur says {answer.decode('ascii', 'replace')}.", ExitCode.INTERNAL)

    def _take(self, line: str) -> None:
        try:
            record = json.loads(line)
        except ValueError:
            self.words.append(line)
            return
        self.records.append(record)
        if record.get("kind") == "state":
            self.state = str(record.get("state"))
        elif record.get("kind") == "policy_ready":
            self.renewals += 1

    def stop_record(self, since: int) -> dict[str, Any] | None:
        """The first record of a stop from index `since` of the records on."""
        return next((record for record in self.records[since:] if record.get("kind") == "stop"), None)

    def why(self) -> str:
        """Its newest words about what is wrong, for people."""
        if self.words:
            return self.words[-1].removeprefix("mvla-daemon: ")
        bad = [
            one for one in self.records if one.get("level") in {"warning", "error"} and one.get("kind") != "realtime"
        ]
        return str(bad[-1].get("event", "")) if bad else "it does not say why"

    # --- what is done to it ---

    def operate(self, request: str) -> None:
        """What an operator may ask for; a refusal is an answer too."""
        ask(self._config.path, request)

    def sabotage(self, order: str) -> None:
        """An order to the policy process; one that has ended already needs no more."""
        with suppress(ConnectionRefusedError, FileNotFoundError):
            self._saboteur.sendto(order.encode(), str(self._sabotage))

    def send_signal(self, whom: str, name: str) -> None:
        """A signal to the gate or to the policy process, if it is still there."""
        pid = self.pid if whom == "gate" else self.policy_pid()
        if pid is not None and self.ended is None:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.Signals[name])

    def policy_holds(self, path: Path) -> bool:
        """Whether the policy process has that file open."""
        pid = self.policy_pid()
        found = False
        if pid is not None:
            with suppress(OSError):
                for link in Path(f"/proc/{pid}/fd").iterdir():
                    with suppress(OSError):
                        found = found or link.resolve() == path.resolve()
        return found

    def policy_resident_mib(self) -> int:
        """How much memory the policy process has touched."""
        with suppress(OSError):
            pages = int(Path(f"/proc/{self.policy_pid()}/statm").read_text().split()[1])
            return pages * os.sysconf("SC_PAGE_SIZE") >> 20
        return 0

    def close(self) -> None:
        """End it at once, if it still runs."""
        with suppress(ProcessLookupError):
            self._process.kill()
        self._process.wait()
        self.listen()
        assert self._process.stderr is not None
        self._process.stderr.close()
        self._saboteur.close()
        self._log.close()
