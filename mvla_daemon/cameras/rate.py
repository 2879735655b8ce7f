"""Whether a camera really gives the pictures a second that it promised."""

from __future__ import annotations

from mvla_daemon.core.messages import SECOND

_WINDOW = 8
"""Intervals that are judged together: a quarter of a second at 30 pictures a second, one at 7.5."""
_LONG = 1.25
"""An interval this many times as long as promised is long; rounded rates and jitter stay below."""
_MANY = 7
"""Of the window's intervals, to call a camera slow. Pictures that get lost make single gaps, a stretched exposure makes
all intervals long."""
_FEW = 1
"""To call it on time again; in between it stays what it was."""


class RateWatch:
    """Takes the capture times of a camera's pictures, and tells when it has become slow, or on time again.

    No picture that is held up on its way counts here: capture times do not tell of that.
    """

    def __init__(self, period_ns: int) -> None:
        self.expected_fps = SECOND / period_ns
        self.fps = self.expected_fps
        """Of the last window."""
        self.is_slow = False
        self._long_ns = round(_LONG * period_ns)
        self.begin()

    def begin(self) -> None:
        """Forget the capture times so far: the camera was away."""
        self._began_ns = self._last_ns = 0
        self._seen = self._long = 0

    def see(self, captured_ns: int) -> bool:
        """Take the next picture's capture time; whether `is_slow` has changed by it."""
        if self._last_ns == 0:
            self._began_ns = self._last_ns = captured_ns
            return False
        self._long += captured_ns - self._last_ns > self._long_ns
        self._last_ns = captured_ns
        self._seen += 1
        if self._seen < _WINDOW:
            return False
        self.fps = _WINDOW * SECOND / (captured_ns - self._began_ns)
        was_slow = self.is_slow
        self.is_slow = self._long >= _MANY or (was_slow and self._long > _FEW)
        self._began_ns, self._seen, self._long = captured_ns, 0, 0
        return self.is_slow is not was_slow
