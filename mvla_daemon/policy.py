"""The policy process: frames in, commands out, on an asyncio loop that nothing in here blocks.

A new frame begins a cycle at once; when none comes for T and a grace, a hold offers the last action again under the
same capture time. Whether any of it moves the robot is for the gate to judge; this process may fail in every way.
"""

from __future__ import annotations

import asyncio
import json
import os
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from time import monotonic_ns
from typing import Any

import uvloop

from mvla_daemon.cameras.base import Camera
from mvla_daemon.cameras.capture import CaptureThread
from mvla_daemon.cameras.file import FileCamera
from mvla_daemon.cameras.slot import Frame, NewestFrameSlot
from mvla_daemon.cameras.v4l2 import V4l2Camera
from mvla_daemon.config import Config
from mvla_daemon.core.admission import Mode, Offer
from mvla_daemon.core.limits import Axes3, VelocityShaper
from mvla_daemon.core.messages import SECOND, Stage, Velocity
from mvla_daemon.core.schedule import hold_due_ns
from mvla_daemon.engines.base import EngineError
from mvla_daemon.engines.instruction import embedding_for
from mvla_daemon.engines.manifest import Manifest, load_manifest
from mvla_daemon.engines.onnxruntime import OnnxRuntimeEngine
from mvla_daemon.engines.thinker import EngineThread, Thinker
from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.link import BoardWriter, pack_command, pack_failed, pack_ready, pack_start, pack_starved, unpack_mode
from mvla_daemon.ops import realtime
from mvla_daemon.ops.telemetry import PolicyCycle, Telemetry

FIRST_FRAME_S = 5.0
"""How long a camera may take to give its first picture: exposure and white balance settle within a second or two."""


def open_camera(config: Config) -> Camera:
    """The camera that the configuration names, not yet open."""
    camera = config.camera
    if camera.file_path is not None:
        return FileCamera(camera.file_path, camera.width, camera.height, camera.fps)
    assert camera.device is not None
    return V4l2Camera(camera.device, camera.width, camera.height, camera.fps)


