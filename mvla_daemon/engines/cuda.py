"""What an engine needs of CUDA: one context, one stream, page-locked buffers, and a graph of what is done each time.

The only place where pycuda and cuda-bindings are imported. pycuda has no graphs; cuda-bindings has, and takes pycuda's
stream. Without a driver neither is of use, and `Cuda()` says so before TensorRT is touched, which would crash.
"""

from __future__ import annotations

import importlib
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

ABSENT = (
    "pycuda cannot be used here ({}): on a Jetson install it with pip install 'mvla-daemon[jetson]', on another "
    'machine see that its GPU and driver are there, or set policy.backend to "onnxruntime"'
)


class CudaError(Exception):
    """Something on the device failed; its text is CUDA's own."""


class Cuda:
    """The first GPU's context, current on the thread that makes this, and the one stream that all work goes through.

    Whoever waits sleeps until the device is done (CU_CTX_SCHED_BLOCKING_SYNC) and lets other threads run meanwhile:
    a thread that spins would take a core from the camera. Everything but the constructor belongs to the same thread.
    Raises DaemonError, UNAVAILABLE, where there is no CUDA.
    """

    def __init__(self) -> None:
        try:
            self._driver: Any = importlib.import_module("pycuda.driver")
            self._driver.init()
            self.device: Any = self._driver.Device(0)
            self._context: Any = self.device.make_context(self._driver.ctx_flags.SCHED_BLOCKING_SYNC)
        except ImportError as error:
            raise DaemonError(ABSENT.format(error), ExitCode.UNAVAILABLE) from None
        except self._driver.Error as error:
            raise DaemonError(ABSENT.format(error), ExitCode.UNAVAILABLE) from None
        self._stream: Any = None
        try:
            self._stream = self._driver.Stream()
        except BaseException:
            self.close()
            raise

    @property
    def stream_handle(self) -> int:
        """The stream, as TensorRT takes it."""
        return int(self._stream.handle)

    @property
    def gpu(self) -> str:
        """The device's name and compute capability."""
        return "{} {}.{}".format(self.device.name(), *self.device.compute_capability())

    @property
    def driver_version(self) -> str:
        """The newest CUDA that the driver knows."""
        version = int(self._driver.get_driver_version())
        return f"{version // 1000}.{version % 1000 // 10}"

    def used_bytes(self) -> int:
        """How much of the device's memory is in use, by everybody."""
        free, total = self._driver.mem_get_info()
        return int(total) - int(free)

    # --- memory ---

    def host(self, shape: tuple[int, ...], dtype: str) -> NDArray[Any]:
        """A page-locked array of zeros: only from such memory are copies made without holding anybody up."""
        array: NDArray[Any] = self._try(lambda: self._driver.pagelocked_zeros(shape, dtype))
        return array

    def allocate(self, size: int) -> Any:
        """So many bytes on the device, all zero; int() of it is its address."""
        memory = self._try(lambda: self._driver.mem_alloc(max(1, size)))
        self._try(lambda: self._driver.memset_d8_async(memory, 0, max(1, size), self._stream))
        return memory

    # --- what is done on the stream, one after the other; nothing here waits but `wait` ---

    def upload(self, into: Any, array: NDArray[np.generic]) -> None:
        """Copy a page-locked array to the device."""
        self._try(lambda: self._driver.memcpy_htod_async(into, array, self._stream))

    def download(self, array: NDArray[np.generic], source: Any) -> None:
        """Copy to a page-locked array from the device."""
        self._try(lambda: self._driver.memcpy_dtoh_async(array, source, self._stream))

    def copy(self, into: Any, source: Any, size: int) -> None:
        """Copy on the device."""
        self._try(lambda: self._driver.memcpy_dtod_async(into, source, size, self._stream))

    def clear(self, memory: Any, size: int) -> None:
        """Zero memory of the device."""
        self._try(lambda: self._driver.memset_d8_async(memory, 0, size, self._stream))

    def event(self) -> Any:
        """A moment on the stream: after all that was asked for up to now; see `between_ms`."""
        return self._try(lambda: self._driver.Event().record(self._stream))

    @staticmethod
    def between_ms(first: Any, second: Any) -> float:
        """The device's time between two events, once `wait` has returned."""
        return float(second.time_since(first))

    def wait(self) -> None:
        """Sleep until everything asked for is done; raises CudaError for whatever of it failed."""
        self._try(self._stream.synchronize)

    def _try(self, call: Callable[[], Any]) -> Any:
        try:
            return call()
        except self._driver.Error as error:
            raise CudaError(str(error)) from error

    # --- a graph ---

    def capture(self, work: Callable[[], None]) -> Graph:
        """Record what `work` asks for on the stream, without doing it; raises CudaError where that cannot be.

        What else the process does with CUDA meanwhile does no harm (CU_STREAM_CAPTURE_MODE_THREAD_LOCAL).
        """
        try:
            graphs = importlib.import_module("cuda.bindings.driver")
        except ImportError as error:
            raise CudaError(f"cuda-bindings cannot be imported ({error})") from None
        mode = graphs.CUstreamCaptureMode.CU_STREAM_CAPTURE_MODE_THREAD_LOCAL
        _check(graphs, graphs.cuStreamBeginCapture(self.stream_handle, mode))
        try:
            work()
        except BaseException:
            graphs.cuStreamEndCapture(self.stream_handle)  # which fails, and ends the capturing all the same
            raise
        (graph,) = _check(graphs, graphs.cuStreamEndCapture(self.stream_handle))
        try:
            (executable,) = _check(graphs, graphs.cuGraphInstantiate(graph, 0))
        finally:
            graphs.cuGraphDestroy(graph)
        return Graph(graphs, executable, self.stream_handle)

    def close(self) -> None:
        """Give the device back; whatever was allocated must not be used any more. Harmless when repeated."""
        context, self._context = self._context, None
        if context is not None:
            self._stream = None  # first, since it is of this context
            context.pop()
            with suppress(self._driver.Error):  # after an error on the device all that is left is to let go
                context.detach()


class Graph:
    """Recorded work, which costs the processor one call however many steps it has."""

    def __init__(self, graphs: Any, executable: Any, stream_handle: int) -> None:
        self._graphs = graphs
        self._executable = executable
        self._stream_handle = stream_handle

    def launch(self) -> None:
        """Ask for it once more; raises CudaError."""
        _check(self._graphs, self._graphs.cuGraphLaunch(self._executable, self._stream_handle))

    def close(self) -> None:
        """Let go of it."""
        self._graphs.cuGraphExecDestroy(self._executable)


def _check(graphs: Any, answer: tuple[Any, ...]) -> tuple[Any, ...]:
    """What a call of cuda-bindings gave, or its error raised."""
    error, *values = answer
    if error != graphs.CUresult.CUDA_SUCCESS:
        raise CudaError(f"CUDA graph: {getattr(error, 'name', error)}")
    return tuple(values)
