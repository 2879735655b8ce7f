"""A whole daemon on a real pty: started, watched at the far end of the wire, provoked, stopped."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from tests.far_end import CHUNK
from tests.wire import WireFrame, WireReader

if TYPE_CHECKING:
    from collections.abc import Callable

    from typing_extensions import Self

ROOT = Path(__file__).parent.parent
PATIENCE_S = 20.0
"""For what must happen but not at a certain moment, on a machine that may be busy."""

CONFIG = """\
[control]
rate_hz = {rate_hz}
deadline_ms = {deadline_ms}
max_frame_age_ms = {max_frame_age_ms}

[camera]
source = "{source}"
width = {width}
height = {height}
fps = {fps}

[policy]
manifest = "{manifest}"
{instruction}

[motor]
port = "{port}"
watchdog_ms = {watchdog_ms}

[safety]
arm = "auto"
bench_test = true
recover_cycles = 5
max_stops = 1000

[log]
format = "json"
"""


@dataclass(frozen=True)
class Scene:
    """What a daemon in a test looks at and thinks with."""

    clip: Path | None
    """None is the simulated robot's camera."""
    manifest: Path | str
    width: int = 160
    height: int = 120
    fps: int = 50
    instruction: str | None = None


@dataclass(frozen=True)
class Pace:
    """The times of a run. What is not about time runs at a calm pace, so that a busy machine changes no result."""

    rate_hz: int
    deadline_ms: int
    max_frame_age_ms: int
    watchdog_ms: int


CALM = Pace(10, 100, 500, 500)
REAL = Pace(50, 20, 100, 100)
BRISK = Pace(20, 50, 200, 300)
"""As calm as many stops and armings one after the other can afford to be."""


@dataclass(frozen=True)
class Timed:
    """A frame and when its last byte was read at the far end."""

    at_ns: int
    frame: WireFrame

    @property
    def kind(self) -> str:
        return self.frame.kind


def environment(folder: Path) -> dict[str, str]:
    kept = {key: value for key, value in os.environ.items() if key in {"PATH", "LANG", "LD_LIBRARY_PATH"}}
    return {**kept, "HOME": str(folder), "RUNTIME_DIRECTORY": str(folder / "run"), "PYTHONUNBUFFERED": "1"}


def command(config: Path, *words: str) -> list[str]:
    return [sys.executable, "-W", "error", "-m", "mvla_daemon", "--config", str(config), *words]


