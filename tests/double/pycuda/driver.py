"""What the package uses of pycuda.driver, on the fake GPU."""

from __future__ import annotations

import os
from types import SimpleNamespace
from typing import Any

import fake_gpu
import numpy as np
from numpy.typing import NDArray

if os.environ.get("MVLA_DOUBLE_DRIVER") == "absent":
    raise ImportError("libcuda.so.1: cannot open shared object file: No such file or directory")


class Error(Exception): ...


class LogicError(Error): ...


class MemoryError(Error): ...  # noqa: A001 - pycuda's own name


ctx_flags = SimpleNamespace(SCHED_AUTO=0, SCHED_SPIN=1, SCHED_YIELD=2, SCHED_BLOCKING_SYNC=4)
TOTAL = 8 << 30


def init() -> None:
    if os.environ.get("MVLA_DOUBLE_DRIVER") == "broken":
        raise LogicError("cuInit failed: no CUDA-capable device is detected")
    fake_gpu.initialised = True


def get_driver_version() -> int:
    return 12060


class Device:
    def __init__(self, number: int) -> None:
        if not fake_gpu.initialised:
            raise LogicError("cuDeviceGet failed: initialization error")
        assert number == 0

    def name(self) -> str:
        return os.environ.get("MVLA_DOUBLE_GPU", "Orin")

    def compute_capability(self) -> tuple[int, int]:
        return (8, 7)

    def make_context(self, flags: int) -> Context:
        assert flags == ctx_flags.SCHED_BLOCKING_SYNC
        return Context()


class Context:
    def __init__(self) -> None:
        self._context = fake_gpu.Context()
        fake_gpu.current.stack.append(self._context)

    def pop(self) -> None:
        if fake_gpu.context() is not self._context:
            raise LogicError("context::pop failed: invalid device context - cannot pop non-current context")
        fake_gpu.current.stack.pop()

    def detach(self) -> None:
        self._context.destroyed = True


class Stream:
    def __init__(self) -> None:
        self._stream = fake_gpu.new_stream()
        self.handle = self._stream.handle

    def synchronize(self) -> None:
        try:
            fake_gpu.stream_of(self.handle).run()
        except RuntimeError as error:
            raise LogicError(f"cuStreamSynchronize failed: {error}") from error


class DeviceAllocation:
    def __init__(self, size: int) -> None:
        self._memory = fake_gpu.context().allocate(size)

    def __int__(self) -> int:
        return self._memory.base

    def free(self) -> None:
        self._memory.freed = True

    def __del__(self) -> None:
        self._memory.freed = True


def mem_alloc(size: int) -> DeviceAllocation:
    if size > int(os.environ.get("MVLA_DOUBLE_MEMORY", TOTAL)):
        raise MemoryError("cuMemAlloc failed: out of memory")
    return DeviceAllocation(size)


def mem_get_info() -> tuple[int, int]:
    used = sum(len(memory.data) for memory in fake_gpu.context().memories.values() if not memory.freed)
    return TOTAL - used, TOTAL


def pagelocked_zeros(shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
    fake_gpu.context()
    array = np.zeros(shape, dtype)
    fake_gpu.host_ranges[int(array.__array_interface__["data"][0])] = max(1, array.nbytes)
    return array


def _ask(stream: Stream, work: fake_gpu.Work) -> None:
    fake_gpu.stream_of(stream.handle).ask(work)


def memset_d8_async(memory: DeviceAllocation, value: int, size: int, stream: Stream) -> None:
    context = fake_gpu.context()
    _ask(stream, lambda: context.view(int(memory), size).fill(value))


def memcpy_htod_async(into: DeviceAllocation, array: NDArray[np.generic], stream: Stream) -> None:
    fake_gpu.page_locked(array)
    context = fake_gpu.context()
    source = array.reshape(-1).view(np.uint8)
    _ask(stream, lambda: np.copyto(context.view(int(into), array.nbytes), source))


def memcpy_dtoh_async(array: NDArray[np.generic], source: DeviceAllocation, stream: Stream) -> None:
    fake_gpu.page_locked(array)
    context = fake_gpu.context()
    target = array.reshape(-1).view(np.uint8)
    _ask(stream, lambda: np.copyto(target, context.view(int(source), array.nbytes)))


def memcpy_dtod_async(into: DeviceAllocation, source: DeviceAllocation, size: int, stream: Stream) -> None:
    context = fake_gpu.context()
    _ask(stream, lambda: np.copyto(context.view(int(into), size), context.view(int(source), size)))


class Event:
    """A moment on a stream; the fake GPU's clock advances by a millisecond from one to the next."""

    _ticks = 0

    def record(self, stream: Stream) -> Event:
        def take() -> None:
            Event._ticks += 1
            self._at_ms = Event._ticks

        _ask(stream, take)
        return self

    def time_since(self, earlier: Event) -> float:
        return float(self._at_ms - earlier._at_ms)
