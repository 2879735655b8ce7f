"""The simulated controller against the rules of motor link v1, spoken to in bytes that it has no part in making."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvla_daemon.sim.controller import Controller
from tests import wire

MS = 1_000_000
DISARMED, ARMED, STOPPING, STOPPED, TRIPPED, FAULT = range(6)
SESSION = 0x1234
WATCHDOG_MS = 100
TTL_MS = 60
TTL_RAN_OUT = 0b10_0000


@dataclass
class Bench:
    """A controller, a clock in ms, and a host that counts its frames; every frame back is kept in `heard`."""

    controller: Controller = field(default_factory=Controller)
    now_ms: float = 0
    seq: int = 0
    reader: wire.WireReader = field(default_factory=wire.WireReader)
    heard: list[wire.WireFrame] = field(default_factory=list)

    def send(self, kind: str, session: int = SESSION, seq: int | None = None, **fields: int) -> list[wire.WireFrame]:
        if seq is None:
            self.seq += 1
            seq = self.seq
        return self.send_bytes(wire.encode(kind, session, seq, **fields))

    def send_bytes(self, data: bytes) -> list[wire.WireFrame]:
        return self._hear(self.controller.receive(data, round(self.now_ms * MS)))

    def hello(self, seq: int | None = None) -> list[wire.WireFrame]:
        return self.send("HELLO", 0, seq, nonce=0xDEADBEEF)

    def arm(self, session: int = SESSION, watchdog_ms: int = WATCHDOG_MS, seq: int | None = None) -> wire.WireFrame:
        (status,) = self.send("ARM", session, seq, watchdog_ms=watchdog_ms)
        return status

    def drive(self, vx: int = 0, vy: int = 0, wz: int = 0, ttl_ms: int = TTL_MS, session: int = SESSION) -> None:
        assert self.send("VELOCITY", session, cycle=0, ttl_ms=ttl_ms, vx=vx, vy=vy, wz=wz) == []

    def stop(self, category: int = 1, session: int = SESSION, seq: int | None = None) -> wire.WireFrame:
        (status,) = self.send("STOP", session, seq, category=category, reason=13)
        return status

    def at(self, now_ms: float) -> Bench:
        self.now_ms = now_ms
        self._hear(self.controller.tick(round(now_ms * MS)))
        return self

    def keep_driving(self, until_ms: int, vx: int) -> None:
        for now_ms in range(int(self.now_ms), until_ms + 1, 20):
            self.at(now_ms).drive(vx)

    def _hear(self, data: bytes) -> list[wire.WireFrame]:
        frames = self.reader.feed(data)
        assert self.reader.undecodable == []
        self.heard += frames
        return frames

    @property
    def state(self) -> int:
        return self.controller.state

    @property
    def vx(self) -> float:
        return self.controller.velocity.linear_x_mps


@pytest.fixture
def bench() -> Bench:
    """Booted at 0 ms and greeted."""
    bench = Bench()
    bench.hello()
    return bench


@pytest.fixture
def armed(bench: Bench) -> Bench:
    """Armed at 0 ms."""
    assert bench.arm().fields["state"] == ARMED
    return bench


@pytest.fixture
def driving(armed: Bench) -> Bench:
    """At 1 m/s since 200 ms; its last VELOCITY at 300 ms."""
    armed.keep_driving(300, 1_000_000)
    assert armed.vx == 1.0
    return armed


# Identity and status


def test_a_boot_is_disarmed_at_rest_without_drive() -> None:
    bench = Bench()
    status = bench.stop()
    assert (status.kind, status.session, status.seq) == ("STATUS", 0, 1)
    assert status.fields == {
        "state": DISARMED,
        "faults": 0,
        "host_seq": 1,
        "uptime_ms": 0,
        "watchdog_ms": 0,
        "vx": 0,
        "vy": 0,
        "wz": 0,
        "battery_mv": 0,
    }
    assert not bench.controller.drive_on


def test_hello_is_answered_with_the_nonce_and_what_the_ramp_can_do() -> None:
    (identity,) = Bench(Controller(name="größe")).hello()
    assert identity.kind == "IDENTITY"
    assert identity.fields == {
        "nonce": 0xDEADBEEF,
        "name": "größe".encode().ljust(16, b"\0"),
        "fw_major": 1,
        "fw_minor": 0,
        "watchdog_min_ms": 20,
        "watchdog_max_ms": 1000,
        "decel_mm_s2": 2000,
        "decel_mrad_s2": 8000,
    }


def test_a_name_longer_than_its_field_is_refused() -> None:
    assert Controller(name="a" * 16)
    with pytest.raises(ValueError, match="16 bytes"):
        Controller(name="ä" * 9)


def test_status_comes_every_20_ms(bench: Bench) -> None:
    for now_ms in range(1, 101):
        bench.at(now_ms)
    statuses = [frame for frame in bench.heard if frame.kind == "STATUS"]
    assert [frame.fields["uptime_ms"] for frame in statuses] == [20, 40, 60, 80, 100]
    assert [frame.seq for frame in bench.heard] == [1, 2, 3, 4, 5, 6]


def test_a_late_tick_sends_one_status_and_keeps_the_rhythm(bench: Bench) -> None:
    bench.at(75).at(79.999).at(80)
    assert [frame.fields["uptime_ms"] for frame in bench.heard if frame.kind == "STATUS"] == [75, 80]


def test_an_answer_at_once_leaves_the_rhythm_alone(bench: Bench) -> None:
    bench.at(15).stop()
    bench.at(20)
    assert [frame.fields["uptime_ms"] for frame in bench.heard if frame.kind == "STATUS"] == [15, 20]


def test_uptime_and_seq_wrap() -> None:
    bench = Bench(Controller(uptime_ms=2**32 - 10))
    bench.at(9.999).stop()
    bench.at(10).stop()
    assert [frame.fields["uptime_ms"] for frame in bench.heard] == [2**32 - 1, 0]


def test_the_next_tick_is_the_next_thing_to_happen(armed: Bench) -> None:
    controller = armed.controller
    assert controller.next_tick_ns(0) == 20 * MS
    armed.drive(ttl_ms=7)
    assert controller.next_tick_ns(0) == 7 * MS
    assert controller.next_tick_ns(8 * MS) == 8 * MS
    armed.at(80).drive(100_000)
    armed.at(100).stop()  # at 0.1 m/s since 20 ms: 50 ms to zero, the next STATUS after 20
    assert controller.next_tick_ns(100 * MS) == 120 * MS
    armed.at(140)
    assert controller.next_tick_ns(140 * MS) == 150 * MS


def test_time_does_not_run_back(driving: Bench) -> None:
    driving.at(400)
    speed = driving.vx
    driving.at(350)
    assert driving.vx == speed
    assert driving.stop().fields["uptime_ms"] == 400


# Rule 1: motion only in state 1 and in the armed session


@pytest.mark.parametrize("state", [DISARMED, STOPPED, TRIPPED, FAULT])
def test_nothing_drives_outside_state_1(bench: Bench, state: int) -> None:
    bring_to(bench, state)
    assert bench.state == state
    bench.at(500).drive(1_000_000, session=bench.controller.session)
    bench.at(520)
    assert (bench.state, bench.vx) == (state, 0.0)
    assert bench.controller.dropped["state"] == 1


def bring_to(bench: Bench, state: int) -> None:
    if state == DISARMED:
        return
    bench.arm()
    if state == STOPPED:
        bench.stop()
    elif state == TRIPPED:
        bench.at(WATCHDOG_MS)
    elif state == FAULT:
        bench.controller.set_fault(3, on=True)


def test_a_stopping_robot_takes_no_velocity(driving: Bench) -> None:
    driving.stop()
    driving.at(320).drive(1_000_000)
    driving.at(340)
    assert driving.state == STOPPING
    assert driving.vx == pytest.approx(0.92)


def test_another_sessions_velocity_and_keepalive_do_nothing(armed: Bench) -> None:
    armed.at(50).drive(1_000_000, session=SESSION + 1)
    armed.send("KEEPALIVE", SESSION + 1)
    assert armed.at(99.999).state == ARMED
    assert armed.vx == 0.0
    assert armed.controller.host_seq == 2
    assert armed.at(100).state == TRIPPED
    assert armed.controller.dropped["session"] == 2


def test_a_velocity_is_followed_at_the_drives_acceleration(armed: Bench) -> None:
    armed.drive(100_000, -200_000, 1_000_000)
    armed.at(10)
    assert armed.controller.velocity.as_tuple() == (0.05, -0.05, 0.2)
    armed.at(20)
    assert armed.controller.velocity.as_tuple() == (0.1, -0.1, 0.4)
    armed.at(50).drive(100_000, -200_000, 1_000_000)
    assert armed.controller.velocity.as_tuple() == (0.1, -0.2, 1.0)
    status = armed.stop()
    assert [status.fields[axis] for axis in ("vx", "vy", "wz")] == [100_000, -200_000, 1_000_000]


# Rule 2: the baseline


def test_after_a_boot_only_hello_and_stop_are_accepted() -> None:
    bench = Bench()
    assert bench.arm().fields["state"] == DISARMED
    assert bench.controller.dropped["seq"] == 1
    assert bench.stop().fields["host_seq"] == 2
    assert bench.arm().fields["host_seq"] == 2
    assert bench.state == DISARMED
    bench.hello()
    assert bench.arm().fields["state"] == ARMED


@pytest.mark.parametrize("seq", [10, 9, 1, 0, 10 + 2**31, 10 - 2**31 + 2**32])
def test_a_frame_that_is_not_newer_than_the_baseline_is_dropped(seq: int) -> None:
    bench = Bench()
    bench.hello(seq=10)
    status = bench.arm(seq=seq)
    assert (status.fields["state"], status.fields["host_seq"]) == (DISARMED, 10)
    assert bench.controller.dropped["seq"] == 1


def test_the_baseline_wraps() -> None:
    bench = Bench()
    bench.hello(seq=2**32 - 1)
    assert bench.arm(seq=0).fields["state"] == ARMED
    bench.seq = 0
    bench.drive(100_000)
    bench.at(20)
    assert bench.vx == 0.1
    assert bench.controller.host_seq == 1


def test_a_fed_watchdog_keeps_no_command_alive_for_longer_than_the_watchdog(armed: Bench) -> None:
    armed.drive(100_000, ttl_ms=65_535)
    for now_ms in (40, 80, 120):
        armed.at(now_ms).send("KEEPALIVE")
    assert armed.at(139).vx < 0.1
    assert armed.at(200).vx == 0
    assert (armed.state, armed.controller.faults) == (ARMED, 0)  # no ttl ran out
    assert armed.at(219.999).state == ARMED
    assert armed.at(220).state == TRIPPED


def test_velocity_and_keepalive_move_the_baseline(armed: Bench) -> None:
    armed.at(10).send("KEEPALIVE", seq=100)
    armed.at(20).send("KEEPALIVE", seq=99)
    assert armed.at(109.999).state == ARMED
    assert armed.at(110).state == TRIPPED


def test_a_refused_arm_moves_the_baseline_so_that_its_copy_stays_refused(driving: Bench) -> None:
    early = wire.encode("ARM", 0x777, 1000, watchdog_ms=100)
    driving.send_bytes(early)
    assert (driving.state, driving.controller.host_seq) == (ARMED, 1000)
    driving.stop()
    assert driving.at(1000).state == STOPPED
    driving.send_bytes(early)
    assert driving.state == STOPPED
    assert driving.arm(0x777, seq=1001).fields["state"] == ARMED


@pytest.mark.parametrize(("session", "seq"), [(SESSION, 0), (0, 2), (0xFFFF, 2**31)])
def test_stop_is_obeyed_with_any_session_and_seq_and_leaves_the_baseline(
    driving: Bench, session: int, seq: int
) -> None:
    assert driving.stop(session=session, seq=seq).fields["state"] == STOPPING
    assert driving.at(800).state == STOPPED
    assert driving.arm(SESSION + 1, seq=driving.seq + 1).fields["state"] == ARMED


def test_an_old_stop_does_not_run_host_seq_back(armed: Bench) -> None:
    assert armed.stop(seq=1).fields["host_seq"] == 2
    assert armed.stop(seq=50).fields["host_seq"] == 50


def test_hello_at_rest_makes_its_seq_the_baseline(armed: Bench) -> None:
    armed.stop(seq=70_000)
    armed.hello(seq=1)
    status = armed.arm(SESSION + 1, seq=2)
    assert (status.fields["state"], status.fields["host_seq"]) == (ARMED, 2)


@pytest.mark.parametrize("stopping", [False, True])
def test_hello_in_motion_is_answered_and_leaves_the_baseline(driving: Bench, stopping: bool) -> None:
    newest = driving.seq
    if stopping:
        driving.stop()
    (identity,) = driving.hello(seq=0)
    assert (identity.kind, identity.session) == ("IDENTITY", SESSION)
    driving.stop()
    assert driving.at(900).state == STOPPED
    assert driving.arm(SESSION + 1, seq=newest).fields["state"] == STOPPED
    assert driving.arm(SESSION + 1, seq=newest + 1).fields["state"] == ARMED


# Rule 3: ARM


def test_arm_starts_its_session_at_zero_and_shows_it_at_once(bench: Bench) -> None:
    status = bench.arm(watchdog_ms=250)
    assert (status.session, status.fields["state"], status.fields["watchdog_ms"]) == (SESSION, ARMED, 250)
    assert bench.controller.drive_on
    assert bench.at(100).vx == 0.0


@pytest.mark.parametrize(("watchdog_ms", "state"), [(0, 0), (19, 0), (20, 1), (1000, 1), (1001, 0), (65535, 0)])
def test_arm_needs_a_watchdog_within_the_limits(bench: Bench, watchdog_ms: int, state: int) -> None:
    status = bench.arm(watchdog_ms=watchdog_ms)
    assert status.fields["state"] == state
    assert status.fields["watchdog_ms"] == (watchdog_ms if state else 0)
    assert bench.controller.dropped["arm"] == 1 - state


@pytest.mark.parametrize("session", [0, SESSION])
def test_arm_needs_another_session_than_0_and_the_present_one(armed: Bench, session: int) -> None:
    armed.stop()
    status = armed.arm(session)
    assert (status.session, status.fields["state"]) == (SESSION, STOPPED)


@pytest.mark.parametrize("state", [DISARMED, STOPPED, TRIPPED])
def test_arm_is_obeyed_at_rest(bench: Bench, state: int) -> None:
    bring_to(bench, state)
    assert bench.arm(SESSION + 1).fields["state"] == ARMED


def test_arm_is_ignored_while_armed_and_does_not_feed_the_watchdog(armed: Bench) -> None:
    armed.at(50)
    status = armed.arm(SESSION + 1, watchdog_ms=500)
    assert (status.session, status.fields["state"], status.fields["watchdog_ms"]) == (SESSION, ARMED, 100)
    assert armed.at(100).state == TRIPPED


def test_arm_is_ignored_before_standstill(driving: Bench) -> None:
    driving.stop()
    driving.at(799.999)
    assert driving.arm(SESSION + 1).fields["state"] == STOPPING
    driving.at(800)
    assert driving.arm(SESSION + 1).fields["state"] == ARMED


def test_arm_is_ignored_in_state_5_also_when_the_fault_is_gone(armed: Bench) -> None:
    armed.controller.set_fault(0, on=True)
    assert armed.arm(SESSION + 1).fields["state"] == FAULT
    armed.controller.set_fault(0, on=False)
    assert armed.arm(SESSION + 1).fields["state"] == FAULT
    armed.controller.reset(50 * MS)
    armed.hello()
    assert armed.arm(SESSION + 1).fields["state"] == ARMED


@pytest.mark.parametrize("bit", range(5))
def test_arm_is_ignored_with_a_hardware_fault(bench: Bench, bit: int) -> None:
    bench.controller.set_fault(bit, on=True)
    status = bench.arm()
    assert (status.fields["state"], status.fields["faults"]) == (DISARMED, 1 << bit)
    bench.controller.set_fault(bit, on=False)
    status = bench.arm()
    assert (status.fields["state"], status.fields["faults"]) == (ARMED, 0)


def test_a_replayed_arming_and_drive_move_nothing(bench: Bench) -> None:
    session = [
        wire.encode("ARM", SESSION, 2, watchdog_ms=WATCHDOG_MS),
        wire.encode("VELOCITY", SESSION, 3, cycle=0, ttl_ms=TTL_MS, vx=100_000, vy=0, wz=0),
        wire.encode("STOP", SESSION, 4, category=1, reason=13),
    ]
    for at_ms, data in zip((0, 10, 40), session, strict=True):
        bench.at(at_ms).send_bytes(data)
    assert bench.at(200).state == STOPPED
    for data in session[:2]:
        bench.send_bytes(data)
    assert (bench.at(220).state, bench.vx) == (STOPPED, 0.0)

    bench.seq = 4
    bench.arm(SESSION + 1)
    bench.send_bytes(session[1])
    assert (bench.at(240).state, bench.vx) == (ARMED, 0.0)
    assert bench.controller.dropped["seq"] == 3


def test_an_old_velocity_with_a_newer_seq_is_refused_by_its_session(armed: Bench) -> None:
    armed.stop()
    armed.arm(SESSION + 1)
    armed.send("VELOCITY", SESSION, 4_000, cycle=0, ttl_ms=TTL_MS, vx=100_000, vy=0, wz=0)
    assert (armed.at(20).state, armed.vx) == (ARMED, 0.0)


# Rule 4: the watchdog


def test_the_watchdog_starts_at_arm(armed: Bench) -> None:
    assert armed.at(99.999).state == ARMED
    assert armed.at(100).state == TRIPPED
    assert armed.at(10_000).state == TRIPPED


def test_the_watchdog_does_not_run_outside_state_1(armed: Bench) -> None:
    armed.stop()
    assert armed.at(10_000).state == STOPPED


def test_a_frame_at_the_very_end_of_the_watchdog_is_too_late(armed: Bench) -> None:
    armed.at(99.999).send("KEEPALIVE")
    armed.now_ms = 199.999  # no tick before the frame: its arrival alone must show that it is late
    armed.send("KEEPALIVE")
    assert armed.state == TRIPPED


def test_keepalive_and_velocity_feed_the_watchdog(armed: Bench) -> None:
    armed.at(90).send("KEEPALIVE")
    armed.at(180).drive(ttl_ms=500)
    assert armed.at(279.999).state == ARMED
    assert armed.at(280).state == TRIPPED


def test_what_is_not_accepted_does_not_feed_the_watchdog(armed: Bench) -> None:
    armed.at(90).hello()
    armed.send("KEEPALIVE", seq=1)
    armed.send("KEEPALIVE", SESSION + 1)
    armed.send_bytes(b"\x05garbage\0")
    assert armed.at(100).state == TRIPPED


def test_the_watchdog_ramps_down_in_state_2_and_ends_in_state_4(armed: Bench) -> None:
    for now_ms in range(0, 301, 20):
        armed.at(now_ms).drive(1_000_000, 0, 6_000_000, ttl_ms=1000)
    armed.at(399.999)
    assert (armed.state, armed.controller.velocity.as_tuple()) == (ARMED, (1.0, 0.0, 6.0))
    armed.at(650)
    assert (armed.state, armed.controller.velocity.as_tuple()) == (STOPPING, (0.5, 0.0, 4.0))
    armed.at(900)
    assert (armed.state, armed.controller.velocity.as_tuple()) == (STOPPING, (0.0, 0.0, 2.0))
    assert armed.at(1149.999).state == STOPPING
    armed.at(1150)
    assert (armed.state, armed.controller.velocity.as_tuple()) == (TRIPPED, (0.0, 0.0, 0.0))
    assert not armed.controller.drive_on


def test_a_stop_during_the_watchdogs_ramp_does_not_hide_the_trip(driving: Bench) -> None:
    driving.at(450).stop()
    assert driving.state == STOPPING
    assert driving.stop(category=0).fields["state"] == TRIPPED


# Rule 5: the ttl


def test_a_ttl_that_runs_out_ramps_to_zero_in_state_1_and_says_so(driving: Bench) -> None:
    driving.at(359.999)
    assert (driving.vx, driving.controller.faults) == (1.0, 0)
    driving.at(360)
    assert (driving.vx, driving.controller.faults) == (1.0, TTL_RAN_OUT)
    driving.at(380)
    assert (driving.vx, driving.state) == (0.96, ARMED)


def test_keepalive_does_not_extend_a_ttl(driving: Bench) -> None:
    for now_ms in range(320, 1001, 20):
        driving.at(now_ms).send("KEEPALIVE")
    assert (driving.state, driving.vx, driving.controller.faults) == (ARMED, 0.0, TTL_RAN_OUT)


def test_a_velocity_extends_the_ttl_from_its_own_arrival(driving: Bench) -> None:
    driving.at(350).drive(1_000_000, ttl_ms=30)
    assert driving.at(379.999).controller.faults == 0
    assert driving.at(380).controller.faults == TTL_RAN_OUT


def test_a_velocity_without_any_ttl_moves_nothing(armed: Bench) -> None:
    armed.drive(1_000_000, ttl_ms=0)
    assert armed.controller.faults == TTL_RAN_OUT
    assert armed.at(50).vx == 0.0


def test_the_ttls_bit_is_cleared_by_arm_alone(driving: Bench) -> None:
    driving.at(370).drive(1_000_000)
    assert driving.stop().fields["faults"] == TTL_RAN_OUT
    assert driving.at(1000).stop().fields["faults"] == TTL_RAN_OUT
    assert driving.arm(SESSION + 1).fields["faults"] == 0


def test_ttl_and_watchdog_running_out_together_both_count(armed: Bench) -> None:
    armed.drive(100_000, ttl_ms=WATCHDOG_MS)
    armed.at(100)
    assert (armed.state, armed.controller.faults) == (STOPPING, TTL_RAN_OUT)


def test_a_stop_forgets_the_ttl(armed: Bench) -> None:
    armed.drive(100_000, ttl_ms=500)
    armed.stop()
    armed.at(200).arm(SESSION + 1, watchdog_ms=1000)
    armed.at(600)
    assert (armed.state, armed.controller.faults) == (ARMED, 0)


# STOP


def test_category_0_ends_motion_and_drive_at_once(driving: Bench) -> None:
    status = driving.stop(category=0)
    assert (status.fields["state"], status.fields["vx"]) == (STOPPED, 0)
    assert not driving.controller.drive_on


@pytest.mark.parametrize(("category", "drive_on"), [(1, False), (2, True), (3, False), (255, False)])
def test_other_categories_ramp_down_and_only_2_holds(driving: Bench, category: int, drive_on: bool) -> None:
    assert driving.stop(category).fields["state"] == STOPPING
    driving.at(550)
    assert (driving.vx, driving.controller.drive_on) == (0.5, True)
    assert driving.at(799.999).state == STOPPING
    assert driving.at(800).state == STOPPED
    assert driving.controller.drive_on is drive_on


@pytest.mark.parametrize(
    ("first", "then", "drive_on"),
    [(2, 2, True), (2, 1, False), (3, 2, False), (1, 2, False), (0, 2, False), (2, 0, False)],
)
@pytest.mark.parametrize("then_ms", [320, 900])
def test_a_further_stop_only_tightens(driving: Bench, first: int, then: int, drive_on: bool, then_ms: int) -> None:
    driving.stop(first)
    driving.at(then_ms).stop(then)
    if 0 in {first, then}:
        assert (driving.state, driving.vx) == (STOPPED, 0.0)
    assert driving.at(900).state == STOPPED
    assert driving.controller.drive_on is drive_on


@pytest.mark.parametrize("decel_mm_s2", [1, 3000, 1999, 65535])
def test_state_3_begins_where_the_ramp_has_reached_zero(decel_mm_s2: int) -> None:
    bench = Bench(Controller(decel_mm_s2=decel_mm_s2))
    bench.hello()
    bench.arm()
    bench.drive(1_000)
    bench.at(20).stop()
    while bench.state == STOPPING:
        assert bench.vx > 0
        bench.at(bench.controller.next_tick_ns(round(bench.now_ms * MS)) / MS)
    assert (bench.state, bench.vx) == (STOPPED, 0.0)


def test_a_further_stop_does_not_start_the_ramp_anew(driving: Bench) -> None:
    driving.stop()
    for now_ms in range(310, 800, 10):
        driving.at(now_ms).stop()
    assert driving.at(800).state == STOPPED


@pytest.mark.parametrize("state", [DISARMED, STOPPED, TRIPPED, FAULT])
def test_a_stop_at_rest_is_answered_and_leaves_the_state(bench: Bench, state: int) -> None:
    bring_to(bench, state)
    for category in (2, 1, 0):
        status = bench.stop(category)
        assert (status.fields["state"], status.fields["host_seq"]) == (state, bench.seq)
    assert not bench.controller.drive_on


def test_an_earlier_sessions_category_0_leaves_the_next_sessions_ramps_alone(armed: Bench) -> None:
    armed.stop(category=0)
    armed.arm(SESSION + 1)
    armed.drive(100_000, session=SESSION + 1)
    armed.at(20).controller.set_fault(1, on=True)
    assert (armed.state, armed.vx) == (STOPPING, 0.1)


# Faults and reboots


@pytest.mark.parametrize("bit", range(5))
def test_a_hardware_fault_in_motion_ramps_down_to_state_5(driving: Bench, bit: int) -> None:
    driving.controller.set_fault(bit, on=True)
    assert (driving.state, driving.vx, driving.controller.faults) == (STOPPING, 1.0, 1 << bit)
    driving.at(799.999)
    assert driving.state == STOPPING
    driving.at(800)
    assert (driving.state, driving.vx, driving.controller.drive_on) == (FAULT, 0.0, False)


def test_a_fault_during_another_ramp_ends_it_in_state_5(driving: Bench) -> None:
    driving.stop(category=2)
    driving.at(550).controller.set_fault(4, on=True)
    assert (driving.state, driving.vx) == (STOPPING, 0.5)
    assert driving.at(800).state == FAULT


def test_a_fault_takes_the_drive_from_a_held_robot(armed: Bench) -> None:
    armed.stop(category=2)
    assert armed.controller.drive_on
    armed.controller.set_fault(4, on=True)
    assert (armed.state, armed.controller.drive_on) == (STOPPED, False)
    armed.controller.set_fault(4, on=False)
    assert not armed.controller.drive_on


@pytest.mark.parametrize("bit", [-1, 5])
def test_only_hardware_faults_can_be_set(bench: Bench, bit: int) -> None:
    with pytest.raises(ValueError, match="0 to 4"):
        bench.controller.set_fault(bit, on=True)


def test_a_reboot_in_motion_forgets_all_but_the_hardware(driving: Bench) -> None:
    driving.controller.set_fault(2, on=True)
    driving.send_bytes(wire.encode("HELLO", 0, 999, nonce=1)[:7])
    driving.controller.reset(350 * MS)
    assert (driving.state, driving.vx, driving.controller.drive_on) == (DISARMED, 0.0, False)
    driving.now_ms = 355
    status = driving.stop(seq=3)
    assert (status.session, status.seq) == (0, 1)
    assert (status.fields["uptime_ms"], status.fields["watchdog_ms"], status.fields["host_seq"]) == (5, 0, 3)
    assert status.fields["faults"] == 0b100
    assert +driving.controller.dropped == {}


# Damage


def test_dropped_frames_are_counted_by_kind(bench: Bench) -> None:
    arm = wire.encode("ARM", SESSION, 2, watchdog_ms=100)
    bench.send_bytes(bytes([arm[0], arm[1] ^ 2]) + arm[2:] + wire.seal(b"\x02" + bytes(7)) + b"A" * 65 + b"\0")
    bench.send_bytes(wire.encode("IDENTITY", 0, 9, **identity_fields()))
    assert bench.controller.dropped == {"crc": 1, "version": 1, "too_long": 1, "direction": 1}
    assert [frame.kind for frame in bench.heard] == ["IDENTITY"]


def identity_fields() -> dict[str, int | bytes]:
    return {
        "nonce": 1,
        "name": b"x",
        "fw_major": 1,
        "fw_minor": 0,
        "watchdog_min_ms": 20,
        "watchdog_max_ms": 1000,
        "decel_mm_s2": 2000,
        "decel_mrad_s2": 8000,
    }


def test_frames_may_come_byte_by_byte_and_several_at_once(bench: Bench) -> None:
    for byte in wire.encode("ARM", SESSION, 2, watchdog_ms=100):
        assert bench.state == DISARMED
        bench.send_bytes(bytes([byte]))
    assert bench.state == ARMED
    stop = wire.encode("STOP", SESSION, 3, category=0, reason=1)
    answers = bench.send_bytes(stop + wire.encode("HELLO", 0, 4, nonce=5) + stop)
    assert [frame.kind for frame in answers] == ["STATUS", "IDENTITY", "STATUS"]


# Any sequence at all


@dataclass(frozen=True)
class Step:
    """Wait, then do one thing."""

    wait_ms: int
    kind: str
    fields: dict[str, int]
    session: int
    fresh: bool


def steps() -> st.SearchStrategy[list[Step]]:
    speed = st.sampled_from([0, 1, 300_000, -1_000_000, 2**31 - 1, -(2**31)])
    ttl = st.sampled_from([0, 1, 20, 60, 100, 65535])
    kinds = st.one_of(
        st.tuples(st.just("HELLO"), st.fixed_dictionaries({"nonce": st.just(1)})),
        st.tuples(st.just("ARM"), st.fixed_dictionaries({"watchdog_ms": st.sampled_from([0, 20, 100, 1000, 1001])})),
        st.tuples(
            st.just("VELOCITY"),
            st.fixed_dictionaries({"cycle": st.just(0), "ttl_ms": ttl, "vx": speed, "vy": speed, "wz": speed}),
        ),
        st.tuples(st.just("KEEPALIVE"), st.just({})),
        st.tuples(st.just("STOP"), st.fixed_dictionaries({"category": st.integers(0, 3), "reason": st.just(13)})),
        st.tuples(st.just("FAULT"), st.fixed_dictionaries({"bit": st.integers(0, 4), "on": st.integers(0, 1)})),
        st.tuples(st.just("RESET"), st.just({})),
    )
    often = st.sampled_from([True, True, True, False])
    return st.lists(
        st.builds(
            lambda wait_ms, kind, session, fresh: Step(wait_ms, kind[0], kind[1], session, fresh),
            st.sampled_from([0, 0, 5, 20, 55, 150, 400]),
            kinds,
            st.sampled_from([1, 1, 1, 2, 3, 0]),
            often,
        ),
        max_size=30,
    )


def perform(bench: Bench, step: Step) -> None:
    if step.kind == "FAULT":
        bench.controller.set_fault(step.fields["bit"], on=bool(step.fields["on"]))
    elif step.kind == "RESET":
        bench.controller.reset(round(bench.now_ms * MS))
    else:
        bench.send(step.kind, step.session, None if step.fresh else 0, **step.fields)


@settings(max_examples=150)
@given(steps())
def test_whatever_is_sent_the_robot_moves_only_while_it_is_told_to(sequence: list[Step]) -> None:
    bench = Bench()
    bench.hello()
    bench.arm(session=1)
    ends_ms = bench.now_ms  # when the last accepted VELOCITY must have begun to end
    for step in sequence:
        for _ in range(0, step.wait_ms, 5):
            state, speeds = bench.state, bench.controller.velocity.as_tuple()
            bench.at(bench.now_ms + 5)
            assert_went_on(bench, state, speeds, past_end=bench.now_ms - 5 >= ends_ms)
        controller = bench.controller
        state, session = bench.state, controller.session
        perform(bench, step)
        if step.kind == "VELOCITY" and state == ARMED and step.session == session and step.fresh:
            ends_ms = bench.now_ms + min(step.fields["ttl_ms"], controller.watchdog_ms) + 20
        assert_obeyed(bench, step, state, session)


def assert_went_on(bench: Bench, state: int, speeds: tuple[float, ...], *, past_end: bool) -> None:
    """Time alone never arms, and after the end of the last VELOCITY every axis slows down."""
    assert bench.state in {state, *{ARMED: {STOPPING, TRIPPED}, STOPPING: {STOPPED, TRIPPED, FAULT}}.get(state, set())}
    for before, now in zip(speeds, bench.controller.velocity.as_tuple(), strict=True):
        if bench.state not in {ARMED, STOPPING}:
            assert now == 0
        if past_end or bench.state == state == STOPPING:
            assert abs(now) < abs(before) or now == before == 0
            assert now * before >= 0


def assert_obeyed(bench: Bench, step: Step, state: int, session: int) -> None:
    """States at rest are left by ARM alone, and a STOP is never without effect."""
    if state != ARMED and bench.state == ARMED:
        assert (step.kind, step.fresh) == ("ARM", True)
        assert state in {DISARMED, STOPPED, TRIPPED}
        assert bench.controller.session == step.session not in {0, session}
        assert 20 <= bench.controller.watchdog_ms == step.fields["watchdog_ms"] <= 1000
    elif state not in {ARMED, STOPPING}:
        assert bench.state == (DISARMED if step.kind == "RESET" else state)
    if step.kind == "STOP":
        assert bench.state != ARMED
    if bench.state not in {ARMED, STOPPING}:
        assert bench.controller.velocity.as_tuple() == (0, 0, 0)


@settings(max_examples=60)
@given(steps())
def test_how_often_it_is_ticked_makes_no_difference(sequence: list[Step]) -> None:
    often, seldom = Bench(), Bench()
    for bench in (often, seldom):
        bench.hello()
        bench.arm(session=1)
        for step in sequence:
            for _ in range(step.wait_ms if bench is often else 0):
                bench.at(bench.now_ms + 1)
            if bench is seldom:
                bench.now_ms += step.wait_ms
                bench.at(bench.now_ms)
            perform(bench, step)
    assert often.stop().fields == seldom.stop().fields
