"""Simulated time: a clock that jumps from event to event, in an order that is always the same."""

from __future__ import annotations

import heapq
from collections.abc import Callable, Sequence
from itertools import count

WAKE_NS = 1000
"""Each wait takes this long at least, so that time goes on even where nobody means to wait."""


class Timeline:
    """A `Clock` for the gate. What is to happen is put on it with `at`; `watch` names what a wait can end for."""

    def __init__(self) -> None:
        self._now_ns = 0
        self._events: list[tuple[int, int, Callable[[], None]]] = []
        self._order = count()
        self._sources: dict[int, Callable[[], bool]] = {}

    def now_ns(self) -> int:
        """Since the beginning."""
        return self._now_ns

    def suspended_ns(self) -> int:
        """Simulated machines do not sleep."""
        return 0

    def at(self, at_ns: int, do: Callable[[], None]) -> None:
        """Do something at that time; what is put on the same time is done in the order in which it was put there."""
        heapq.heappush(self._events, (at_ns, next(self._order), do))

    def watch(self, fd: int, readable: Callable[[], bool]) -> None:
        """Let a wait for `fd` end when `readable()` is true."""
        self._sources[fd] = readable

    def wait(self, fds: Sequence[int], until_ns: int) -> set[int]:
        """Let things happen until one of `fds` is readable, or until that time."""
        self._now_ns += WAKE_NS
        watched = [(fd, self._sources[fd]) for fd in fds]
        while not (readable := {fd for fd, has_something in watched if has_something()}):
            if not self._events or self._events[0][0] > max(until_ns, self._now_ns):
                self._now_ns = max(until_ns, self._now_ns)
                break
            at_ns, _, do = heapq.heappop(self._events)
            self._now_ns = max(at_ns, self._now_ns)
            do()
        return readable
