"""Random sequences of events through the whole gate and the codec, judged by the bytes on the wire.

The gate, its state machine, its limits and its link are the real ones, in simulated time; the policy process and the
disturbances are played, the controller is its double. What the wire must be like is said by `WireModel`, which knows
the page of the motor link and the limits, and nothing of the package. `python -m tests.sequences` does many.
"""

from __future__ import annotations

import argparse
import functools
import multiprocessing
import os
import select
import sys
import tempfile
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

from mvla_daemon import assembly
from mvla_daemon.config import Config
from mvla_daemon.config_load import load_config
from mvla_daemon.core.admission import Mode, Offer
from mvla_daemon.core.messages import Reason
from mvla_daemon.gate import Gate
from mvla_daemon.link import pack_command, pack_ready, pack_start, pack_starved
from mvla_daemon.motors.serial_port import PortLostError
from mvla_daemon.ops.errand import NoErrand
from mvla_daemon.sim.controller import Controller
from mvla_daemon.sim.lockstep import Unheard
from mvla_daemon.sim.timeline import Timeline
from tests.wire import WireFrame, WireReader

MS = 1_000_000
PERIOD, DEADLINE, MAX_AGE = 20 * MS, 20 * MS, 100 * MS
MOST = (500_000, 500_000, 1_500_000)
ACCEL = (1_000_000, 1_000_000, 4_000_000)
PORT, POLICY, OPERATOR = 1001, 1002, 1003
CONFIG = f"""\
[camera]
source = "sim://"
[policy]
manifest = "bundled:cup"
instruction = "go to the cup, pass the box on its left"
[motor]
port = "sim://"
[limits]
linear_x = {{ max = {MOST[0] / 1e6}, accel = {ACCEL[0] / 1e6} }}
linear_y = {{ max = {MOST[1] / 1e6}, accel = {ACCEL[1] / 1e6} }}
angular_z = {{ max = {MOST[2] / 1e6}, accel = {ACCEL[2] / 1e6} }}
[safety]
arm = "auto"
recover_cycles = 5
max_stops = 4
"""
WHILE_STANDING = 0.2
"""How often something happens in a period in which the robot is not driving."""
LATE_GATE_MS = (30, 250)
"""For how long the gate itself does not run: an overrun, and one that is a fault of its own."""
AT_ONCE = frozenset(
    {
        *("nan", "inf", "over", "jump", "future_cycle", "garbage", "truncated", "flood"),
        *("suspended", "policy_died", "operator_stop", "operator_disarm"),
    }
)
"""What the gate knows as soon as it happens: nothing but a STOP may follow, within a millisecond."""
NEEDS_NO_CYCLE = frozenset({"suspended", "policy_died", "operator_stop", "operator_disarm"})
SOON_MS = {"twice": 1, "controller_reset": 150, "controller_fault": 150, "controller_trip": 150, "mute": 250}
"""What it learns of by the second command, by STATUS, or by its absence: how long until the STOP is there."""
JUDGED_BY_TIME = (
    *("denormal", "old_cycle", "old_epoch", "start_early", "start_future", "starved", "late", "never", "old_frame"),
    *("lose_one", "flip_one", "operator_status", "gate_late", "gate_asleep", "port_lost"),
    "clocks_apart",
)
EVENTS = (*sorted(AT_ONCE), *SOON_MS, *JUDGED_BY_TIME, *["operator_arm"] * 4, *["good"] * 60)
"""Each as often as it is drawn."""


@functools.lru_cache(maxsize=1)
def configuration(folder: Path) -> Config:
    path = folder / "sequences.toml"
    path.write_text(CONFIG)
    return load_config(path)


