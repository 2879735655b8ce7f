"""What every engine is: preallocated buffers around one inference."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

import numpy as np

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

    from mvla_daemon.core.messages import Stage


class EngineError(Exception):
    """An inference failed, so there is no action to offer; its text is the cause in one sentence."""


class Engine(Protocol):
    """A loaded policy. All but the constructor runs on one thread, the same for every call.

    Used as a context manager it is closed at the end; `load` is a call of its own because it takes long and its
    thread may not be the one that made the engine. `how` says after `load` what is to be known of how it works here,
    if anything.
    """

    how: str

    @property
    def inputs(self) -> Mapping[str, NDArray[Any]]:
        """The model's input buffers by tensor name, in the model's shapes: write the image's before `infer`."""

    @property
    def outputs(self) -> Mapping[str, NDArray[Any]]:
        """The model's output buffers by tensor name, flattened to (n,); `infer` writes them."""

    def load(self) -> None:
        """Open the model, hold it against the manifest and allocate; raises DaemonError."""

    def warm_up(self) -> None:
        """Infer a few times, so that no first cycle pays for first allocations; raises DaemonError."""

    def infer(self, stage: Callable[[Stage], None]) -> None:
        """Compute the outputs from the inputs; `stage` is called as H2D, COMPUTE and D2H begin; raises EngineError."""

    def reset_state(self) -> None:
        """Zero the recurrent state, as every arming does."""

    def close(self) -> None:
        """Let go of the model and its buffers; harmless when repeated."""

    def __enter__(self) -> Self:
        """The engine itself."""

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close."""


@dataclass(frozen=True, slots=True)
class DeviceTimes:
    """Where the time of one inference went, in ms: asking for it, by the host's clock, the rest by the device's."""

    enqueue_ms: float
    h2d_ms: float
    compute_ms: float
    d2h_ms: float


@runtime_checkable
class TimedEngine(Protocol):
    """An engine that has a device with a clock of its own."""

    def infer_timed(self) -> DeviceTimes:
        """One inference, with the times of its parts; raises EngineError."""


_MARKS = {
    "float16": (np.uint16, 0x7EA5),
    "float32": (np.uint32, 0x7FEA55A5),
    "float64": (np.uint64, 0x7FFEA55AA55AA55A),
}
"""For each float the integer of its size and a NaN that arithmetic does not produce, since its low bits are set."""


class OutputGuard:
    """Tells an output that an inference did not write from one in which it wrote NaN.

    Before the inference every element is marked with one particular NaN; whatever still has its bits afterwards was
    not written. Other NaN are the model's own and are left for the gate to see.
    """

    def __init__(self, outputs: Mapping[str, NDArray[Any]]) -> None:
        self._watched = [
            (
                name,
                array.view(_MARKS[array.dtype.name][0]),
                _MARKS[array.dtype.name][1],
                np.empty(array.shape, np.bool_),
            )
            for name, array in outputs.items()
            if array.dtype.name in _MARKS
        ]

    def mark(self) -> None:
        """Mark every element as not written."""
        for _, bits, mark, _ in self._watched:
            bits.fill(mark)

    def check(self) -> None:
        """Raise EngineError when an element is still marked."""
        for name, bits, mark, unwritten in self._watched:
            if np.equal(bits, mark, out=unwritten).any():
                raise EngineError(f"the inference did not write its output {name!r}")
