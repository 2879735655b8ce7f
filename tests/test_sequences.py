"""Random sequences of events through gate and codec break no rule of the wire; `make sequences` lives many more."""

from __future__ import annotations

from random import Random
from typing import TYPE_CHECKING

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mvla_daemon.core.admission import ADMITTED, Admission
from mvla_daemon.errors import ExitCode
from mvla_daemon.helm import Helm
from mvla_daemon.link import pack_failed
from mvla_daemon.motors.mvla import MvlaLink
from tests.sequences import EVENTS, Life, PlayedPolicy, configuration

if TYPE_CHECKING:
    from mvla_daemon.config import Config

POLICY_LOST = 7


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Config:
    return configuration(tmp_path_factory.mktemp("sequences"))


@settings(max_examples=60)
@given(events=st.lists(st.sampled_from(EVENTS), max_size=40), seed=st.integers(0, 2**32))
def test_no_sequence_of_events_breaks_a_rule_of_the_wire(config: Config, events: list[str], seed: int) -> None:
    Life(config, events, seed).run()


@pytest.mark.parametrize("event", sorted(set(EVENTS)))
def test_each_event_alone_and_what_follows_it(config: Config, event: str) -> None:
    model = Life(config, [*["good"] * 10, event, *["good"] * 20]).run()
    assert model.velocities >= 10


def test_a_drive_without_events_has_one_stop_and_that_at_its_end(config: Config) -> None:
    model = Life(config, ["good"] * 100).run()
    assert dict(model.stops) == {14: 1}
    assert model.velocities >= 99


def test_a_pause_between_the_readings_of_two_clocks_is_no_suspension(config: Config) -> None:
    model = Life(config, [*["good"] * 10, *["clocks_apart", "good"] * 20, *["good"] * 20]).run()
    assert dict(model.stops) == {14: 1}


def test_a_new_policy_process_that_cannot_load_does_not_end_the_daemon(
    config: Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The camera may be away just then; only the keeper's count of processes that end does."""
    renew = PlayedPolicy.renew

    def fail_first(self: PlayedPolicy) -> None:
        renew(self)
        self.queue.append(pack_failed(ExitCode.UNAVAILABLE, "/dev/video0 is absent"))

    monkeypatch.setattr(PlayedPolicy, "renew", fail_first)
    life = Life(config, [*["good"] * 10, "policy_died", *["good"] * 20, *["operator_arm", "good"] * 20])
    model = life.run()
    assert model.stops[POLICY_LOST] == 1
    assert model.velocities > 20
    assert life.gate.helm.exit_code is ExitCode.OK


def _breaks(config: Config, *events: str) -> str:
    with pytest.raises(AssertionError) as caught:
        Life(config, [*["good"] * 10, *events, *["good"] * 20]).run()
    return str(caught.value).partition("\n")[0]


def test_a_gate_that_misses_its_deadline_is_found_out(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    due = Admission.due
    monkeypatch.setattr(Admission, "due", lambda self: (due(self)[0] + 10_000_000, due(self)[1]))
    assert _breaks(config, "never", *["starved"] * 4) == "a missed stop"


def test_a_gate_that_lets_anything_through_is_found_out(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def admit(self: Admission, *arguments: object) -> object:
        judge(self, *arguments)
        return ADMITTED

    judge = Admission.command
    monkeypatch.setattr(Admission, "command", admit)
    assert _breaks(config, "over") == "a VELOCITY after over"
    assert _breaks(config, "jump") == "a VELOCITY after jump"


def test_a_gate_that_drives_on_after_its_stop_is_found_out(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    def stop_once(self: Helm, offer: object, now_ns: int) -> int:
        written_ns = drive(self, offer, now_ns)
        if self.counts.setdefault("driven", 0) == 5:
            self.write(self._link.stop(1, 1, now_ns), now_ns)
        self._count("driven")
        return written_ns

    drive = Helm.drive
    monkeypatch.setattr(Helm, "drive", stop_once)
    assert _breaks(config) == "a VELOCITY after the stop"


def test_a_link_that_writes_half_a_frame_is_found_out(config: Config, monkeypatch: pytest.MonkeyPatch) -> None:
    velocity = MvlaLink.velocity
    monkeypatch.setattr(MvlaLink, "velocity", lambda *arguments: velocity(*arguments)[:9] + b"\0")
    assert _breaks(config) == "nothing but whole frames is written"


def test_the_same_seed_is_the_same_life(config: Config) -> None:
    events = Random(5).choices(EVENTS, k=60)
    assert Life(config, events, 1).run() == Life(config, events, 1).run()
