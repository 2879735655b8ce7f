"""Whether the pictures behind the commands are alive: young enough, in order, and not the same one for ever."""

from __future__ import annotations

from dataclasses import dataclass

from mvla_daemon.core.messages import MS, SECOND, Reason

FUTURE_TOLERANCE_NS = 5 * MS
"""A capture time this far ahead is a driver's rounding and taken as now; further ahead it is a lie."""
CAMERA_ABSENT_NS = 1 * SECOND
"""No younger picture for this long, from a policy process that is alive, is a lost camera."""


@dataclass(slots=True)
class FrameWatch:
    """Judges the capture time and the picture CRC that each command carries."""

    max_age_ns: int
    frozen_after_ns: int
    """0 turns the frozen check off."""
    newest_ns: int = 0
    """Capture time of the newest frame that a command was admitted from."""
    _crc: int | None = None
    _crc_since_ns: int = 0

    def reset(self) -> None:
        """Begin anew: a new arming knows no earlier frames."""
        self.newest_ns = 0
        self._crc = None

    def begin_drive(self) -> None:
        """The last rehearsal's frame stands as the last written one; the frozen check begins now."""
        self._crc = None

    def unusable(self, captured_ns: int, now_ns: int) -> str | None:
        """Why no command may come from a frame of this capture time at all, as the name of a counter."""
        if captured_ns > now_ns + FUTURE_TOLERANCE_NS:
            return "frame_in_future"
        if captured_ns < self.newest_ns:
            return "frame_backwards"
        return None

    def fault(self, captured_ns: int, crc: int, now_ns: int) -> Reason | None:
        """The stop that this frame asks for, if any; takes note of its CRC."""
        if now_ns - captured_ns > self.max_age_ns:
            return Reason.FRAME_STALE
        if crc != self._crc:
            self._crc = crc
            self._crc_since_ns = now_ns
        elif self.frozen_after_ns and now_ns - self._crc_since_ns >= self.frozen_after_ns:
            return Reason.FRAME_FROZEN
        return None

    def wrote(self, captured_ns: int, now_ns: int) -> None:
        """Take note that a command from this frame went out."""
        self.newest_ns = min(captured_ns, now_ns)

    def stale_at_ns(self) -> int | None:
        """When the last written command's frame will be too old, or None before the first."""
        return self.newest_ns + self.max_age_ns if self.newest_ns else None