class PolicyProcess:
    """Everything between the camera and the gate's socket."""

    def __init__(self, config: Config, gate: socket.socket, board: BoardWriter, telemetry: Telemetry) -> None:
        self._config = config
        self._gate = gate
        self._board = board
        self._telemetry = telemetry
        self._period_ns = config.control.period_ns
        self._slot = NewestFrameSlot(config.camera.height, config.camera.width)
        self._shaper = VelocityShaper(config.limits.by_axis())
        self._mode = Mode.IDLE
        self._epoch = 0
        self._cycle = 0
        self._started_ns = 0
        self._newest_ns = 0
        self._wish: Velocity | None = None
        self._frame: Frame | None = None
        self._nudge: asyncio.Future[None] | None = None
        self._gone = False

    async def run(self) -> None:
        """Load, then think until the gate goes away."""
        self._loop = asyncio.get_running_loop()
        self._engine = EngineThread(self._loop)
        self._loop.add_reader(self._gate, self._hear_gate)
        manifest, self._thinker = await self._load()
        camera = open_camera(self._config)
        capture = CaptureThread(
            camera,
            self._slot,
            self._on_frame,
            on_event=lambda name, sentence: self._telemetry.event(name, sentence, "warning"),
            latency_ms=self._config.camera.latency_ms,
            min_interval_ns=self._period_ns // 2,
        )
        await self._loop.run_in_executor(None, capture.open_first)
        capture.start()
        await self._first_frame(camera, capture)
        realtime.set_garbage_aside()
        self._gate.send(pack_ready(_about(manifest, camera)))
        while not self._gone:
            await self._next_cycle()

    async def _load(self) -> tuple[Manifest, Thinker]:
        manifest = load_manifest(self._config.resolve(self._config.policy.manifest))
        engine = OnnxRuntimeEngine(manifest, embedding_for(manifest, self._config.policy.instruction))
        camera = self._config.camera
        thinker = Thinker(manifest, engine, (camera.height, camera.width), camera.rotation, self._board)
        await self._engine.call(thinker.load)
        return manifest, thinker

    async def _first_frame(self, camera: Camera, capture: CaptureThread) -> None:
        end_ns = monotonic_ns() + round(FIRST_FRAME_S * SECOND)
        while not capture.counts["published"]:
            if monotonic_ns() > end_ns:
                got = ", ".join(f"{count} {what}" for what, count in capture.counts.items() if count) or "nothing"
                raise DaemonError(
                    f"{camera.name} gave no usable picture within {FIRST_FRAME_S:g} s ({got}); look at its cable, "
                    f"lens cap and camera.source.",
                    ExitCode.UNAVAILABLE,
                )
            await self._wait(end_ns)

    # --- one cycle ---

    async def _next_cycle(self) -> None:
        """Wait for what begins a cycle: the newest frame, or the time for a hold."""
        if self._mode is Mode.IDLE:
            await self._wait(None)
            return
        frame = self._slot.take()
        if frame is not None:
            await self._think(frame)
            return
        due_ns = hold_due_ns(self._started_ns, self._period_ns)
        if monotonic_ns() < due_ns:
            await self._wait(due_ns)
        elif self._wish is not None:
            self._hold()
        else:
            # Nothing to offer is no reason to seem dead: the gate tells a lost camera from a lost policy by this.
            self._started_ns = monotonic_ns()
            self._send(pack_starved(self._epoch, self._newest_ns))

    async def _think(self, frame: Frame) -> None:
        self._newest_ns = frame.captured_ns
        self._begin(Stage.PREPROCESS)
        epoch = self._epoch
        wish: Velocity = await self._engine.call(self._thinker.think, frame, self._cycle)
        if epoch == self._epoch:
            self._wish, self._frame = wish, frame
            self._offer(wish, frame, hold=False)
        elif self._mode is Mode.DRIVE:
            # The rehearsals have just become a drive, whose deadline runs already: the cycle that was under way counts
            # for nothing, but its action may be held. Nothing from before a stop may.
            self._wish, self._frame = wish, frame
            self._hold()
        else:
            self._board.write(self._cycle, Stage.WAIT_FRAME, monotonic_ns())

    def _hold(self) -> None:
        assert self._wish is not None
        assert self._frame is not None
        self._begin(Stage.SEND)
        self._offer(self._wish, self._frame, hold=True)

    def _begin(self, stage: Stage) -> None:
        self._cycle = (self._cycle + 1) & 0xFFFFFFFF
        self._started_ns = monotonic_ns()
        self._board.write(self._cycle, stage, self._started_ns)
        self._send(pack_start(self._epoch, self._cycle, self._started_ns))

    def _offer(self, wish: Velocity, frame: Frame, *, hold: bool) -> None:
        now_ns = monotonic_ns()
        self._board.write(self._cycle, Stage.SEND, now_ns)
        values: Axes3 = self._shaper.shape(wish.as_tuple(), now_ns)
        sent_ns = monotonic_ns()
        self._send(pack_command(Offer(self._epoch, self._cycle, frame.captured_ns, frame.crc, values)))
        self._board.write(self._cycle, Stage.WAIT_FRAME, sent_ns)
        times = [self._started_ns] * len(Stage) if hold else self._thinker.times_ns
        self._telemetry.cycle(
            PolicyCycle(
                self._epoch,
                self._cycle,
                hold,
                frame.number,
                frame.captured_ns,
                frame.arrived_ns,
                self._started_ns,
                times[Stage.PREPROCESS],
                times[Stage.H2D],
                times[Stage.COMPUTE],
                times[Stage.D2H],
                times[Stage.POSTPROCESS],
                sent_ns,
            )
        )

    # --- the gate ---

    def _send(self, message: bytes) -> None:
        try:
            self._gate.send(message)
        except BlockingIOError:
            return  # the gate is not reading: it will miss this message, and judge by its own clock

    def _hear_gate(self) -> None:
        data = self._gate.recv(64)
        if not data:
            self._gone = True
        else:
            self._epoch, self._mode = unpack_mode(data)
            self._shaper.reset(monotonic_ns())
            if self._mode is not Mode.DRIVE:
                self._wish = self._frame = None
            self._engine.call(self._thinker.reset)
        self._poke()

    # --- waiting ---

    def _on_frame(self) -> None:
        """Called on the capture thread."""
        with suppress(RuntimeError):  # the loop has ended already
            self._loop.call_soon_threadsafe(self._poke)

    def _poke(self) -> None:
        if self._nudge is not None and not self._nudge.done():
            self._nudge.set_result(None)

    async def _wait(self, until_ns: int | None) -> None:
        """Until something happens, or the time comes; may return early, so the caller looks at the clock."""
        self._nudge = self._loop.create_future()
        timer = None
        if until_ns is not None:
            timer = self._loop.call_later(max(0, until_ns - monotonic_ns()) / SECOND, self._poke)
        await self._nudge
        if timer is not None:
            timer.cancel()


def _about(manifest: Manifest, camera: Camera) -> dict[str, Any]:
    return {
        "name": manifest.name,
        "weights": manifest.weights,
        "engine": "onnxruntime",
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


def _set_up(config: Config, cores: set[int]) -> None:
    realtime.keep_off(cores, realtime.gate_core(cores))
    sys.setswitchinterval(realtime.SWITCH_INTERVAL_S)
    if config.realtime.scheduler == "fifo":
        # Only this thread, the loop's: the engine's and the camera's stay ordinary ones.
        realtime.use_fifo(config.realtime.policy_priority)


def main() -> None:
    """Entry point: the gate's pid, then the descriptors of socket, board and telemetry; settings on standard input."""
    parent_pid, gate_fd, board_fd, telemetry_fd = map(int, sys.argv[1:5])
    gate = socket.socket(fileno=gate_fd)
    run: Callable[[Any], None] = uvloop.run
    try:
        realtime.die_with_parent(parent_pid)
        settings = json.load(sys.stdin)
        config = Config.model_validate(settings["config"], strict=False)
        _set_up(config, set(settings["cores"]))
        telemetry = Telemetry(socket.socket(fileno=telemetry_fd))
        run(PolicyProcess(config, gate, BoardWriter(board_fd), telemetry).run())
    except Exception as error:  # noqa: BLE001 - whatever it is, the gate has to be told, and this process ends
        with suppress(OSError):
            gate.send(pack_failed(*_failure(error)))
        os._exit(1)
    os._exit(0)  # a camera's read or an engine may never return: threads are not waited for


if __name__ == "__main__":
    main()