@dataclass
class WireModel:
    """What the wire may look like, by the page of the motor link; AssertionError says what did."""

    reader: WireReader = field(default_factory=WireReader)
    stops: Counter[int] = field(default_factory=Counter)
    velocities: int = 0
    armed: bool = False
    """ARM was written, and no STOP since."""
    session: int = 0
    seq: int = 0
    due_ns: int | None = None
    """By when something has to follow, a STOP if nothing else."""
    spare_ns: int = 0
    """While the controller is silent, one cycle is left out before the stop: nothing is put behind untaken bytes."""
    doomed: str = ""
    """Why nothing but a STOP may follow."""
    _last: tuple[int, ...] = (0, 0, 0)
    _last_ns: int = 0

    def wrote(self, data: bytes, now_ns: int) -> None:
        for frame in self.reader.feed(data):
            assert frame.seq > self.seq, "each frame has a higher number than the one before"
            self.seq = frame.seq
            self._frame(frame, now_ns)
        assert not self.reader.undecodable, "nothing but whole frames is written"

    def _frame(self, frame: WireFrame, now_ns: int) -> None:
        self.passed(now_ns)
        if frame.kind == "ARM":
            assert frame.session not in {0, self.session}, "each arming has a session of its own"
            self.armed, self.session, self.doomed = True, frame.session, ""
            self._last, self._last_ns = (0, 0, 0), now_ns
            self.due_ns = now_ns + 200 * MS + PERIOD + DEADLINE + 2 * MS
        elif frame.kind == "STOP":
            self.stops[frame.number("reason")] += self.armed
            self.armed, self.due_ns, self.doomed = False, None, ""
        elif frame.kind == "VELOCITY":
            assert self.armed, "a VELOCITY after the stop"
            assert frame.session == self.session, "a VELOCITY of another session"
            assert not self.doomed, f"a VELOCITY after {self.doomed}"
            self._velocity(tuple(frame.number(axis) for axis in ("vx", "vy", "wz")), now_ns)
            self.due_ns = now_ns + PERIOD + DEADLINE + self.spare_ns + 2 * MS

    def _velocity(self, values: tuple[int, ...], now_ns: int) -> None:
        self.velocities += 1
        for value, last, most, accel in zip(values, self._last, MOST, ACCEL, strict=True):
            assert abs(value) <= most, "out of limits"
            rise = abs(value) - abs(last) if value * last >= 0 else abs(value)
            assert rise <= accel * (now_ns - self._last_ns + PERIOD) / 1e9 + 2, "faster than it may"
        self._last, self._last_ns = values, now_ns

    def passed(self, now_ns: int) -> None:
        """Time has come to this point."""
        assert self.due_ns is None or now_ns <= self.due_ns, "a missed stop"

    def doom(self, why: str, by_ns: int) -> None:
        """From now on nothing but a STOP may follow, by that time."""
        if self.armed:
            self.doomed = self.doomed or why
            self.expect(by_ns)

    def expect(self, by_ns: int) -> None:
        """A STOP has to be there by then, whatever else is written before."""
        if self.armed:
            self.due_ns = by_ns if self.due_ns is None else min(self.due_ns, by_ns)


class Time(Timeline):
    """Simulated time that can also be lost: by the gate alone, or by the whole machine."""

    slept_ns = 0
    _paused_ns = 0

    def suspended_ns(self) -> int:
        paused_ns, self._paused_ns = self._paused_ns, 0
        return self.slept_ns - paused_ns

    def pause_between_clocks(self, by_ns: int) -> None:
        """The next reading comes out too small: who reads was held up between the boot-time clock and the other."""
        self._paused_ns = by_ns

    def jump(self, by_ns: int) -> None:
        self._now_ns += by_ns


