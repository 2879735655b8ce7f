"""What begins a cycle, what it offers and when it holds: the policy process's side, without a clock of its own."""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

import pytest

from mvla_daemon.cameras.slot import Frame, NewestFrameSlot
from mvla_daemon.core.admission import Mode
from mvla_daemon.core.limits import AxisLimit
from mvla_daemon.core.messages import Stage, Velocity
from mvla_daemon.cycles import Cycles, Outlets

if TYPE_CHECKING:
    from mvla_daemon.ops.telemetry import PolicyCycle

MS = 1_000_000
START, COMMAND, STARVED = 1, 2, 6
FORWARD = Velocity(0.2, 0.0, 0.0)


class Process:
    """A policy process around the cycles: a clock that only moves when told, and an engine that waits to be told."""

    def __init__(self) -> None:
        self.now_ns = 1_000 * MS
        self.slot = NewestFrameSlot(2, 2)
        self.sent: list[bytes] = []
        self.marks: list[tuple[int, Stage, int]] = []
        self.thoughts: list[tuple[Frame, int]] = []
        self.traces: list[PolicyCycle] = []
        self.times_ns = [0] * len(Stage)
        outlets = Outlets(
            lambda: self.now_ns,
            self.sent.append,
            lambda cycle, stage, at_ns: self.marks.append((cycle, stage, at_ns)),
            lambda frame, cycle: self.thoughts.append((frame, cycle)),
            self.traces.append,
        )
        self.cycles = Cycles(20 * MS, (AxisLimit(0.5, 1.0),) * 3, self.slot, self.times_ns, outlets)

    def frame(self, captured_ns: int = 990 * MS) -> None:
        self.slot.publish(captured_ns, 7, 0xABCD, self.now_ns)

    def said(self) -> list[tuple[int, int, int]]:
        """Kind, epoch, cycle of what was sent since the last call; a STARVED has no cycle."""
        said = [(m[0], *struct.unpack_from("<II", m, 1)) if m[0] != STARVED else (STARVED, m[1], 0) for m in self.sent]
        self.sent.clear()
        return said

    def command(self) -> tuple[int, float]:
        """Capture time and x of the newest command."""
        values = struct.unpack("<BIIqIddd", self.sent[-1])
        return values[3], values[5]


@pytest.fixture
def process() -> Process:
    return Process()


@pytest.fixture
def driving(process: Process) -> Process:
    process.cycles.order(5, Mode.DRIVE)
    process.now_ns += 500 * MS
    process.frame()
    process.cycles.move_on()
    return process


def test_nothing_begins_before_an_order(process: Process) -> None:
    process.frame()
    assert process.cycles.move_on() is None
    assert (process.sent, process.thoughts) == ([], [])


def test_a_frame_begins_a_cycle_at_once_and_its_thought_is_offered(driving: Process) -> None:
    assert driving.said() == [(START, 5, 1)]
    assert [cycle for _, cycle in driving.thoughts] == [1]
    assert driving.marks == [(1, Stage.PREPROCESS, 1_500 * MS)]
    driving.now_ns += 4 * MS
    driving.cycles.thought(FORWARD)
    assert driving.command() == (990 * MS, 0.2)
    assert driving.said() == [(COMMAND, 5, 1)]
    assert [stage for _, stage, _ in driving.marks] == [Stage.PREPROCESS, Stage.SEND, Stage.WAIT_FRAME]
    trace = driving.traces[0]
    assert (trace.cycle, trace.hold, trace.frame, trace.started_ns, trace.sent_ns) == (
        (1, False, 7, 1_500 * MS, 1_504 * MS)
    )


def test_one_inference_at_a_time_and_the_newest_frame_is_next(driving: Process) -> None:
    driving.said()
    driving.frame(991 * MS)
    driving.frame(992 * MS)
    driving.now_ns += 100 * MS
    assert driving.cycles.move_on() is None
    assert driving.sent == []
    driving.cycles.thought(FORWARD)
    driving.cycles.move_on()
    assert driving.said() == [(COMMAND, 5, 1), (START, 5, 2)]
    assert driving.thoughts[-1][0].captured_ns == 992 * MS


def test_a_hold_offers_the_last_action_again_after_the_period_and_a_grace(driving: Process) -> None:
    driving.cycles.thought(FORWARD)
    driving.said()
    assert driving.cycles.move_on() == 1_521 * MS
    driving.now_ns = 1_521 * MS - 1
    assert driving.cycles.move_on() == 1_521 * MS
    assert driving.sent == []
    driving.now_ns = 1_521 * MS
    assert driving.cycles.move_on() == 1_542 * MS
    assert driving.command() == (990 * MS, 0.2)
    assert driving.said() == [(START, 5, 2), (COMMAND, 5, 2)]
    assert len(driving.thoughts) == 1
    assert driving.traces[-1].hold


def test_without_anything_to_hold_it_says_once_a_period_that_it_starves(process: Process) -> None:
    process.cycles.order(3, Mode.REHEARSE)
    assert process.cycles.move_on() == 1_021 * MS
    assert process.cycles.move_on() == 1_021 * MS
    assert process.said() == [(STARVED, 3, 0)]
    process.now_ns = 1_021 * MS
    assert process.cycles.move_on() == 1_042 * MS
    assert process.said() == [(STARVED, 3, 0)]


def test_a_thought_from_before_a_stop_is_never_offered(driving: Process) -> None:
    driving.said()
    driving.cycles.order(6, Mode.REHEARSE)
    driving.cycles.thought(FORWARD)
    assert driving.sent == []
    assert driving.marks[-1][1] is Stage.WAIT_FRAME
    driving.now_ns += 50 * MS
    driving.cycles.move_on()
    assert driving.said() == [(STARVED, 6, 0)]


def test_an_action_from_before_a_stop_is_never_held(driving: Process) -> None:
    driving.cycles.thought(FORWARD)
    driving.said()
    driving.cycles.order(6, Mode.IDLE)
    driving.now_ns += 50 * MS
    assert driving.cycles.move_on() is None
    driving.cycles.order(7, Mode.REHEARSE)
    driving.cycles.move_on()
    assert driving.said() == [(STARVED, 7, 0)]


def test_the_rehearsal_under_way_as_the_drive_begins_is_held_from_standstill(process: Process) -> None:
    process.cycles.order(1, Mode.REHEARSE)
    process.frame()
    process.cycles.move_on()
    process.said()
    process.now_ns += 400 * MS
    process.cycles.order(2, Mode.DRIVE)
    process.now_ns += 10 * MS
    process.cycles.thought(FORWARD)
    captured_ns, x = process.command()
    assert process.said() == [(START, 2, 2), (COMMAND, 2, 2)]
    assert captured_ns == 990 * MS
    assert x == pytest.approx(0.01)  # 1 m/s² for the 10 ms since the order


def test_the_offer_is_shaped_to_the_limits(driving: Process) -> None:
    driving.cycles.thought(Velocity(3.0, -0.1, 0.0))
    assert driving.command()[1] == pytest.approx(0.5)


def test_cycles_are_counted_on_over_orders(driving: Process) -> None:
    driving.cycles.thought(FORWARD)
    driving.cycles.order(6, Mode.REHEARSE)
    driving.said()
    driving.frame(1_000 * MS)
    driving.cycles.move_on()
    assert driving.said() == [(START, 6, 2)]
