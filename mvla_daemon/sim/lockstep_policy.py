"""The policy's side in simulated time: camera, cycles and thinking without a process, each at its simulated time."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

from mvla_daemon.cameras.slot import Frame, NewestFrameSlot
from mvla_daemon.config import Config
from mvla_daemon.core.admission import Mode
from mvla_daemon.core.messages import MS, Stage, Velocity
from mvla_daemon.cycles import Cycles, Outlets
from mvla_daemon.engines.base import EngineError
from mvla_daemon.errors import ExitCode
from mvla_daemon.link import Doing, pack_failed, pack_ready
from mvla_daemon.ops.telemetry import Telemetry
from mvla_daemon.sim.timeline import Timeline

Think: TypeAlias = "Callable[[Frame], Velocity]"
"""A frame's velocity (m/s, m/s, rad/s); raises EngineError when there is none."""

THOUGHT_NS = 4 * MS
"""Preprocessing and inference."""
MESSAGE_NS = MS // 10
"""From the gate to the policy process."""
RENEWAL_NS = 1000 * MS
"""A policy process that is no longer trusted is replaced by a new one after this long."""


class LockstepPolicy:
    """What the gate keeps instead of a policy process; its messages are to be read at `fd`."""

    def __init__(
        self,
        config: Config,
        timeline: Timeline,
        fd: int,
        think: Think,
        reset: Callable[[], None],
        telemetry: Telemetry,
        about: dict[str, Any],
    ) -> None:
        self.ready, self.restarts, self.given_up = False, 0, ""
        self.slot = NewestFrameSlot(config.camera.height, config.camera.width)
        self._period_ns = config.control.period_ns
        self._limits = tuple(config.limits.by_axis())
        self._timeline = timeline
        self._fd = fd
        self._think = think
        self._reset = reset
        self._telemetry = telemetry
        self._about = about
        self._messages: deque[bytes] = deque()
        self._ordered = (0, Mode.IDLE)
        timeline.watch(fd, lambda: bool(self._messages))
        self._begin(timeline.now_ns())

    def _begin(self, loaded_ns: int) -> None:
        """Be as new; nothing that was under way counts any more."""
        self._messages.clear()
        self._loaded_ns: int | None = loaded_ns
        self._due_ns: int | None = None
        self._times_ns = [0] * len(Stage)
        now_ns, trace = self._timeline.now_ns, self._telemetry.cycle
        outlets = Outlets(now_ns, self._messages.append, _mark, self._begin_thought, trace)
        self._cycles = Cycles(self._period_ns, self._limits, self.slot, self._times_ns, outlets)

    def on_frame(self) -> None:
        """There is a new frame in the slot; the first one after loading makes the policy ready."""
        if self._loaded_ns is not None and self._timeline.now_ns() >= self._loaded_ns:
            self._loaded_ns = None
            self._messages.append(pack_ready(self._about))
        self._move_on()

    def _move_on(self) -> None:
        due_ns = self._cycles.move_on()
        if due_ns is not None and due_ns != self._due_ns:
            self._due_ns = due_ns
            self._timeline.at(due_ns, self._on_due)

    def _on_due(self) -> None:
        if self._due_ns is not None and self._timeline.now_ns() >= self._due_ns:
            self._due_ns = None
            self._move_on()

    def _begin_thought(self, frame: Frame, _cycle: int) -> None:
        try:
            wish = self._think(frame)
        except EngineError as error:
            self._messages.append(pack_failed(ExitCode.INTERNAL, f"the engine failed: {error}"))
            return
        now_ns, cycles = self._timeline.now_ns(), self._cycles
        for stage in Stage:
            self._times_ns[stage] = now_ns + THOUGHT_NS if stage > Stage.COMPUTE else now_ns

        def end() -> None:
            if cycles is self._cycles:
                cycles.thought(wish)
                self._move_on()

        self._timeline.at(now_ns + THOUGHT_NS, end)

    # --- what the gate knows of it ---

    def filenos(self) -> list[int]:
        """One number for the socket that there is not."""
        return [self._fd]

    def messages(self, readable: set[int]) -> Iterator[bytes]:
        """What was sent."""
        while self._messages and self._fd in readable:
            yield self._messages.popleft()

    def watch(self, readable: set[int], now_ns: int, *, may_start: bool) -> str:  # noqa: ARG002 - as the protocol says
        """There is no process that could end."""
        return ""

    def on_ready(self) -> None:
        """It can be ordered about."""
        self.ready = True
        self.order(*self._ordered)

    def order(self, epoch: int, mode: Mode) -> None:
        """Begin this after a message's time."""
        self._ordered = (epoch, mode)
        if self.ready:
            cycles = self._cycles

            def obey() -> None:
                if cycles is self._cycles:
                    self._reset()
                    cycles.order(epoch, mode)
                    self._move_on()

            self._timeline.at(self._timeline.now_ns() + MESSAGE_NS, obey)

    def renew(self) -> None:
        """Be as new, some time later."""
        if self.ready:
            self.ready = False
            self.restarts += 1
            self._begin(self._timeline.now_ns() + RENEWAL_NS)

    def doing(self) -> Doing | None:
        """There is no board."""
        return None


def _mark(_cycle: int, _stage: Stage, _now_ns: int) -> None:
    """There is no board: a gate in lockstep never has to ask what a frozen process was doing."""
