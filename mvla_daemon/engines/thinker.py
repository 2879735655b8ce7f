"""From a frame to the action the policy wants, on one thread that owns the engine."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable
from queue import SimpleQueue
from time import monotonic_ns
from typing import Any, Protocol, TypeAlias

from mvla_daemon.cameras.slot import Frame
from mvla_daemon.core.action import ActionMapping
from mvla_daemon.core.image import Orientation, Preprocessor
from mvla_daemon.core.messages import Stage, Velocity
from mvla_daemon.engines.base import Engine
from mvla_daemon.engines.manifest import Manifest
from mvla_daemon.ops.realtime import Precedence, precede_others

_Job: TypeAlias = "tuple[Callable[[Any], object], Callable[[Exception], object], Callable[..., Any], tuple[Any, ...]]"


class EngineThread:
    """One thread for everything that touches the engine, since a device context belongs to one.

    A hop there and back costs a third of what a ThreadPoolExecutor's does (measured: 65 us instead of 200 us, median).
    """

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self._loop = loop
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        threading.Thread(target=self._run, name="engine", daemon=True).start()

    def post(
        self,
        then: Callable[[Any], object],
        failed: Callable[[Exception], object],
        function: Callable[..., Any],
        *arguments: Any,
    ) -> None:
        """Call `function` on the engine's thread, after what was posted before; its outcome is told on the loop."""
        self._jobs.put((then, failed, function, arguments))

    def call(self, function: Callable[..., Any], *arguments: Any) -> asyncio.Future[Any]:
        """The same, awaitable."""
        future = self._loop.create_future()
        self.post(future.set_result, future.set_exception, function, *arguments)
        return future

    def _run(self) -> None:
        precede_others()
        while True:
            then, failed, function, arguments = self._jobs.get()
            try:
                result = function(*arguments)
            except Exception as error:  # noqa: BLE001 - whatever it is, it belongs to whoever asked
                self._loop.call_soon_threadsafe(failed, error)
            else:
                self._loop.call_soon_threadsafe(then, result)


class Board(Protocol):
    """Where it is written what is being done; see `link.BoardWriter`."""

    def write(self, cycle: int, stage: Stage, now_ns: int) -> None:
        """Say which stage of which cycle begins now."""


class Thinker:
    """Preprocesses, infers and maps; `times_ns[stage]` says when each stage of the newest thought began.

    It lays the thread's `precedence` down while the network computes: that may take most of a cycle, or never end, and
    needs no lock that others wait for.

    Everything but the constructor runs on the engine's thread.
    """

    def __init__(
        self, manifest: Manifest, engine: Engine, source_size: tuple[int, int], orientation: Orientation, board: Board
    ) -> None:
        height, width = source_size
        self.times_ns = [0] * len(Stage)
        self.precedence = Precedence(0)
        self._tensor = manifest.inputs.image.tensor
        self._engine = engine
        self._preprocess = Preprocessor(manifest.inputs.image, height, width, orientation)
        self._action = ActionMapping(manifest.axes)
        self._board = board
        self._cycle = 0

    def load(self) -> None:
        """Load the model and infer a few times; raises DaemonError."""
        self._engine.load()
        self._engine.warm_up()

    def think(self, frame: Frame, cycle: int) -> Velocity:
        """The velocity that the policy wants for this frame, as it is: not clamped, maybe not finite.

        Raises EngineError when there is none.
        """
        self._cycle = cycle
        self._mark(Stage.PREPROCESS)
        self._preprocess(frame.pixels, self._engine.inputs[self._tensor])
        self.precedence.lay_down()
        self._engine.infer(self._mark)
        self.precedence.take_up()
        self._mark(Stage.POSTPROCESS)
        wish = self._action(self._engine.outputs)
        self._mark(Stage.SEND)  # what is left is to hand it over; a loop that is held up must not look like this thread
        return wish

    def reset(self) -> None:
        """Forget what a recurrent policy remembers."""
        self._engine.reset_state()

    def _mark(self, stage: Stage) -> None:
        now_ns = monotonic_ns()
        self.times_ns[stage] = now_ns
        self._board.write(self._cycle, stage, now_ns)
