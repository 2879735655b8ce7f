"""The policy process's cycles: what begins one, what it offers, when it holds; time and thinking come from outside.

A new frame begins a cycle at once; when none comes for T and a grace, a hold offers the last action again under the
same capture time. Whether any of it moves the robot is for the gate to judge.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from mvla_daemon.cameras.slot import Frame, NewestFrameSlot
from mvla_daemon.core.admission import Mode, Offer
from mvla_daemon.core.limits import AxisLimit, VelocityShaper
from mvla_daemon.core.messages import Stage, Velocity
from mvla_daemon.core.schedule import hold_due_ns
from mvla_daemon.link import pack_command, pack_start, pack_starved
from mvla_daemon.ops.telemetry import PolicyCycle


@dataclass(frozen=True, slots=True)
class Outlets:
    """Where the cycles' outcomes go; none of these may block.

    `think(frame, cycle)` begins an inference, whose outcome comes back through `Cycles.thought`; `mark` writes to the
    board; `trace` is for the reporter.
    """

    now_ns: Callable[[], int]
    send: Callable[[bytes], None]
    mark: Callable[[int, Stage, int], None]
    think: Callable[[Frame, int], None]
    trace: Callable[[PolicyCycle], None]


class Cycles:
    """One cycle after the other, as the gate orders; `times_ns[stage]` are those of the newest thought."""

    def __init__(
        self,
        period_ns: int,
        limits: tuple[AxisLimit, ...],
        slot: NewestFrameSlot,
        times_ns: list[int],
        outlets: Outlets,
    ) -> None:
        self._period_ns = period_ns
        self._slot = slot
        self._times_ns = times_ns
        self._outlets = outlets
        self._now_ns = outlets.now_ns
        self._shaper = VelocityShaper(limits)
        self._mode = Mode.IDLE
        self._epoch = 0
        self._cycle = 0
        self._started_ns = 0
        self._newest_ns = 0
        self._thinking: tuple[int, Frame] | None = None
        """The epoch and the frame of the inference that is under way."""
        self._wish: Velocity | None = None
        self._frame: Frame | None = None

    def order(self, epoch: int, mode: Mode) -> None:
        """What the gate asks for from now on; limiter and last action start anew."""
        self._epoch, self._mode = epoch, mode
        self._shaper.reset(self._now_ns())
        if mode is not Mode.DRIVE:
            self._wish = self._frame = None

    def move_on(self) -> int | None:
        """Begin what can begin: the newest frame's cycle, or a hold whose time has come.

        When to be asked again at the latest, or None where only an order or a thought can change anything.
        """
        if self._mode is Mode.IDLE or self._thinking is not None:
            return None
        frame = self._slot.take()
        if frame is not None:
            self._newest_ns = frame.captured_ns
            self._thinking = (self._epoch, frame)
            self._begin(Stage.PREPROCESS)
            self._outlets.think(frame, self._cycle)
            return None
        if self._now_ns() >= hold_due_ns(self._started_ns, self._period_ns):
            self._hold_or_starve()
        return hold_due_ns(self._started_ns, self._period_ns)

    def thought(self, wish: Velocity) -> None:
        """The inference that was under way has ended with this."""
        assert self._thinking is not None
        epoch, frame = self._thinking
        self._thinking = None
        if epoch == self._epoch:
            self._wish, self._frame = wish, frame
            self._offer(wish, frame, hold=False)
        elif self._mode is Mode.DRIVE:
            # The rehearsals have just become a drive, whose deadline runs already: the cycle that was under way counts
            # for nothing, but its action may be held. Nothing from before a stop may.
            self._wish, self._frame = wish, frame
            self._hold_or_starve()
        else:
            self._outlets.mark(self._cycle, Stage.WAIT_FRAME, self._now_ns())

    def _hold_or_starve(self) -> None:
        if self._wish is not None and self._frame is not None:
            self._begin(Stage.SEND)
            self._offer(self._wish, self._frame, hold=True)
        else:
            # Nothing to offer is no reason to seem dead: the gate tells a lost camera from a lost policy by this.
            self._started_ns = self._now_ns()
            self._outlets.send(pack_starved(self._epoch, self._newest_ns))

    def _begin(self, stage: Stage) -> None:
        self._cycle = (self._cycle + 1) & 0xFFFFFFFF
        self._started_ns = self._now_ns()
        self._outlets.mark(self._cycle, stage, self._started_ns)
        self._outlets.send(pack_start(self._epoch, self._cycle, self._started_ns))

    def _offer(self, wish: Velocity, frame: Frame, *, hold: bool) -> None:
        now_ns = self._now_ns()
        self._outlets.mark(self._cycle, Stage.SEND, now_ns)
        values = self._shaper.shape(wish.as_tuple(), now_ns)
        sent_ns = self._now_ns()
        self._outlets.send(pack_command(Offer(self._epoch, self._cycle, frame.captured_ns, frame.crc, values)))
        self._outlets.mark(self._cycle, Stage.WAIT_FRAME, sent_ns)
        times = [self._started_ns] * len(Stage) if hold else self._times_ns
        self._outlets.trace(
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
