"""The host's side of motor link v1 in simulated time: alone, and against the controller double over a bad line."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from random import Random
from typing import NamedTuple

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mvla_daemon.core.messages import Reason, Velocity
from mvla_daemon.motors.mvla import MvlaLink
from mvla_daemon.sim.controller import Controller
from tests import wire

MS = 1_000_000
DISARMED, ARMED, STOPPING, STOPPED, TRIPPED, FAULT = range(6)
HALF_SPEED = Velocity(0.25, -0.1, 0.5)


def new_link(random_u32: Callable[[], int] | None = None, period_ns: int = 20 * MS) -> MvlaLink:
    random = Random(1)
    return MvlaLink(
        watchdog_ms=100,
        ttl_ms=60,
        accel=(1.0, 1.0, 4.0),
        period_ns=period_ns,
        random_u32=random_u32 or (lambda: random.getrandbits(32)),
    )


@dataclass
class Talk:
    """The link alone: a clock in ms, what it has written and when, and a controller that says what a test wants."""

    link: MvlaLink = field(default_factory=new_link)
    now_ms: float = 0
    reader: wire.WireReader = field(default_factory=wire.WireReader)
    written: list[tuple[float, wire.WireFrame]] = field(default_factory=list)
    status_seq: int = 100
    why: str = ""
    """What the newest STATUS was judged to show."""

    @property
    def now_ns(self) -> int:
        return round(self.now_ms * MS)

    def wrote(self, data: bytes) -> list[wire.WireFrame]:
        frames = self.reader.feed(data)
        assert self.reader.undecodable == []
        self.written += [(self.now_ms, frame) for frame in frames]
        return frames

    def run(self, for_ms: int, *, status: Callable[[], object] | None = None) -> list[tuple[float, wire.WireFrame]]:
        """What is written in these milliseconds, with a STATUS every 20 of them where one is given."""
        before = len(self.written)
        end_ms = self.now_ms + for_ms
        while self.now_ms < end_ms:
            self.now_ms += 1
            if status is not None and self.now_ms % 20 == 0:
                assert status() is None
            self.wrote(self.link.due(self.now_ns))
        return self.written[before:]

    def hear(self, data: bytes) -> tuple[Reason, str] | None:
        return self.link.receive(data, self.now_ns)

    def identity(self, nonce: int | None = None, watchdog_min_ms: int = 20, watchdog_max_ms: int = 1000) -> None:
        if nonce is None:
            nonce = next(frame.number("nonce") for _, frame in reversed(self.written) if frame.kind == "HELLO")
        limits = {"watchdog_min_ms": watchdog_min_ms, "watchdog_max_ms": watchdog_max_ms}
        ramp = {"decel_mm_s2": 2000, "decel_mrad_s2": 8000}
        fields = {"nonce": nonce, "name": b"robot", "fw_major": 1, "fw_minor": 2}
        assert self.hear(wire.encode("IDENTITY", 0, 1, **fields, **limits, **ramp)) is None

    def status(
        self,
        state: int = ARMED,
        *,
        session: int | None = None,
        seq: int | None = None,
        host_seq: int | None = None,
        uptime_ms: int | None = None,
        faults: int = 0,
        watchdog_ms: int = 100,
        velocity: tuple[int, int, int] = (0, 0, 0),
    ) -> Reason | None:
        """A STATUS now; by default the next of a controller that has taken all that was written."""
        if seq is None:
            self.status_seq = seq = (self.status_seq + 1) % 2**32
        if host_seq is None:
            host_seq = self.written[-1][1].seq if self.written else 0
        fault = self.hear(
            wire.encode(
                "STATUS",
                self.link.session if session is None else session,
                seq,
                state=state,
                faults=faults,
                host_seq=host_seq,
                uptime_ms=round(5000 + self.now_ms) % 2**32 if uptime_ms is None else uptime_ms,
                watchdog_ms=watchdog_ms,
                **dict(zip(("vx", "vy", "wz"), velocity, strict=True)),
                battery_mv=0,
            )
        )
        self.why = fault[1] if fault is not None else ""
        return fault[0] if fault is not None else None

    def introduce(self) -> Talk:
        self.wrote(self.link.due(self.now_ns))
        self.identity()
        return self

    def arm(self) -> Talk:
        self.wrote(self.link.arm(self.now_ns))
        return self

    def drive(self, velocity: Velocity = HALF_SPEED, cycle: int = 1) -> wire.WireFrame:
        (frame,) = self.wrote(self.link.velocity(cycle, velocity.as_tuple(), self.now_ns))
        return frame

    def stop(self, reason: Reason = Reason.DEADLINE_MISSED, category: int = 1) -> wire.WireFrame:
        (frame,) = self.wrote(self.link.stop(category, reason, self.now_ns))
        return frame


@pytest.fixture
def talk() -> Talk:
    return Talk().introduce()


@pytest.fixture
def armed(talk: Talk) -> Talk:
    """Confirmed, one VELOCITY written and taken, at a time that is no multiple of anything."""
    talk.status(DISARMED, session=0)
    talk.now_ms = 1013
    talk.arm()
    assert talk.status() is None
    assert talk.link.confirmed
    talk.drive()
    assert talk.status() is None
    return talk


def kinds(frames: list[tuple[float, wire.WireFrame]]) -> list[str]:
    return [frame.kind for _, frame in frames]


# --- who is there ---


def test_nothing_but_a_hello_every_200_ms_is_said_to_what_has_not_identified_itself() -> None:
    talk = Talk()
    talk.wrote(talk.link.due(0))
    talk.run(1999)
    assert kinds(talk.written) == ["HELLO"] * 10
    assert [at_ms for at_ms, _ in talk.written] == list(range(0, 2000, 200))
    assert [frame.seq for _, frame in talk.written] == list(range(1, 11))
    assert len({frame.number("nonce") for _, frame in talk.written}) == 10
    assert talk.link.stop(1, Reason.OPERATOR, talk.now_ns) == b""


@given(data=st.binary(max_size=200))
def test_noise_never_makes_a_controller(data: bytes) -> None:
    talk = Talk()
    talk.wrote(talk.link.due(0))
    assert talk.hear(data + b"\0$GPGGA,123519,4807.038,N\r\nOK\r\n\0") is None
    talk.status(ARMED, session=7)
    talk.run(1000)
    assert not talk.link.identified
    assert set(kinds(talk.written)) == {"HELLO"}


def test_only_an_identity_with_the_newest_nonce_counts() -> None:
    talk = Talk()
    (hello,) = talk.wrote(talk.link.due(0))
    talk.identity(hello.number("nonce") ^ 1)
    assert not talk.link.identified
    talk.run(250)
    talk.identity(hello.number("nonce"))
    assert not talk.link.identified
    assert talk.link.counts["wrong_nonce"] == 2
    talk.identity()
    assert talk.link.identified
    assert talk.link.identity is not None
    assert (talk.link.identity.text, talk.link.identity.fw_minor) == ("robot", 2)


def test_an_identity_before_any_hello_names_nobody() -> None:
    talk = Talk()
    talk.identity(nonce=0)
    assert not talk.link.identified


def test_a_known_controller_is_left_in_peace_until_an_arming_asks_anew(talk: Talk) -> None:
    assert talk.run(1000, status=lambda: talk.status(DISARMED, session=0)) == []
    talk.link.begin_arming(talk.now_ns)
    frames = talk.run(300, status=lambda: talk.status(DISARMED, session=0))
    assert set(kinds(frames)) == {"HELLO"}
    hello = frames[-1][1]
    assert not talk.link.ready_to_arm()
    talk.identity(talk.written[0][1].number("nonce"))
    assert not talk.link.ready_to_arm()
    talk.identity(hello.number("nonce"))
    assert talk.link.ready_to_arm()
    talk.link.end_arming()
    assert not talk.link.ready_to_arm()


def test_a_reopened_port_starts_from_nothing(armed: Talk) -> None:
    armed.link.opened(armed.now_ns)
    assert not armed.link.identified
    assert not armed.link.confirmed
    (hello,) = armed.wrote(armed.link.due(armed.now_ns))
    assert (hello.kind, hello.seq) == ("HELLO", 1)
    assert armed.link.lost(armed.now_ns + 1000 * MS) is None
    assert armed.link.opened_ns == armed.now_ns


def test_a_reopened_port_forgets_the_stop_and_the_arming(armed: Talk) -> None:
    assert not armed.link.stopping
    armed.stop()
    armed.link.begin_arming(armed.now_ns)
    assert armed.link.stopping
    armed.link.opened(armed.now_ns)
    assert not armed.link.stopping
    standing(armed.introduce())
    assert armed.link.why_not_ready() == ""
    assert not armed.link.ready_to_arm()


def test_what_was_damaged_is_counted_for_one_port(talk: Talk) -> None:
    talk.hear(b"noise" + b"\0")
    assert sum(talk.link.decoder.counts.values()) == 1
    talk.link.opened(talk.now_ns)
    assert sum(talk.link.decoder.counts.values()) == 0


def test_what_comes_is_counted_by_its_type_an_echo_of_our_own_words_too(talk: Talk) -> None:
    standing(talk)
    talk.hear(wire.encode("HELLO", 0, 1, nonce=1) * 2)
    assert talk.link.counts == {"identity": 1, "status": 3, "hello": 2}


def standing(talk: Talk, state: int = DISARMED, faults: int = 0, velocity: int = 0) -> Talk:
    for _ in range(3):
        talk.now_ms += 20
        talk.status(state, session=0, faults=faults, velocity=(velocity, 0, 0))
    return talk


@pytest.mark.parametrize(
    ("state", "faults", "velocity", "word"),
    [
        (DISARMED, 0, 0, ""),
        (STOPPED, 0, 0, ""),
        (TRIPPED, 0, 0, ""),
        (TRIPPED, 0b10_0000, 0, ""),  # bit 5 is cleared by ARM
        (ARMED, 0, 0, "state 1"),
        (STOPPING, 0, 0, "state 2"),
        (FAULT, 0, 0, "state 5"),
        *[(state, 0, 0, f"state {state}") for state in (6, 77, 255)],  # unknown: it may be one of motion
        *[(DISARMED, 1 << bit, 0, "fault bits") for bit in range(5)],
        (DISARMED, 0, 10_000, "standstill"),
    ],
)
def test_why_a_controller_cannot_be_armed(talk: Talk, state: int, faults: int, velocity: int, word: str) -> None:
    why = standing(talk, state, faults, velocity).link.why_not_ready()
    assert word in why
    assert bool(why) == bool(word)


@pytest.mark.parametrize(("least", "most", "can"), [(100, 100, True), (101, 1000, False), (20, 99, False)])
def test_the_watchdog_must_be_within_the_controllers_limits(least: int, most: int, *, can: bool) -> None:
    talk = Talk()
    talk.wrote(talk.link.due(0))
    talk.identity(watchdog_min_ms=least, watchdog_max_ms=most)
    why = standing(talk).link.why_not_ready()
    assert ("watchdog_ms is 100" in why) is not can


def test_an_unknown_or_silent_controller_is_not_ready() -> None:
    talk = Talk()
    assert "not identified" in talk.link.why_not_ready()
    assert "STATUS" in talk.introduce().link.why_not_ready()


# --- arming ---


def test_nobody_is_ready_to_arm_before_an_arming_begins_or_after_it_was_given_up(talk: Talk) -> None:
    standing(talk)
    assert not talk.link.ready_to_arm()
    talk.link.begin_arming(talk.now_ns)
    talk.link.end_arming()
    standing(talk)
    assert talk.run(500) == []
    assert not talk.link.ready_to_arm()


def test_what_is_ready_to_arm_is_so_only_as_long_as_nothing_is_missing(talk: Talk) -> None:
    talk.link.begin_arming(talk.now_ns)
    standing(talk).run(1)
    talk.identity()
    assert talk.link.ready_to_arm()
    talk.now_ms += 20
    talk.status(DISARMED, session=0, faults=1)
    assert not talk.link.ready_to_arm()
    standing(talk)
    assert talk.link.ready_to_arm()
    talk.arm()
    assert not talk.link.ready_to_arm()


@pytest.mark.parametrize("again", [False, True])
def test_standstill_for_an_arming_is_three_reports_as_new_as_the_arming(talk: Talk, *, again: bool) -> None:
    if again:
        standing(talk).link.begin_arming(talk.now_ns)
    assert at_rest_after(talk, *[(0, 0, 0)] * 3, state=DISARMED, session=0) == [False, False, True]


def test_a_session_of_1_is_one_like_any_other() -> None:
    draws = iter([11, 1])
    talk = Talk(new_link(lambda: next(draws))).introduce().arm()
    assert talk.link.session == 1


def test_a_second_arming_has_to_be_confirmed_anew(armed: Talk) -> None:
    assert armed.link.confirmed
    armed.arm()
    assert not armed.link.confirmed


def test_a_stopped_session_is_no_longer_confirmed(armed: Talk) -> None:
    armed.stop()
    assert not armed.link.confirmed


def test_the_first_keepalive_comes_20_ms_after_arm(talk: Talk) -> None:
    talk.arm()
    assert talk.link.due(talk.now_ns + 20 * MS - 1) == b""
    assert talk.link.due(talk.now_ns + 20 * MS) != b""


def test_an_echo_of_an_earlier_hello_is_no_answer_to_this_arming(talk: Talk) -> None:
    talk.link.begin_arming(talk.now_ns)
    standing(talk).identity()
    assert not talk.link.ready_to_arm()
    talk.run(1)
    talk.identity()
    assert talk.link.ready_to_arm()


def test_a_standstill_that_was_reported_long_ago_is_none_now(talk: Talk) -> None:
    standing(talk)
    talk.now_ms += 60_000
    talk.link.begin_arming(talk.now_ns)
    assert "standstill" in talk.link.why_not_ready()
    assert talk.run(300) == []  # HELLO would make its number the baseline of a controller that may move
    standing(talk)
    assert kinds(talk.run(200)) == ["HELLO"]
    talk.identity()
    assert talk.link.ready_to_arm()


def test_a_session_is_never_0_nor_the_last_one_nor_the_controllers() -> None:
    nonce = 11
    draws = iter([nonce, 0, 0x5_0000, 9, 0x1_0007, 7, 9, 0, 0x2_FFFF, 0xFFFF, 7])
    talk = Talk(new_link(lambda: next(draws))).introduce()
    talk.status(STOPPED, session=9)
    for session in (7, 0xFFFF, 7):
        talk.arm()
        assert talk.written[-1][1].session == talk.link.session == session


def test_arm_asks_for_the_watchdog_in_the_new_session(talk: Talk) -> None:
    (arm,) = talk.wrote(talk.link.arm(talk.now_ns))
    assert (arm.kind, arm.number("watchdog_ms")) == ("ARM", 100)
    assert arm.session == talk.link.session != 0
    assert not talk.link.confirmed


def test_an_arming_is_confirmed_by_state_1_of_the_new_session_alone(talk: Talk) -> None:
    talk.status(STOPPED, session=21)
    talk.arm()
    for _ in range(3):  # what the buffers still hold of before
        assert talk.status(ARMED, session=21) is None
        assert talk.status(FAULT, session=21, faults=0xFF, watchdog_ms=7) is None
        assert talk.status(DISARMED, session=0) is None
    assert not talk.link.confirmed
    assert talk.status(ARMED) is None
    assert talk.link.confirmed


@pytest.mark.parametrize(
    ("state", "watchdog_ms"),
    [(ARMED, 99), (ARMED, 101), (ARMED, 0), *[(s, 100) for s in (DISARMED, STOPPING, STOPPED, TRIPPED, FAULT)]],
)
def test_another_watchdog_or_state_than_asked_for_is_a_controller_fault(
    talk: Talk, state: int, watchdog_ms: int
) -> None:
    talk.arm()
    assert talk.status(state, watchdog_ms=watchdog_ms) is Reason.CONTROLLER_FAULT
    assert f"state {state} and {watchdog_ms} ms" in talk.why
    assert not talk.link.confirmed


def test_keepalive_is_said_between_arm_and_the_first_velocity_only(talk: Talk) -> None:
    assert talk.run(300) == []
    talk.arm()
    talk.status()
    frames = talk.run(100, status=talk.status)
    assert kinds(frames) == ["KEEPALIVE"] * 5
    assert {b - a for (a, _), (b, _) in pairwise(frames)} == {20}
    assert {frame.session for _, frame in frames} == {talk.link.session}
    talk.drive()
    assert talk.run(500, status=talk.status) == []
    talk.stop()
    assert "KEEPALIVE" not in kinds(talk.run(500))


# --- driving ---


@pytest.mark.parametrize(
    ("velocity", "micros"),
    [
        (Velocity(), (0, 0, 0)),
        (Velocity(0.5, -0.5, 1.5), (500_000, -500_000, 1_500_000)),
        (Velocity(0.0000019, -0.0000019, 0.0000009), (1, -1, 0)),
        (Velocity(-0.0000009, 5e-324, -1.9999999), (0, 0, -1_999_999)),
    ],
)
def test_velocities_are_rounded_towards_zero(armed: Talk, velocity: Velocity, micros: tuple[int, int, int]) -> None:
    frame = armed.drive(velocity, cycle=8123)
    assert tuple(frame.number(name) for name in ("vx", "vy", "wz")) == micros
    assert (frame.number("cycle"), frame.number("ttl_ms"), frame.session) == (8123, 60, armed.link.session)


@given(value=st.floats(-2000, 2000))
def test_the_wire_never_says_more_than_was_asked_for(value: float) -> None:
    talk = Talk().introduce().arm()
    micros = talk.drive(Velocity(0.0, value, 0.0)).number("vy")
    assert abs(value) * 1e6 - 1 < abs(micros) <= abs(value) * 1e6
    assert micros * value >= 0


def test_cycle_numbers_wrap_on_the_wire(armed: Talk) -> None:
    assert armed.drive(cycle=2**32 + 5).number("cycle") == 5


def test_each_frame_has_the_next_seq(armed: Talk) -> None:
    armed.stop()
    armed.run(100)
    seqs = [frame.seq for _, frame in armed.written]
    assert seqs == list(range(1, len(seqs) + 1))


@pytest.mark.parametrize(("silent_ms", "lost"), [(100, False), (100.001, True), (5000, True)])
def test_status_may_be_missing_for_100_ms(armed: Talk, silent_ms: float, *, lost: bool) -> None:
    fault = armed.link.lost(armed.now_ns + round(silent_ms * MS))
    assert (fault is not None and fault[0] is Reason.CONTROLLER_LOST) is lost


def test_the_clock_of_silence_starts_with_the_arming_and_ends_with_the_stop(talk: Talk) -> None:
    talk.status(DISARMED, session=0)
    talk.now_ms = 60_000
    assert talk.link.lost(talk.now_ns) is None
    talk.arm()
    assert talk.link.lost(talk.now_ns + 100 * MS) is None
    assert talk.link.lost(talk.now_ns + 101 * MS) == (Reason.CONTROLLER_LOST, "no STATUS for 60101 ms")
    talk.stop()
    assert talk.link.lost(talk.now_ns + 5000 * MS) is None


def test_a_host_seq_that_does_not_follow_within_100_ms_is_a_lost_controller(armed: Talk) -> None:
    taken = armed.written[-1][1].seq
    armed.now_ms += 5
    armed.drive()
    written_ms = armed.now_ms
    for after_ms, backlogged, lost in [(0, False, False), (60, False, False), (61, True, False), (100, True, False)]:
        armed.now_ms = written_ms + after_ms
        assert armed.status(host_seq=taken) is None
        assert armed.link.backlogged(armed.now_ns) is backlogged
        assert (armed.link.lost(armed.now_ns) is not None) is lost
    armed.now_ms = written_ms + 101
    fault = armed.link.lost(armed.now_ns)
    assert fault is not None
    assert fault[0] is Reason.CONTROLLER_LOST
    armed.status()
    assert armed.link.lost(armed.now_ns) is None
    assert not armed.link.backlogged(armed.now_ns)


@pytest.mark.parametrize(("period_ms", "most"), [(20, 3), (100, 3), (16, 4), (2, 30)])
def test_no_more_frames_are_held_up_than_60_ms_have_cycles(period_ms: int, most: int) -> None:
    """However fast they follow one another."""
    talk = Talk(new_link(period_ns=period_ms * MS)).introduce()
    talk.status(DISARMED, session=0)
    talk.arm()
    talk.status()
    talk.drive()
    talk.status()
    for count in range(most):
        assert not talk.link.backlogged(talk.now_ns), count
        talk.drive()
    assert talk.link.backlogged(talk.now_ns)
    talk.status()
    assert not talk.link.backlogged(talk.now_ns)


def test_the_next_look_is_due_when_an_untaken_frame_would_mean_a_lost_controller(armed: Talk) -> None:
    taken = armed.written[-1][1].seq
    armed.now_ms += 50
    armed.drive()
    written_ns = armed.now_ns
    armed.now_ms += 30
    armed.status(host_seq=taken)
    assert armed.link.next_due_ns() == written_ns + 100 * MS


@pytest.mark.parametrize("end", [Talk.stop, Talk.arm])
def test_what_was_not_taken_is_waited_for_no_longer_than_its_session(
    armed: Talk, end: Callable[[Talk], object]
) -> None:
    armed.drive()
    armed.now_ms += 61
    assert armed.link.backlogged(armed.now_ns)
    end(armed)
    assert not armed.link.backlogged(armed.now_ns + 60 * MS)


def test_the_arm_itself_has_to_be_taken(talk: Talk) -> None:
    hello_seq = talk.written[-1][1].seq
    talk.arm()
    for _ in range(6):
        talk.now_ms += 20
        talk.status(DISARMED, session=0, host_seq=hello_seq)
    fault = talk.link.lost(talk.now_ns)
    assert fault == (Reason.CONTROLLER_LOST, f"frame {hello_seq + 1} was not taken within 100 ms")


def test_the_next_look_is_due_when_the_controller_would_be_lost(armed: Talk) -> None:
    assert armed.link.next_due_ns() <= armed.now_ns + 100 * MS
    armed.now_ms += 50
    armed.status()
    assert armed.link.next_due_ns() <= armed.now_ns + 100 * MS
    armed.stop()
    assert armed.link.next_due_ns() == armed.now_ns + 10 * MS


@pytest.mark.parametrize("bit", range(8))
def test_any_fault_bit_while_armed_is_a_controller_fault(armed: Talk, bit: int) -> None:
    armed.now_ms += 20
    assert armed.status(faults=1 << bit) is Reason.CONTROLLER_FAULT


@pytest.mark.parametrize("state", [DISARMED, STOPPING, STOPPED, TRIPPED, FAULT, 6, 255])
def test_any_other_state_while_armed_is_a_controller_fault(armed: Talk, state: int) -> None:
    armed.now_ms += 20
    assert armed.status(state) is Reason.CONTROLLER_FAULT


@pytest.mark.parametrize("ahead", [1, 1000])
def test_a_frame_that_was_never_written_shows_that_somebody_else_talks(armed: Talk, ahead: int) -> None:
    armed.now_ms += 20
    last = armed.written[-1][1].seq
    assert armed.status(host_seq=last) is None
    assert armed.status(host_seq=last + ahead) is Reason.CONTROLLER_FAULT
    assert f"took frame {last + ahead}, which we never wrote" in armed.why


def test_what_comes_behind_a_fault_in_the_same_read_counts_too(armed: Talk) -> None:
    armed.now_ms += 20
    rest = {"vx": 0, "vy": 0, "wz": 0, "battery_mv": 0, "watchdog_ms": 100, "uptime_ms": round(5000 + armed.now_ms)}
    rest["host_seq"] = armed.written[-1][1].seq
    seq = armed.status_seq
    frames = [wire.encode("STATUS", armed.link.session, seq + n, state=ARMED, faults=n, **rest) for n in (1, 2)]
    fault = armed.hear(b"".join(frames))
    assert fault is not None
    assert (fault[0], "0x01" in fault[1]) == (Reason.CONTROLLER_FAULT, True)
    assert armed.link.status is not None
    assert armed.link.status.faults == 2


# --- resets and old news ---


@pytest.mark.parametrize(
    ("host_ms", "uptime_ms", "reset"),
    [
        (20, 20, False),
        (20, 0, False),
        (20, -1, True),
        (20, -3000, True),
        (20, 520, False),
        (20, 521, True),
        (600, 100, False),
        (600, 99, True),
    ],
)
def test_the_uptime_has_to_run_with_the_hosts_clock(armed: Talk, host_ms: int, uptime_ms: int, *, reset: bool) -> None:
    assert armed.status(uptime_ms=70_000) in {None, Reason.CONTROLLER_RESET}
    armed.now_ms += host_ms
    assert armed.status(uptime_ms=70_000 + uptime_ms) is (Reason.CONTROLLER_RESET if reset else None)
    assert armed.why == (f"the controller was reset: its uptime jumped by {uptime_ms} ms" if reset else "")


def test_an_uptime_that_wraps_is_no_reset(armed: Talk) -> None:
    armed.status(uptime_ms=2**32 - 10)
    armed.now_ms += 20
    assert armed.status(uptime_ms=10) is None
    armed.now_ms += 20
    assert armed.status(uptime_ms=2**32 - 10) is Reason.CONTROLLER_RESET


@pytest.mark.parametrize("session", [0, 1])
def test_another_session_is_a_reset(armed: Talk, session: int) -> None:
    other = session and armed.link.session ^ session
    assert armed.status(session=other) is Reason.CONTROLLER_RESET
    assert armed.why == f"the controller was reset: it speaks of session {other}"


def test_a_controller_that_boots_again_is_noticed_though_its_count_restarts(armed: Talk) -> None:
    armed.now_ms += 20
    assert armed.status(DISARMED, session=0, seq=1, host_seq=0, uptime_ms=3) is Reason.CONTROLLER_RESET
    assert armed.why == "the controller was reset: its count and its uptime ran back"


@pytest.mark.parametrize(("back_ms", "reset"), [(500, False), (501, True)])
def test_an_old_count_with_an_uptime_that_is_far_behind_is_a_reset(armed: Talk, back_ms: int, *, reset: bool) -> None:
    uptime_ms = round(5000 + armed.now_ms) - back_ms
    fault = armed.status(seq=armed.status_seq - 1, uptime_ms=uptime_ms)
    assert fault is (Reason.CONTROLLER_RESET if reset else None)


def test_old_news_without_a_session_is_ignored_until_ours_is_confirmed(talk: Talk) -> None:
    talk.status(DISARMED, session=0)
    talk.arm()
    assert talk.status(DISARMED, session=0, seq=talk.status_seq) is None
    assert talk.link.counts["old_status"] == 1
    talk.status()
    assert talk.status(DISARMED, session=0, seq=talk.status_seq) is Reason.CONTROLLER_RESET


def test_motion_otherwise_than_told_is_a_controller_fault_and_counts_for_one_session(armed: Talk) -> None:
    def astray(for_ms: int) -> list[Reason | None]:
        found = []
        for _ in range(for_ms // 20):
            armed.now_ms += 20
            armed.drive()
            found.append(armed.status(velocity=(-250_000, 100_000, -500_000)))
        return found

    assert set(astray(400)) == {None}
    armed.arm()
    assert set(astray(400)) == {None}
    assert set(astray(400)) == {None, Reason.CONTROLLER_FAULT}
    assert "linear_x" in armed.why


@pytest.mark.parametrize("back", [0, 1, 5, 2**31])
def test_old_news_is_ignored(armed: Talk, back: int) -> None:
    armed.now_ms += 7
    seq = (armed.status_seq - back) % 2**32
    assert armed.status(FAULT, seq=seq, faults=0xFF, watchdog_ms=1) is None
    assert armed.link.counts["old_status"] == 1
    late_ns = armed.now_ns + 94 * MS
    assert armed.link.lost(late_ns) is not None, "an old STATUS must not count as a sign of life"


def test_old_news_of_another_session_is_ignored(armed: Talk) -> None:
    assert armed.status(STOPPED, session=armed.link.session ^ 1, seq=armed.status_seq - 3) is None


def test_the_controllers_count_wraps(armed: Talk) -> None:
    last = armed.status_seq = 2**31 + 50  # half a circle from 100 is "not newer", so go there in two steps
    assert armed.status(seq=2**31 - 50) is None
    assert armed.status(seq=last) is None
    assert armed.status(seq=2**32 - 1) is None
    armed.now_ms += 20
    assert armed.status(seq=0, faults=1) is Reason.CONTROLLER_FAULT


# --- stopping ---


def test_stop_is_said_at_once_with_category_and_reason(armed: Talk) -> None:
    frame = armed.stop(Reason.FRAME_STALE, category=2)
    assert (frame.kind, frame.number("category"), frame.number("reason")) == ("STOP", 2, 2)
    assert frame.session == armed.link.session
    armed.stop(Reason.CONTROLLER_FAULT, category=0)
    ((_, repeated),) = armed.run(10)
    assert (repeated.number("category"), repeated.number("reason")) == (0, 12)


def pace_ms(talk: Talk, for_ms: int = 600) -> set[float]:
    """The times between the STOPs that are written from now on."""
    frames = talk.run(for_ms)
    assert set(kinds(frames)) == {"STOP"}
    seqs = [frame.seq for _, frame in frames]
    assert seqs == list(range(seqs[0], seqs[0] + len(seqs)))
    return {b - a for (a, _), (b, _) in pairwise(frames[1:])}


def test_an_unanswered_stop_is_repeated_every_10_ms(armed: Talk) -> None:
    armed.stop()
    assert pace_ms(armed, 3000) == {10}


@pytest.mark.parametrize(
    ("state", "past_first", "confirmed"),
    [
        (ARMED, 0, False),
        (ARMED, 3, False),
        *[(s, -1, False) for s in (STOPPING, STOPPED, TRIPPED)],
        *[(s, 0, True) for s in (DISARMED, STOPPING, STOPPED, TRIPPED, FAULT)],
        (STOPPING, 1, True),
        (STOPPED, 3, True),
    ],
)
def test_a_stop_is_confirmed_by_another_state_and_a_host_seq_at_or_past_the_first(
    armed: Talk, state: int, past_first: int, *, confirmed: bool
) -> None:
    first = armed.stop()
    armed.run(40)
    armed.status(state, host_seq=first.seq + past_first)
    assert pace_ms(armed) == ({100} if confirmed else {10})


def test_a_stricter_stop_does_not_take_back_that_the_first_was_heard(armed: Talk) -> None:
    first = armed.stop()
    armed.run(15)
    armed.stop(Reason.CONTROLLER_FAULT, category=0)
    armed.status(STOPPING, host_seq=first.seq)
    assert pace_ms(armed) == {100}


def test_a_controller_that_forgets_the_stop_is_told_again(armed: Talk) -> None:
    armed.stop()
    armed.status(STOPPED)
    assert pace_ms(armed) == {100}
    armed.status(DISARMED, session=0, seq=1, host_seq=0, uptime_ms=1)
    assert pace_ms(armed) == {10}


def test_an_arming_ends_the_repetition(armed: Talk) -> None:
    armed.stop()
    armed.status(STOPPED)
    armed.arm()
    armed.status()
    assert set(kinds(armed.run(300, status=armed.status))) == {"KEEPALIVE"}


def test_a_velocity_does_not_end_the_repetition(talk: Talk) -> None:
    talk.arm()
    talk.status()
    talk.stop()  # before a first VELOCITY, which ends KEEPALIVE
    talk.drive()
    assert pace_ms(talk) == {10}


# --- HELLO and STOP beside each other ---


def arming_while_stopped(talk: Talk) -> float:
    """A stop that was confirmed, then an arming and standstill between two of its repetitions; when that was."""
    talk.stop()
    standing(talk, STOPPED)
    talk.run(237)
    talk.link.begin_arming(talk.now_ns)
    standing(talk, STOPPED)
    return talk.now_ms


def times_ms(frames: list[tuple[float, wire.WireFrame]], kind: str) -> list[float]:
    return [at_ms for at_ms, frame in frames if frame.kind == kind]


def test_hello_and_stop_keep_their_own_periods(armed: Talk) -> None:
    resting_ms = arming_while_stopped(armed)
    frames = armed.run(2000)
    assert set(kinds(frames)) == {"HELLO", "STOP"}
    asked_ms = times_ms(frames, "HELLO")
    assert asked_ms == [resting_ms + 1 + 200 * n for n in range(10)]
    stops_ms = times_ms(frames, "STOP")
    assert {b - a for a, b in pairwise(stops_ms)} == {100}
    assert len(stops_ms) == 20
    armed.identity()
    assert armed.link.ready_to_arm()
    assert set(kinds(armed.run(1000))) == {"STOP"}


def test_a_stop_that_is_not_confirmed_keeps_its_pace_and_holds_hello_back(armed: Talk) -> None:
    armed.stop()
    armed.link.begin_arming(armed.now_ns)
    assert pace_ms(armed, 1000) == {10}
    standing(armed, ARMED)
    assert pace_ms(armed, 1000) == {10}
    standing(armed, STOPPED)
    assert set(kinds(armed.run(10))) == {"HELLO", "STOP"}


def test_between_two_due_times_there_is_nothing_to_write_and_at_each_there_is(armed: Talk) -> None:
    """Waking at `next_due_ns` alone writes the same as asking every millisecond."""
    arming_while_stopped(armed)
    armed.wrote(armed.link.due(armed.now_ns))
    frames = []
    for _ in range(30):
        due_ns = armed.link.next_due_ns()
        assert due_ns > armed.now_ns
        assert armed.link.due(due_ns - 1) == b""
        armed.now_ms = due_ns / MS
        frames += [(armed.now_ms, frame) for frame in armed.wrote(armed.link.due(due_ns))]
        assert frames[-1][0] == armed.now_ms
    assert {b - a for a, b in pairwise(times_ms(frames, "HELLO"))} == {200}
    assert {b - a for a, b in pairwise(times_ms(frames, "STOP"))} == {100}


def test_a_hello_that_has_to_wait_for_standstill_wakes_nobody(armed: Talk) -> None:
    armed.stop()
    armed.status(STOPPED, velocity=(50_000, 0, 0))
    armed.run(1000)
    armed.link.begin_arming(armed.now_ns)
    next_stop_ns = armed.link.next_due_ns()
    assert next_stop_ns > armed.now_ns
    assert kinds([(0, frame) for frame in armed.wrote(armed.link.due(next_stop_ns))]) == ["STOP"]


# --- standstill ---


def at_rest_after(talk: Talk, *velocities: tuple[int, int, int], state: int = STOPPED, **fields: int) -> list[bool]:
    told = []
    for velocity in velocities:
        talk.now_ms += 20
        talk.status(state, velocity=velocity, **fields)
        told.append(talk.link.at_rest())
    return told


def test_standstill_takes_three_reports_in_a_row_after_the_stop(armed: Talk) -> None:
    for _ in range(5):  # standing while armed is no standstill of the stop that follows
        armed.now_ms += 20
        armed.status()
    armed.stop()
    slow, fast = (9_999, -9_999, 19_999), (0, -10_000, 0)
    assert at_rest_after(armed, slow, slow, fast, slow, slow, slow, slow) == [False] * 5 + [True] * 2
    assert armed.link.standstill()
    assert at_rest_after(armed, (0, 0, 20_000)) == [False]
    assert not armed.link.standstill()


def test_reports_of_before_the_stop_was_taken_do_not_count(armed: Talk) -> None:
    before = armed.written[-1][1].seq
    armed.stop()
    still = (0, 0, 0)
    assert at_rest_after(armed, *[still] * 5, host_seq=before) == [False] * 5
    assert at_rest_after(armed, *[still] * 3) == [False, False, True]


def test_the_stop_of_a_second_session_has_to_be_taken_too(armed: Talk) -> None:
    armed.stop()
    armed.status(STOPPED)
    armed.arm()
    before = armed.written[-1][1].seq
    armed.stop()
    assert at_rest_after(armed, *[(0, 0, 0)] * 5, host_seq=before) == [False] * 5
    assert pace_ms(armed, 100) == {10}
    assert at_rest_after(armed, *[(0, 0, 0)] * 3) == [False, False, True]


def test_a_stop_that_no_status_has_followed_keeps_its_pace(talk: Talk) -> None:
    talk.stop()
    assert pace_ms(talk, 100) == {10}
    assert not talk.link.at_rest()


@pytest.mark.parametrize("state", [ARMED, STOPPING, 6, 255])
def test_a_state_of_motion_is_no_standstill(armed: Talk, state: int) -> None:
    armed.stop()
    assert at_rest_after(armed, *[(0, 0, 0)] * 5, state=state) == [False] * 5


@pytest.mark.parametrize("state", [DISARMED, TRIPPED, FAULT])
def test_rest_by_other_means_than_the_stop_is_no_standstill(armed: Talk, state: int) -> None:
    armed.stop()
    assert at_rest_after(armed, *[(0, 0, 0)] * 3, state=state)[-1]
    assert not armed.link.standstill()


def test_standstill_is_of_the_stopped_session(armed: Talk) -> None:
    armed.stop()
    assert at_rest_after(armed, *[(0, 0, 0)] * 3, session=armed.link.session ^ 1)[-1]
    assert not armed.link.standstill()


def test_standstill_before_a_first_arming_is_that_of_a_disarmed_controller(talk: Talk) -> None:
    assert not talk.link.standstill()
    assert standing(talk).link.standstill()
    talk.stop(Reason.OPERATOR)
    assert not talk.link.standstill()
    assert standing(talk).link.standstill()
    assert standing(talk, STOPPED).link.standstill()
    assert not standing(talk, TRIPPED).link.standstill()


# --- against the controller, over a line ---


class Noise(NamedTuple):
    """What a line does to each frame: probabilities, and times in ms."""

    loss: float = 0
    repeat: float = 0
    flip: float = 0
    bytewise: bool = False
    latency_ms: float = 0.5
    jitter_ms: float = 0


@dataclass
class Line:
    """One direction of a serial line."""

    random: Random
    noise: Noise = field(default_factory=Noise)
    _on_the_way: list[tuple[int, int, bytes]] = field(default_factory=list)
    _count: int = 0

    def put(self, data: bytes, now_ns: int) -> None:
        for run in data.split(b"\0")[:-1]:
            frame = run + b"\0"
            while True:
                self._send(frame, now_ns)
                if self.random.random() >= self.noise.repeat:
                    break

    def _send(self, frame: bytes, now_ns: int) -> None:
        noise = self.noise
        if self.random.random() < noise.loss:
            return
        if self.random.random() < noise.flip:
            bit = self.random.randrange(len(frame) * 8)
            frame = bytes(byte ^ (1 << bit % 8 if at == bit // 8 else 0) for at, byte in enumerate(frame))
        due_ns = now_ns + round((noise.latency_ms + self.random.random() * noise.jitter_ms) * MS)
        for piece in [bytes([byte]) for byte in frame] if noise.bytewise else [frame]:
            self._count += 1
            heapq.heappush(self._on_the_way, (due_ns, self._count, piece))

    def arrived(self, now_ns: int) -> Iterator[bytes]:
        while self._on_the_way and self._on_the_way[0][0] <= now_ns:
            yield heapq.heappop(self._on_the_way)[2]


class World:
    """The link, the controller and the two lines between them, in steps of a millisecond."""

    def __init__(self, seed: int = 1, noise: Noise | None = None, uptime_ms: int = 0) -> None:
        self.random = Random(seed)
        self.out, self.back = Line(self.random), Line(self.random)
        self.controller = Controller(uptime_ms=uptime_ms)
        self.now_ns = 0
        self.faults: list[Reason] = []
        self.driving = False
        self.plug(noise or Noise())

    def plug(self, noise: Noise) -> None:
        self.out.noise = self.back.noise = noise
        self.new_host()

    def new_host(self) -> None:
        self.link = new_link(lambda: self.random.getrandbits(32))
        self.link.opened(self.now_ns)
        self.reader = wire.WireReader()
        self.written: list[tuple[int, wire.WireFrame]] = []
        self.tape: list[bytes] = []

    @property
    def now_ms(self) -> int:
        return self.now_ns // MS

    def write(self, data: bytes) -> None:
        self.written += [(self.now_ms, frame) for frame in self.reader.feed(data)]
        self.out.put(data, self.now_ns)

    def step(self) -> None:
        self.now_ns += MS
        for piece in self.out.arrived(self.now_ns):
            self.back.put(self.controller.receive(piece, self.now_ns), self.now_ns)
        self.back.put(self.controller.tick(self.now_ns), self.now_ns)
        for piece in self.back.arrived(self.now_ns):
            self.tape.append(piece)
            self._note(self.link.receive(piece, self.now_ns))
        self._note(self.link.lost(self.now_ns))
        if self.driving and self.now_ms % 20 == 0 and not self.link.backlogged(self.now_ns):
            self.write(self.link.velocity(self.now_ms, HALF_SPEED.as_tuple(), self.now_ns))
        self.write(self.link.due(self.now_ns))

    def _note(self, fault: tuple[Reason, str] | None) -> None:
        if fault is not None:
            self.faults.append(fault[0])

    def run(self, for_ms: int, until: Callable[[], bool] = lambda: False) -> bool:
        return any(self.step() or until() for _ in range(for_ms))

    def arm(self, within_ms: int = 2000) -> bool:
        """One attempt, as the gate makes it; whether it was confirmed."""
        assert self.run(within_ms, lambda: self.link.identified)
        self.link.begin_arming(self.now_ns)
        if not self.run(within_ms, self.link.ready_to_arm):
            return False
        self.write(self.link.arm(self.now_ns))
        return self.run(200, lambda: self.link.confirmed or bool(self.faults)) and self.link.confirmed

    def drive(self, for_ms: int) -> None:
        self.driving = True
        self.run(for_ms, lambda: bool(self.faults))
        self.driving = False

    def stop(self) -> int:
        """The time of it in ms."""
        self.driving = False
        self.write(self.link.stop(1, Reason.OPERATOR, self.now_ns))
        return self.now_ms

    def stops_since(self, at_ms: int) -> list[int]:
        frames = [(ms, frame.kind) for ms, frame in self.written if ms >= at_ms]
        assert {kind for ms, kind in frames if ms > at_ms} <= {"STOP", "HELLO"}
        return [ms for ms, kind in frames if kind == "STOP"]


def test_a_whole_drive_over_a_good_line() -> None:
    world = World()
    assert world.arm()
    assert world.controller.watchdog_ms == 100
    world.run(100)
    world.drive(1000)
    assert world.faults == []
    assert world.controller.velocity == HALF_SPEED
    at_ms = world.stop()
    assert world.run(1000, world.link.standstill)
    assert world.now_ms - at_ms < 0.25 / 2.0 * 1000 + 100
    assert world.controller.state == STOPPED
    assert world.stops_since(at_ms) == [at_ms, *range(at_ms + 10, world.now_ms, 100)][: len(world.stops_since(at_ms))]
    assert not world.controller.dropped
    assert world.arm()
    world.drive(200)
    assert world.faults == []


@pytest.mark.parametrize(
    "noise",
    [
        Noise(bytewise=True),
        Noise(repeat=0.3),
        Noise(latency_ms=20),
        Noise(flip=0.2),
        Noise(loss=0.2),
        Noise(jitter_ms=30),
        Noise(loss=0.1, repeat=0.1, flip=0.1, jitter_ms=10),
    ],
    ids=str,
)
def test_damage_never_makes_a_wrong_arming_or_a_stop_that_is_believed_and_not_so(noise: Noise) -> None:
    """Whatever becomes of an attempt, what the link believes is what the controller did."""
    drives = 0
    for seed in range(6):
        world = World(seed, noise)
        for _ in range(2):
            world.faults.clear()
            if world.arm():
                assert world.controller.session == world.link.session
                drives += 1
                world.drive(300)
            at_ms = world.stop()
            assert world.run(2000, world.link.at_rest)
            assert world.controller.state in {DISARMED, STOPPED, TRIPPED}
            assert world.controller.velocity == Velocity()
            assert world.stops_since(at_ms)
    assert drives


@pytest.mark.parametrize("kind", [Noise(), Noise(bytewise=True), Noise(repeat=0.3), Noise(latency_ms=10)], ids=str)
def test_what_a_line_may_do_without_harm_does_none(kind: Noise) -> None:
    world = World(3, kind)
    assert world.arm()
    world.drive(1000)
    assert world.faults == []


@pytest.mark.parametrize("seed", range(25))
def test_under_20_percent_loss_a_stop_always_arrives_and_is_always_confirmed(seed: int) -> None:
    world = World(seed)
    assert world.arm()
    world.drive(200)
    world.out.noise = world.back.noise = Noise(loss=0.2)
    at_ms = world.stop()
    assert world.run(150, lambda: world.controller.state != ARMED)
    world.run(400)
    stops = world.stops_since(at_ms)
    gaps = [b - a for a, b in pairwise(stops)]
    slow = gaps.index(100)
    assert gaps == [10] * slow + [100] * (len(gaps) - slow)
    assert world.run(2000, world.link.standstill)


def test_a_stop_that_never_arrives_is_repeated_for_ever() -> None:
    world = World()
    assert world.arm()
    world.drive(100)
    world.out.noise = Noise(loss=1)
    at_ms = world.stop()
    world.run(1000)
    assert world.stops_since(at_ms) == list(range(at_ms, at_ms + 1001, 10))
    assert world.controller.state == TRIPPED
    assert not world.link.standstill()


def test_a_stop_whose_confirmation_never_arrives_is_repeated_for_ever() -> None:
    world = World()
    assert world.arm()
    world.drive(100)
    world.back.noise = Noise(loss=1)
    at_ms = world.stop()
    world.run(500)
    assert len(world.stops_since(at_ms)) == 51
    assert not world.link.at_rest()


@pytest.mark.parametrize(("dead", "reason"), [("out", Reason.CONTROLLER_FAULT), ("back", Reason.CONTROLLER_LOST)])
def test_a_dead_line_is_noticed(dead: str, reason: Reason) -> None:
    """On the way there a ttl is the first to run out, and the line back says so."""
    world = World()
    assert world.arm()
    world.drive(100)
    getattr(world, dead).noise = Noise(loss=1)
    at_ms = world.now_ms
    world.drive(500)
    assert world.faults[0] is reason
    assert world.now_ms - at_ms <= 125


@pytest.mark.parametrize("uptime_ms", [0, 100, 700, 60_000, 2**32 - 400])
def test_a_reset_in_motion_is_noticed(uptime_ms: int) -> None:
    world = World(uptime_ms=uptime_ms)
    assert world.arm()
    world.drive(300)
    assert world.faults == []
    world.controller.reset(world.now_ns)
    at_ms = world.now_ms
    world.drive(200)
    assert world.faults[0] is Reason.CONTROLLER_RESET
    assert world.now_ms - at_ms <= 25


def test_the_controllers_own_faults_are_noticed() -> None:
    world = World()
    assert world.arm()
    world.drive(100)
    world.controller.set_fault(4, on=True)
    world.drive(100)
    assert world.faults[0] is Reason.CONTROLLER_FAULT


def test_a_ttl_that_ran_out_is_noticed() -> None:
    world = World()
    assert world.arm()
    world.drive(100)
    world.run(90, lambda: bool(world.faults))
    assert world.faults[0] is Reason.CONTROLLER_FAULT
    assert world.controller.faults == 0b10_0000


def test_a_restarted_host_arms_the_controller_that_it_finds() -> None:
    world = World()
    assert world.arm()
    world.drive(200)
    first = world.link.session
    world.new_host()  # the old one died in motion
    assert world.arm()
    assert world.link.session != first
    world.drive(300)
    assert world.faults == []
    assert world.controller.velocity != Velocity()


def test_a_replay_of_an_earlier_drive_changes_nothing() -> None:
    world = World(uptime_ms=5000)
    assert world.arm()
    world.tape = []
    world.drive(100)
    world.stop()
    assert world.run(1000, world.link.standstill)
    tape = world.tape
    world.link.begin_arming(world.now_ns)
    assert world.run(500, world.link.ready_to_arm)
    world.write(world.link.arm(world.now_ns))
    for piece in tape:
        assert world.link.receive(piece, world.now_ns) is None
    assert not world.link.confirmed
    assert world.run(100, lambda: world.link.confirmed)
    world.driving = True
    for _ in range(5):
        world.run(20)
        for piece in tape[-5:]:  # what is older than half a second shows as a reset
            assert world.link.receive(piece, world.now_ns) is None
    assert world.faults == []