class Rig:
    """Use as a context manager; nothing it started survives it."""

    def __init__(self, folder: Path, scene: Scene, *, pace: Pace = CALM, port: str | None = None) -> None:
        self.folder = folder
        self.config = folder / "config.toml"
        self._log_path = folder / "wire.log"
        self._scene = scene
        self._port = port
        self._pace = pace
        self._daemon: subprocess.Popen[str] | None = None
        self._far: subprocess.Popen[str] | None = None
        self._log_at = 0
        self._reader = WireReader()
        self._said_at = 0
        self._said_reader = WireReader()
        self._statuses: list[WireFrame] = []
        self._events: list[dict[str, object]] = []
        self._events_at = 0
        self.wire: list[Timed] = []
        self.environment: dict[str, str] = {}
        self.within: list[str] = []
        """Words before the daemon's own: a program that becomes the daemon."""
        self._stderr: IO[str] | None = None

    def __enter__(self) -> Self:
        there = self._start_far("tests.far_end", str(self._log_path))
        self.port = self._port or there[0]
        self._configure()
        return self

    def _start_far(self, *words: str) -> list[str]:
        self._far = subprocess.Popen(
            [sys.executable, "-m", *words],
            cwd=ROOT,
            # A copy: pytest changes the process's own for each test, maybe while this thread's child is reading it.
            env=dict(os.environ),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert self._far.stdout is not None
        return self._far.stdout.readline().split()

    def _configure(self) -> None:
        scene = self._scene
        self.config.write_text(
            CONFIG.format(
                source="sim://" if scene.clip is None else f"file://{scene.clip}",
                manifest=scene.manifest,
                instruction=f'instruction = "{scene.instruction}"' if scene.instruction else "",
                width=scene.width,
                height=scene.height,
                fps=scene.fps,
                port=self.port,
                **asdict(self._pace),
            )
        )

    def __exit__(self, *_: object) -> None:
        for process in (self._daemon, self._far):
            if process is not None:
                process.kill()
                process.wait()
                for stream in (process.stdin, process.stdout, process.stderr):
                    if stream is not None:
                        stream.close()
        if self._stderr is not None:
            self._stderr.close()

    # --- the daemon ---

    def start(self, *words: str) -> None:
        if self._stderr is not None:
            self._stderr.close()
        self._stderr = (self.folder / "stderr.log").open("w")
        self._events, self._events_at = [], 0
        self._daemon = subprocess.Popen(
            [*self.within, *command(self.config, *words)],
            cwd=ROOT,
            env=environment(self.folder) | self.environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            text=True,
        )

    def start_driving(self, *words: str) -> None:
        self.start(*words)
        self.wait_for("VELOCITY")

    @property
    def pid(self) -> int:
        assert self._daemon is not None
        return self._daemon.pid

    def wait(self) -> int:
        assert self._daemon is not None
        return self._daemon.wait(PATIENCE_S)

    def said(self) -> str:
        return (self.folder / "stderr.log").read_text()

    def events(self, kind: str) -> list[dict[str, object]]:
        """The records of a kind; each is read once, because this is asked again and again."""
        with (self.folder / "stderr.log").open("rb") as log:
            log.seek(self._events_at)
            *lines, unfinished = log.read().split(b"\n")
            self._events_at = log.tell() - len(unfinished)
        self._events += [json.loads(line) for line in lines if line.startswith(b"{")]
        return [event for event in self._events if event.get("kind") == kind]

    def policy_pid(self) -> int:
        for child in Path(f"/proc/{self.pid}/task/{self.pid}/children").read_text().split():
            with suppress(FileNotFoundError, ProcessLookupError):  # it has just ended
                if "mvla_daemon.policy" in Path(f"/proc/{child}/cmdline").read_text():
                    return int(child)
        raise AssertionError("the daemon has no policy process")

    def tell(self, *words: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command(self.config, *words),
            cwd=ROOT,
            env=environment(self.folder),
            capture_output=True,
            text=True,
            check=False,
            timeout=PATIENCE_S,
        )

    def ask(self, request: str) -> dict[str, Any]:
        """What the daemon answers an operator, without the time that a client's process takes to start."""
        path = str(next((self.folder / "run").glob("*.sock")))
        answer = b""
        while not answer:  # the desk may be full
            with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as client, suppress(BrokenPipeError):
                client.settimeout(PATIENCE_S)
                client.connect(path)
                client.send(request.encode())
                answer = client.recv(8192)
        return dict(json.loads(answer))

    def arm(self) -> None:
        """Have it drive again as soon as it stands, whether by itself or not."""

        def moves() -> bool:
            return self.ask("status")["state"] == "armed" or (self.ask("arm")["ok"] and False)

        before = len(self.read_wire())
        self.wait_until(moves, "arming")
        self.wait_for("VELOCITY", after=before)

    # --- the far end ---

    def far_pid(self) -> int:
        assert self._far is not None
        return self._far.pid

    def far(self, words: str) -> None:
        assert self._far is not None
        assert self._far.stdin is not None
        self._far.stdin.write(words + "\n")
        self._far.stdin.flush()

    def read_wire(self) -> list[Timed]:
        """All frames so far; any that can't be decoded fails the test."""
        with self._log_path.open("rb") as log:
            log.seek(self._log_at)
            data = log.read()
        at = 0
        while len(data) - at >= CHUNK.size:
            at_ns, length = CHUNK.unpack_from(data, at)
            if len(data) - at < CHUNK.size + length:
                break
            chunk = data[at + CHUNK.size : at + CHUNK.size + length]
            self.wire += [Timed(at_ns, frame) for frame in self._reader.feed(chunk)]
            at += CHUNK.size + length
        self._log_at += at
        assert self._reader.undecodable == []
        return self.wire

    def statuses(self) -> list[WireFrame]:
        """All that the controller has reported so far, whether it got through or not."""
        with self._log_path.with_suffix(".said").open("rb") as said:
            said.seek(self._said_at)
            data = said.read()
        self._said_at += len(data)
        self._statuses += [frame for frame in self._said_reader.feed(data) if frame.kind == "STATUS"]
        return self._statuses

    def wait_until(self, true: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < end, f"no {what} within {PATIENCE_S} s; the daemon said:\n{self.said()}"
            time.sleep(0.005)

    def wait_for(self, kind: str, after: int = 0, count: int = 1) -> list[Timed]:
        """The frames of a kind from index `after` of the wire on, once there are enough."""

        def found() -> list[Timed]:
            return [timed for timed in self.read_wire()[after:] if timed.kind == kind]

        self.wait_until(lambda: len(found()) >= count, f"{count} {kind}")
        return found()


class GroundRig(Rig):
    """A daemon on the self-test's proving ground: robot, line and camera fail on order, and so does the policy process.

    `link` is the name by which the daemon knows its port, whatever pty that is.
    """

    def __enter__(self) -> Self:
        there = self._start_far("mvla_daemon.selftest.ground_process", "--log", str(self._log_path))
        port, self.camera = there
        self.port = "sim://"
        self.link = self.folder / "usb-motors"
        self.link.symlink_to(port)
        self._configure()
        return self

    def start(self, *words: str) -> None:
        # A policy process that is told to spin is not to keep those of other tests from running.
        below = ("--set", "realtime.policy_priority=1")
        super().start(*below, *words, "--ground", str(self.link), self.camera, str(self.folder / "sabotage"))

    def order(self, *orders: str) -> list[str]:
        """Have the ground do something, or several things; what its last answer says beside the time."""
        self.far("\n".join(orders))
        assert self._far is not None
        assert self._far.stdout is not None
        answers = [self._far.stdout.readline().split() for _ in orders]
        for words, answer in zip(orders, answers, strict=True):
            assert answer[0] == "done", f"the ground does not know {words!r}"
        return answers[-1][2:]

    def sabotage(self, words: str, *, answered: bool = True) -> None:
        """Have the policy process do something; `answered` once it has been done."""
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as sender:
            if answered:
                sender.settimeout(PATIENCE_S)
                sender.bind("")
            sender.sendto(words.encode(), str(self.folder / "sabotage"))
            if answered:
                answer = sender.recv(256)
                assert answer.startswith(b"done"), answer

    def unplug(self) -> None:
        """The port and its name are gone; whoever gets its number next is not to be taken for it."""
        self.link.unlink()
        self.order("hang_up")

    def plug_in(self) -> None:
        """The port comes back as another node, under its old name."""
        (path,) = self.order("plug_in")
        self.link.symlink_to(path)


def reasons(rig: Rig, after: int = 0) -> list[int]:
    """The reasons of the STOPs from an index of the wire on, repetitions left out."""
    stops = [timed.frame.number("reason") for timed in rig.read_wire()[after:] if timed.kind == "STOP"]
    return [reason for reason, _ in itertools.groupby(stops)]


def stop_time_ms(rig: Rig) -> float:
    """Last VELOCITY to first STOP at the far end, of the newest stop."""
    wire = rig.read_wire()
    at = max(i for i in range(1, len(wire)) if wire[i].kind == "STOP" and wire[i - 1].kind == "VELOCITY")
    return (wire[at].at_ns - wire[at - 1].at_ns) / 1e6


def freeze(pid: int) -> None:
    os.kill(pid, signal.SIGSTOP)


def thaw(pid: int) -> None:
    os.kill(pid, signal.SIGCONT)


def gone(pid: int) -> bool:
    """Whether a process has ended (a zombie that nobody has waited for counts)."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z"
    except (FileNotFoundError, ProcessLookupError):  # the one to open, the other to read, when it ends in between
        return True
