"""Capture times for pictures that carry a time of their stream, which is not CLOCK_MONOTONIC's."""

from __future__ import annotations

from mvla_daemon.core.messages import MS, SECOND

_DRIFT_PPM = 200
"""How much faster or slower than ours a camera's clock may run; two quartzes of 100 ppm each."""
_PROMPT_NS = 100 * MS
"""A picture that was on its way for so much longer than the quickest one has waited somewhere."""
_BEHIND_FOR_NS = 5 * SECOND
"""No prompt picture for this long is no stall any more, which a reader makes up for in less."""


class StreamClock:
    """Turns a stream's times into CLOCK_MONOTONIC by the picture that was on its way for the shortest time.

    What a read returns may have waited in a queue: after a stall the old pictures come all at once, and the instant of
    the read would call each of them new. The least (returned - stream time) so far is that of a picture that waited for
    nobody; it rises by at most 200 ppm, so that a slow clock in the camera doesn't age its pictures, while a queue that
    grows faster does. What all pictures have in common (exposure, coding, network) stays hidden: `camera.latency_ms`.
    """

    def __init__(self) -> None:
        self._offset_ns: int | None = None
        self._returned_ns = 0
        self._prompt_ns = 0

    def captured_ns(self, stream_ns: int, returned_ns: int) -> int:
        """When the picture of this stream time, whose read returned at `returned_ns`, would have come unhindered."""
        offset_ns = returned_ns - stream_ns
        if self._offset_ns is not None:
            risen_ns = self._offset_ns + (returned_ns - self._returned_ns) * _DRIFT_PPM // 1_000_000
            offset_ns = min(offset_ns, risen_ns)
        self._offset_ns = offset_ns
        self._returned_ns = returned_ns
        captured_ns = stream_ns + offset_ns
        if returned_ns - captured_ns <= _PROMPT_NS:
            self._prompt_ns = returned_ns
        return captured_ns

    def is_behind(self, returned_ns: int) -> bool:
        """Whether the stream has to be opened anew: its queue never empties, or its times have jumped back."""
        return returned_ns - self._prompt_ns > _BEHIND_FOR_NS
