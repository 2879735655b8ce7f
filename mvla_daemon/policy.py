"""The policy process: frames in, commands out, on an asyncio loop that nothing in here blocks.

`cycles.py` says what begins a cycle and what it offers; here are the camera's thread, the engine's thread, the gate's
socket and the timer that move it on. This process may fail in every way: the gate relies on none of it.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from time import monotonic_ns
from typing import Any

import uvloop

from mvla_daemon.cameras.base import Camera
from mvla_daemon.cameras.capture import CaptureThread
from mvla_daemon.cameras.slot import Frame, NewestFrameSlot
from mvla_daemon.config import Config
from mvla_daemon.core.image import Orientation
from mvla_daemon.core.messages import SECOND, Velocity
from mvla_daemon.cycles import Cycles, Outlets
from mvla_daemon.engines.base import Engine, EngineError
from mvla_daemon.engines.manifest import Manifest, load_manifest
from mvla_daemon.engines.thinker import EngineThread, Thinker
from mvla_daemon.equipment import camera_for, engine_for
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.link import BoardWriter, pack_failed, pack_ready, unpack_mode
from mvla_daemon.ops import realtime
from mvla_daemon.ops.telemetry import Telemetry

FIRST_FRAME_S = 5.0
"""How long a camera may take to give its first picture: exposure and white balance settle within a second or two."""


class PolicyProcess:
    """Everything between the camera and the gate's socket.

    Before `run`, others may be put in the place of `gate`, `slot` and `make_thinker`.
    """

    def __init__(
        self,
        config: Config,
        gate: socket.socket,
        board: BoardWriter,
        telemetry: Telemetry,
        simulated_camera: Path | None = None,
    ) -> None:
        self.config = config
        self._simulated_camera = simulated_camera
        self.gate = gate
        self._board = board
        self._telemetry = telemetry
        self.slot = NewestFrameSlot(config.camera.height, config.camera.width)
        self.make_thinker: Callable[..., Thinker] = Thinker
        self._timer: asyncio.TimerHandle | None = None

    async def run(self) -> None:
        """Load, then think until the gate goes away."""
        self._loop = asyncio.get_running_loop()
        # An error in a callback would otherwise be printed, and the loop go on without it.
        self._loop.set_exception_handler(lambda _, said: self._fail(said.get("exception") or Exception(said)))
        self._ended: asyncio.Future[None] = self._loop.create_future()
        self._first_frame = asyncio.Event()
        self._engine = EngineThread(self._loop)
        manifest, self._thinker = await self._load()
        self._cycles = Cycles(
            self.config.control.period_ns,
            tuple(self.config.limits.by_axis()),
            self.slot,
            self._thinker.times_ns,
            Outlets(monotonic_ns, self._send, self._board.write, self._think, self._telemetry.cycle),
        )
        self._loop.add_reader(self.gate, self._hear_gate)
        camera = await self._watch_camera()
        realtime.set_garbage_aside()
        self.gate.send(pack_ready(_about(manifest, f"{self.config.policy.backend} {self._loaded.how}".strip(), camera)))
        await self._ended

    async def _load(self) -> tuple[Manifest, Thinker]:
        # On the engine's thread, an ordinary one until all is loaded: a library takes 0.2 s, a large file's sum longer.
        manifest, engine = await self._engine.call(self._open_engine)
        camera = self.config.camera
        orientation = Orientation(camera.rotation, camera.flip)
        thinker = self.make_thinker(manifest, engine, (camera.height, camera.width), orientation, self._board)
        await self._engine.call(thinker.load)
        # Not before: to build an engine takes all that a processor has, for minutes.
        thinker.precedence = await self._engine.call(realtime.follow_event_loop, realtime.ENGINE_STEPS)
        return manifest, thinker

    def _open_engine(self) -> tuple[Manifest, Engine]:
        manifest = load_manifest(self.config.resolve(self.config.policy.manifest))
        self._loaded = engine_for(self.config, manifest, self._tell, self._tell_built)
        return manifest, self._loaded

    def _tell(self, sentence: str) -> None:
        """What loading has to say; it may be called on any thread."""
        self._telemetry.event("engine", sentence, "info")

    def _tell_built(self, sentence: str, about: Mapping[str, Any]) -> None:
        self._telemetry.event("engine_built", sentence, "info", **about)

    def _tell_of_camera(self, sentence: str) -> None:
        """What opening the camera has to say; called on the thread that opens it."""
        self._telemetry.event("camera", sentence, "warning")

    async def _watch_camera(self) -> Camera:
        """Start to capture; returns once there was a usable picture."""
        camera = camera_for(self.config, self._simulated_camera, self._tell_of_camera)
        capture = CaptureThread(
            camera,
            self.slot,
            self._on_frame,
            on_event=lambda name, sentence: self._telemetry.event(name, sentence, "warning"),
            latency_ns=self.config.camera.latency_ns,
            min_interval_ns=self.config.control.period_ns // 2,
            frame_period_ns=self.config.camera.frame_period_ns if self.config.camera.is_live else 0,
        )
        await self._loop.run_in_executor(None, capture.open_first)
        capture.start()
        try:
            await asyncio.wait_for(self._first_frame.wait(), FIRST_FRAME_S)
        except asyncio.TimeoutError:  # which is not TimeoutError before Python 3.11
            got = ", ".join(f"{count} {what}" for what, count in capture.counts.items() if count) or "nothing"
            raise DaemonError(
                f"{camera.name} gave no usable picture within {FIRST_FRAME_S:g} s ({got}); look at its cable, "
                f"lens cap and camera.source.",
                ExitCode.UNAVAILABLE,
            ) from None
        return camera

    # --- what moves a cycle on ---

    def _on_frame(self) -> None:
        """Called on the capture thread."""
        self._board.frame_came(monotonic_ns())
        with suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._on_frame_here)

    def _on_frame_here(self) -> None:
        self._first_frame.set()
        self._move_on()

    def _move_on(self) -> None:
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        due_ns = self._cycles.move_on()
        if due_ns is not None:
            self._timer = self._loop.call_later(max(0, due_ns - monotonic_ns()) / SECOND, self._move_on)

    def _think(self, frame: Frame, cycle: int) -> None:
        self._engine.post(self._thought, self._fail, self._thinker.think, frame, cycle)

    def _thought(self, wish: Velocity) -> None:
        self._cycles.thought(wish)
        self._move_on()

    def _fail(self, error: Exception) -> None:
        if not self._ended.done():
            self._ended.set_exception(error)

    # --- the gate ---

    def _send(self, message: bytes) -> None:
        try:
            self.gate.send(message)
        except BlockingIOError:
            return  # the gate is not reading: it will miss this message, and judge by its own clock
        except OSError as error:
            self._fail(error)

    def _hear_gate(self) -> None:
        data = self.gate.recv(64)
        if not data:
            if not self._ended.done():
                self._ended.set_result(None)
            self._loop.remove_reader(self.gate)
            return
        self._engine.post(lambda _: None, self._fail, self._thinker.reset)
        self._cycles.order(*unpack_mode(data))
        self._move_on()


def _about(manifest: Manifest, backend: str, camera: Camera) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "weights": manifest.weights,
        "engine": backend,
        "camera": f"{camera.name} (capture times: {camera.clock})",
    }


def _failure(error: Exception) -> tuple[ExitCode, str]:
    """The exit code and the sentence for what ended the process."""
    if isinstance(error, DaemonError):
        return error.exit_code, str(error)
    if isinstance(error, EngineError):
        return ExitCode.INTERNAL, f"the engine failed: {error}"
    where = error.__traceback__
    while where is not None and where.tb_next is not None:
        where = where.tb_next
    line = f" at {os.path.basename(where.tb_frame.f_code.co_filename)}:{where.tb_lineno}" if where is not None else ""  # noqa: PTH119
    return ExitCode.INTERNAL, f"the policy process failed: {type(error).__name__}: {error}{line}"


def _set_up(config: Config, cores: set[int], telemetry: Telemetry, *, gate_has_fifo: bool) -> None:
    sys.setswitchinterval(realtime.SWITCH_INTERVAL_S)
    priority = config.realtime.policy_priority if config.realtime.scheduler == "fifo" else None
    realtime.become_policy(cores, priority, gate_has_fifo=gate_has_fifo).tell(telemetry)


def main() -> None:
    """Entry point: the gate's pid, then the descriptors of socket, board and telemetry; settings on standard input."""
    parent_pid, gate_fd, board_fd, telemetry_fd = map(int, sys.argv[1:5])
    gate = socket.socket(fileno=gate_fd)
    run: Callable[[Any], None] = uvloop.run
    try:
        realtime.die_with_parent(parent_pid)
        settings = json.load(sys.stdin)
        config = Config.model_validate(settings["config"], strict=False)
        telemetry = Telemetry(socket.socket(fileno=telemetry_fd))
        _set_up(config, set(settings["cores"]), telemetry, gate_has_fifo=settings["gate_has_fifo"])
        simulated_camera = Path(settings["simulated_camera"]) if settings["simulated_camera"] else None
        process = PolicyProcess(config, gate, BoardWriter(board_fd), telemetry, simulated_camera)
        if settings["sabotage"]:
            from mvla_daemon.selftest.saboteur import infiltrate  # noqa: PLC0415 - only the self-test has one

            infiltrate(process, Path(settings["sabotage"]))
        run(process.run())
    except Exception as error:  # noqa: BLE001 - whatever it is, the gate has to be told, and this process ends
        with suppress(OSError):
            gate.send(pack_failed(*_failure(error)))
        os._exit(1)
    os._exit(0)  # a camera's read or an engine may never return: threads are not waited for


if __name__ == "__main__":
    main()
