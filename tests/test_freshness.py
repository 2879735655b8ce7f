"""Whether the pictures behind the commands are alive: their age, their order, and that they change."""

from __future__ import annotations

import pytest

from mvla_daemon.core.freshness import FrameWatch
from mvla_daemon.core.messages import Reason

MS = 1_000_000
NOW = 5_000 * MS
MAX_AGE = 100 * MS
FROZEN_AFTER = 500 * MS


def new_watch(frozen_after_ns: int = FROZEN_AFTER) -> FrameWatch:
    return FrameWatch(MAX_AGE, frozen_after_ns)


@pytest.mark.parametrize(
    ("age_ns", "why"),
    [
        (0, None),
        (MAX_AGE, None),
        (4_000 * MS, None),
        (-5 * MS, None),
        (-5 * MS - 1, "frame_in_future"),
        (-(10**15), "frame_in_future"),
    ],
)
def test_a_capture_time_may_be_up_to_5_ms_ahead(age_ns: int, why: str | None) -> None:
    assert new_watch().unusable(NOW - age_ns, NOW) == why


@pytest.mark.parametrize(("newer_ns", "why"), [(-1, "frame_backwards"), (0, None), (1, None)])
def test_frames_do_not_run_backwards_but_one_may_be_held(newer_ns: int, why: str | None) -> None:
    watch = new_watch()
    watch.wrote(NOW - 30 * MS, NOW)
    assert watch.unusable(NOW - 30 * MS + newer_ns, NOW + 20 * MS) == why


def test_a_frame_that_was_not_written_is_not_what_the_next_must_be_younger_than() -> None:
    watch = new_watch()
    watch.fault(NOW - 10 * MS, 1, NOW)
    assert watch.unusable(NOW - 30 * MS, NOW) is None


@pytest.mark.parametrize(("age_ns", "reason"), [(MAX_AGE, None), (MAX_AGE + 1, Reason.FRAME_STALE)])
def test_a_frame_is_stale_when_it_is_older_than_allowed(age_ns: int, reason: Reason | None) -> None:
    assert new_watch().fault(NOW - age_ns, 1, NOW) is reason


@pytest.mark.parametrize(("after_ns", "reason"), [(FROZEN_AFTER - 1, None), (FROZEN_AFTER, Reason.FRAME_FROZEN)])
def test_the_same_picture_for_as_long_as_allowed_is_frozen(after_ns: int, reason: Reason | None) -> None:
    watch = new_watch()
    assert watch.fault(NOW, 77, NOW) is None
    assert watch.fault(NOW + after_ns, 77, NOW + after_ns) is reason


def test_one_other_picture_ends_the_suspicion() -> None:
    watch = new_watch()
    watch.fault(NOW, 77, NOW)
    watch.fault(NOW + 499 * MS, 78, NOW + 499 * MS)
    assert watch.fault(NOW + 500 * MS, 77, NOW + 500 * MS) is None
    assert watch.fault(NOW + 999 * MS, 77, NOW + 999 * MS) is None
    assert watch.fault(NOW + 1000 * MS, 77, NOW + 1000 * MS) is Reason.FRAME_FROZEN


def test_a_checksum_of_zero_is_one_like_any_other() -> None:
    watch = new_watch()
    watch.fault(NOW, 0, NOW)
    assert watch.fault(NOW + FROZEN_AFTER, 0, NOW + FROZEN_AFTER) is Reason.FRAME_FROZEN


def test_zero_turns_the_frozen_check_off() -> None:
    watch = new_watch(frozen_after_ns=0)
    for seconds in range(100):
        later_ns = NOW + seconds * 1000 * MS
        assert watch.fault(later_ns, 77, later_ns) is None


def test_a_picture_that_is_both_stale_and_frozen_is_stale() -> None:
    watch = new_watch()
    watch.fault(NOW, 77, NOW)
    assert watch.fault(NOW, 77, NOW + FROZEN_AFTER) is Reason.FRAME_STALE


def test_the_second_timer_runs_from_the_last_written_frames_capture() -> None:
    watch = new_watch()
    assert watch.stale_at_ns() is None
    watch.wrote(NOW - 30 * MS, NOW)
    assert watch.stale_at_ns() == NOW + 70 * MS
    watch.wrote(NOW - 20 * MS, NOW + 20 * MS)
    assert watch.stale_at_ns() == NOW + 80 * MS


def test_a_capture_time_ahead_of_now_counts_as_now() -> None:
    watch = new_watch()
    watch.wrote(NOW + 5 * MS, NOW)
    assert watch.stale_at_ns() == NOW + 100 * MS
    assert watch.unusable(NOW, NOW) is None


def test_a_reset_forgets_frames_and_pictures() -> None:
    watch = new_watch()
    watch.fault(NOW, 77, NOW)
    watch.wrote(NOW, NOW)
    watch.reset()
    assert watch.stale_at_ns() is None
    assert watch.unusable(NOW - 1, NOW) is None
    assert watch.fault(NOW + FROZEN_AFTER, 77, NOW + FROZEN_AFTER) is None