class Line:
    """The gate's port and the controller behind it; bytes may be lost, turned or held back on either way."""

    path, baud, was_lost, reopen_ns = "sequences", 0, False, 0
    fd: int | None = PORT

    def __init__(self, timeline: Timeline, model: WireModel, chance: Random) -> None:
        self.controller = Controller()
        self.muted_until_ns = 0
        self.spoil: Callable[[bytes], bytes] | None = None
        self.lost = False
        self._timeline, self._model, self._chance = timeline, model, chance
        self._unread = b""
        timeline.watch(PORT, lambda: bool(self._unread))
        self._tick()

    def _tick(self) -> None:
        now_ns = self._timeline.now_ns()
        self._say(self.controller.tick(now_ns))
        self._timeline.at(max(now_ns + 1, self.controller.next_tick_ns(now_ns)), self._tick)

    def _say(self, data: bytes) -> None:
        if data and self.fd is not None and self._timeline.now_ns() >= self.muted_until_ns:
            self._unread += self._spoiled(data)

    def _spoiled(self, data: bytes) -> bytes:
        spoil, self.spoil = self.spoil, None
        return spoil(data) if spoil else data

    def read(self) -> bytes:
        if self.lost:
            raise PortLostError("unplugged")
        data, self._unread = self._unread, b""
        return data

    def write(self, packets: bytes) -> bool:
        if self.lost:
            raise PortLostError("unplugged")
        if self.fd is None:
            return False
        now_ns = self._timeline.now_ns()
        self._model.wrote(packets, now_ns)
        self._say(self.controller.receive(self._spoiled(packets), now_ns))
        return True

    def queued_bytes(self) -> int:
        if self.lost:
            raise PortLostError("unplugged")
        return 0

    def drop(self, now_ns: int) -> None:
        self.fd, self.lost, self.was_lost, self.reopen_ns, self._unread = None, False, True, now_ns + 500 * MS, b""
        # The controller stops by itself, and what follows is another life: its numbers begin again.
        self._model.armed, self._model.due_ns, self._model.doomed, self._model.seq = False, None, "", 0

    def reopen(self, now_ns: int) -> bool:
        if now_ns < self.reopen_ns:
            return False
        self.fd = PORT
        return True

    def unplug(self) -> None:
        """Reading fails from now on; a wait ends for it, as for a line that was hung up."""
        if self.fd is not None:
            self.lost, self._unread = True, b"\0"

    def turn_a_bit(self, data: bytes) -> bytes:
        at = self._chance.randrange(8 * len(data))
        return data[: at // 8] + bytes([data[at // 8] ^ 1 << at % 8]) + data[at // 8 + 1 :]


class PlayedPolicy:
    """What the gate keeps instead of a policy process: one cycle a period, the next of them as an event has it."""

    def __init__(self, timeline: Timeline) -> None:
        self.ready, self.restarts, self.given_up = False, 0, ""
        self.epoch, self.mode, self.cycle = 0, Mode.IDLE, 0
        self.died = False
        self.value = 0.0
        self.queue: deque[bytes] = deque([pack_ready({"name": "played", "weights": "trained"})])
        self._timeline = timeline
        timeline.watch(POLICY, lambda: bool(self.queue) or self.died)

    def filenos(self) -> list[int]:
        return [POLICY]

    def messages(self, readable: set[int]) -> Iterator[bytes]:
        while POLICY in readable and self.queue:
            yield self.queue.popleft()

    def watch(self, readable: set[int], now_ns: int, *, may_start: bool) -> str:  # noqa: ARG002 - as the protocol says
        died, self.died = self.died, False
        return "the policy process ended by signal 9" if died else ""

    def on_ready(self) -> None:
        self.ready = True

    def order(self, epoch: int, mode: Mode) -> None:
        self.epoch, self.mode, self.value = epoch, mode, 0.0

    def renew(self) -> None:
        self.ready, self.restarts = False, self.restarts + 1
        self.queue.clear()
        self._timeline.at(self._timeline.now_ns() + 100 * MS, lambda: self.queue.append(pack_ready({})))

    def doing(self) -> None:
        return None

    def start(self, announced_ns: int) -> None:
        self.cycle += 1
        self.queue.append(pack_start(self.epoch, self.cycle, announced_ns))

    def offer(
        self,
        values: tuple[float, float, float],
        captured_ns: int,
        *,
        cycle: int | None = None,
        epoch: int | None = None,
    ) -> None:
        epoch, cycle = self.epoch if epoch is None else epoch, self.cycle if cycle is None else cycle
        made = Offer(epoch, cycle, captured_ns, captured_ns & 0xFFFFFFFF, values)
        self.queue.append(pack_command(made))


class Life:
    """One daemon from its start to its end, and what happens to it: an event a period once it has been armed."""

    def __init__(self, config: Config, events: Sequence[str], seed: int = 0) -> None:
        self.timeline, self.model = Time(), WireModel()
        self._chance = Random(seed)
        self._events = deque(events)
        self._requests: deque[str] = deque()
        self._ending = False
        self._captured_ns = 0
        self.line = Line(self.timeline, self.model, self._chance)
        self.policy = PlayedPolicy(self.timeline)
        self.timeline.watch(OPERATOR, lambda: bool(self._requests))
        self._signals, self._signal = os.pipe()
        self.timeline.watch(self._signals, lambda: bool(select.select([self._signals], [], [], 0)[0]))
        draw: Callable[[], int] = functools.partial(self._chance.getrandbits, 32)
        crew = assembly.crew(config, self.line, self.policy, Unheard(), self.timeline, NoErrand(), draw)
        self.gate = Gate(assembly.gate_settings(config, None), crew, Unheard(), self._signals)

    def run(self) -> WireModel:
        """Live it; AssertionError when a rule was broken."""
        try:
            self.timeline.at(PERIOD, self._period)
            self.gate.serve(self)
            self.model.passed(self.timeline.now_ns())
            assert not self.model.armed, "it ended without a STOP"
            assert not self._events, "it ended before its time"
        finally:
            os.close(self._signals)
            os.close(self._signal)
        return self.model

    # --- the operators' side, as the gate's `Control` ---

    def watch(self, now_ns: int) -> tuple[list[int], int]:
        return [OPERATOR], now_ns + 1000 * MS

    def serve(self, readable: set[int], now_ns: int) -> None:  # noqa: ARG002 - as the protocol says
        if OPERATOR in readable:
            self.gate.operate(self._requests.popleft(), 0, 1)

    # --- events ---

    def _period(self) -> None:
        now_ns = self.timeline.now_ns()
        self.model.passed(now_ns)
        self.timeline.at(now_ns + PERIOD, self._period)
        begun = self.model.velocities or now_ns > 3000 * MS
        if self._events and begun and (self.model.armed or self._chance.random() < WHILE_STANDING):
            self._happen(self._events.popleft(), now_ns)
        elif self._events or self._ending:
            self._good(now_ns)
        else:
            self._ending = True
            os.write(self._signal, b"\x0f")
            self.model.doom("a signal", now_ns + 1 * MS)

    def _happen(self, event: str, now_ns: int) -> None:
        if event in NEEDS_NO_CYCLE or self.policy.mode is not Mode.IDLE:
            if event in AT_ONCE:
                self.model.doom(event, now_ns + 1 * MS)
            if event in SOON_MS:
                self.model.expect(now_ns + SOON_MS[event] * MS)
        if not hasattr(self, f"_say_{event}"):
            getattr(self, f"_{event}")(now_ns)
            if event not in {"good", "policy_died"}:
                self._good(self.timeline.now_ns())
        elif self.policy.mode is not Mode.IDLE:  # whoever is to be idle says nothing
            getattr(self, f"_say_{event}")(now_ns)

    # --- what the policy process says ---

    def _cycle(self, now_ns: int, values: tuple[float, float, float], *, after_ns: int = 5 * MS) -> None:
        """One whole cycle: its start now, its command after so long, both for a new frame."""
        self._captured_ns = now_ns
        self.policy.start(now_ns)
        cycle, epoch = self.policy.cycle, self.policy.epoch
        self.timeline.at(now_ns + after_ns, lambda: self.policy.offer(values, now_ns, cycle=cycle, epoch=epoch))

    def _good(self, now_ns: int) -> None:
        if self.policy.mode is not Mode.IDLE:
            self.policy.value = min(0.5, self.policy.value + 0.015)
            self._cycle(now_ns, (self.policy.value, 0.0, -self.policy.value))

    def _say_denormal(self, now_ns: int) -> None:
        self._cycle(now_ns, (5e-324, -5e-324, 0.0))

    def _say_late(self, now_ns: int) -> None:
        self._cycle(now_ns, (0.0, 0.0, 0.0), after_ns=self._chance.randrange(19, 60) * MS)

    def _say_never(self, now_ns: int) -> None:
        self.policy.start(now_ns)

    def _at_once(self, now_ns: int, *values: float) -> None:
        """A cycle that takes no time."""
        self.policy.start(now_ns)
        x, y, yaw = values
        self.policy.offer((x, y, yaw), now_ns)

    def _say_nan(self, now_ns: int) -> None:
        self._at_once(now_ns, 0.0, float("nan"), 0.0)

    def _say_inf(self, now_ns: int) -> None:
        self._at_once(now_ns, 0.0, 0.0, float("-inf"))

    def _say_over(self, now_ns: int) -> None:
        self._at_once(now_ns, 0.0, -0.51, 0.0)

    def _say_jump(self, now_ns: int) -> None:
        self._at_once(now_ns, -0.49, 0.49, 1.4)

    def _say_twice(self, now_ns: int) -> None:
        self._at_once(now_ns, 0.0, 0.0, 0.0)
        self.policy.offer((0.0, 0.0, 0.0), now_ns)

    def _say_future_cycle(self, now_ns: int) -> None:
        self.policy.offer((0.0, 0.0, 0.0), now_ns, cycle=self.policy.cycle + 2)

    def _say_garbage(self, _now_ns: int) -> None:
        self.policy.queue.append(bytes([250]) + self._chance.randbytes(self._chance.randrange(60)))

    def _say_truncated(self, now_ns: int) -> None:
        self.policy.queue.append(pack_start(self.policy.epoch, self.policy.cycle + 1, now_ns)[:-1])

    def _say_flood(self, now_ns: int) -> None:
        self.policy.queue.extend([pack_start(self.policy.epoch, 0, now_ns)] * 1002)

    def _say_old_cycle(self, now_ns: int) -> None:
        self._good(now_ns)
        self.policy.queue.append(pack_start(self.policy.epoch, max(0, self.policy.cycle - 1), now_ns))

    def _say_old_epoch(self, now_ns: int) -> None:
        self._good(now_ns)
        self.policy.offer((0.4, 0.4, 0.4), now_ns, epoch=(self.policy.epoch - 1) & 0xFFFFFFFF)

    def _say_start_early(self, now_ns: int) -> None:
        self.policy.start(now_ns - 30 * MS)
        self.policy.offer((0.0, 0.0, 0.0), now_ns)

    def _say_start_future(self, now_ns: int) -> None:
        self.policy.start(now_ns + 1000 * MS)

    def _say_starved(self, _now_ns: int) -> None:
        self.policy.queue.append(pack_starved(self.policy.epoch, self._captured_ns))

    def _say_old_frame(self, now_ns: int) -> None:
        self.policy.start(now_ns)
        self.policy.offer((0.0, 0.0, 0.0), self._captured_ns)

    # --- what happens to the machine, the line and the controller ---

    def _policy_died(self, _now_ns: int) -> None:
        self.policy.died = True

    def _clocks_apart(self, _now_ns: int) -> None:
        self.timeline.pause_between_clocks(self._chance.randrange(1, 300) * MS)

    def _suspended(self, _now_ns: int) -> None:
        self.timeline.slept_ns += self._chance.randrange(6, 10_000) * MS
        self._requests.append("status")  # something that wakes the gate, as the end of a suspension would

    def _gate_late(self, _now_ns: int) -> None:
        self._hold_up(LATE_GATE_MS[0])

    def _gate_asleep(self, _now_ns: int) -> None:
        self._hold_up(LATE_GATE_MS[1])

    def _hold_up(self, for_ms: int) -> None:
        """Time goes on without the gate, of which no more can be asked than a STOP as soon as it runs again."""
        self.timeline.jump(for_ms * MS)
        if self.model.due_ns is not None:
            self.model.due_ns = max(self.model.due_ns, self.timeline.now_ns() + 1 * MS)

    def _controller_reset(self, now_ns: int) -> None:
        self.line.controller.reset(now_ns)

    def _controller_fault(self, now_ns: int) -> None:
        bit = self._chance.randrange(5)
        self.line.controller.set_fault(bit, on=True)
        self.timeline.at(now_ns + 300 * MS, lambda: self._mend(bit))

    def _mend(self, bit: int) -> None:
        self.line.controller.set_fault(bit, on=False)
        self.line.controller.reset(self.timeline.now_ns())

    def _controller_trip(self, _now_ns: int) -> None:
        self.line.controller.trip()

    def _mute(self, now_ns: int) -> None:
        self.line.muted_until_ns = until_ns = now_ns + 200 * MS
        self.model.spare_ns = PERIOD
        self.timeline.at(until_ns + 2 * PERIOD, self._heard_again)

    def _heard_again(self) -> None:
        if self.timeline.now_ns() >= self.line.muted_until_ns + 2 * PERIOD:
            self.model.spare_ns = 0

    def _lose_one(self, _now_ns: int) -> None:
        self.line.spoil = lambda _: b""

    def _flip_one(self, _now_ns: int) -> None:
        self.line.spoil = self.line.turn_a_bit

    def _port_lost(self, _now_ns: int) -> None:
        self.line.unplug()

    def _operator_stop(self, _now_ns: int) -> None:
        self._requests.append("stop")

    def _operator_disarm(self, _now_ns: int) -> None:
        self._requests.append("disarm")

    def _operator_arm(self, _now_ns: int) -> None:
        self._requests.append("arm")

    def _operator_status(self, _now_ns: int) -> None:
        self._requests.append("status")


# --- many of them ---

LONGEST = 60
_config: list[Config] = []


def _begin(folder: str) -> None:
    _config.append(configuration(Path(folder)))


def _live(seed: int) -> tuple[int, int, Counter[int], str]:
    """One life of random events: how many, how many VELOCITY, the stops by reason, and what was wrong."""
    chance = Random(seed)
    events = chance.choices(EVENTS, k=chance.randrange(1, LONGEST))
    life = Life(_config[0], events, seed)
    try:
        life.run()
    except AssertionError as error:
        return len(events), 0, Counter(), f"seed {seed}: {error}: {' '.join(events)}"
    return len(events), life.model.velocities, life.model.stops, ""


def main() -> int:
    parser = argparse.ArgumentParser(description="Lives random sequences of events and judges the wire of each.")
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--seed", type=int, default=0, help="of the first; the others follow")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1)
    arguments = parser.parse_args()
    began_s, lives, events, velocities = time.monotonic(), 0, 0, 0
    stops: Counter[int] = Counter()
    broken: list[str] = []
    seeds = range(arguments.seed, arguments.seed + arguments.count)
    with (
        tempfile.TemporaryDirectory() as folder,
        multiprocessing.get_context("spawn").Pool(arguments.jobs, _begin, (folder,)) as pool,
    ):
        for happened, driven, seen, problem in pool.imap_unordered(_live, seeds, 200):
            lives, events, velocities = lives + 1, events + happened, velocities + driven
            stops += seen
            broken += [problem] if problem else []
            if lives % 1000 == 0:
                print(f"\r{lives} of {arguments.count}, {len(broken)} broken", end="", file=sys.stderr, flush=True)
    print(
        f"\n{lives} sequences of {events} events in {time.monotonic() - began_s:.0f} s: {velocities} VELOCITY written"
    )
    for number, count in sorted(stops.items()):
        print(f"  {count:8} stops in motion: {Reason(number).label}")
    for problem in broken[:20]:
        print(problem)
    print(f"{len(broken)} broke a rule" if broken else "every rule was kept")
    return 1 if broken else 0


if __name__ == "__main__":
    sys.exit(main())
