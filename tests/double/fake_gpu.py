"""A GPU made of Python, for a machine without one: memory by address, contexts by thread, streams that wait.

Work that is asked for on a stream is done when somebody waits for it and not before, so that whoever reads a result too
early, or overwrites a source too early, gets the wrong numbers here as there. What a real device would punish with a
crash or a silent wrong answer is an error here.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import count

import numpy as np
from numpy.typing import NDArray

Work = Callable[[], None]
_addresses = count(0x7F00_0000_0000, 1 << 32)
_handles = count(0x5500_0000)


class MisuseError(Exception):
    """What a program must never do with a device."""


@dataclass
class Memory:
    base: int
    data: NDArray[np.uint8]
    freed: bool = False


@dataclass
class Context:
    memories: dict[int, Memory] = field(default_factory=dict)
    streams: dict[int, Stream] = field(default_factory=dict)
    destroyed: bool = False

    def allocate(self, size: int) -> Memory:
        memory = Memory(next(_addresses), np.full(size, 0xCD, np.uint8))
        self.memories[memory.base] = memory
        return memory

    def view(self, address: int, size: int) -> NDArray[np.uint8]:
        """So many bytes at an address; whatever is not one living allocation is an error."""
        for memory in self.memories.values():
            if memory.base <= address < memory.base + len(memory.data):
                if memory.freed or self.destroyed:
                    raise MisuseError(f"use after free of {address:#x}")
                start = address - memory.base
                if start + size > len(memory.data):
                    raise MisuseError(f"{size} bytes at {address:#x}, where only {len(memory.data) - start} are")
                return memory.data[start : start + size]
        raise MisuseError(f"nothing was ever allocated at {address:#x}")


@dataclass
class Stream:
    handle: int
    queue: list[Work] = field(default_factory=list)
    captured: list[Work] | None = None

    def ask(self, work: Work) -> None:
        (self.queue if self.captured is None else self.captured).append(work)

    def run(self) -> None:
        if self.captured is not None:
            raise MisuseError("a stream that is being captured cannot be waited for")
        queue, self.queue = self.queue, []
        for work in queue:
            work()


class Current(threading.local):
    """The contexts of one thread, the last of which is current."""

    def __init__(self) -> None:
        self.stack: list[Context] = []


current = Current()
initialised = False
host_ranges: dict[int, int] = {}
"""Page-locked memory: address and size."""


def context() -> Context:
    if not current.stack:
        raise MisuseError("no currently active context on this thread")
    return current.stack[-1]


def new_stream() -> Stream:
    stream = Stream(next(_handles))
    context().streams[stream.handle] = stream
    return stream


def stream_of(handle: int) -> Stream:
    stream = context().streams.get(int(handle))
    if stream is None:
        raise MisuseError(f"{handle:#x} is no stream of this thread's context")
    return stream


def page_locked(array: NDArray[np.generic]) -> None:
    """An array that is not page-locked holds the caller up while it is copied."""
    address = int(array.__array_interface__["data"][0])
    if not any(start <= address and address + array.nbytes <= start + size for start, size in host_ranges.items()):
        raise MisuseError("the host's memory is not page-locked")
