"""From a model's numbers to a velocity."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol, SupportsFloat

from mvla_daemon.core.limits import without_denormals
from mvla_daemon.core.messages import AXES, Velocity

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping

    from mvla_daemon.engines.manifest import Axis


class Values(Protocol):
    """A flattened output: anything whose elements are numbers."""

    def __getitem__(self, index: int, /) -> SupportsFloat:
        """One element."""


class ActionMapping:
    """Reads each axis from its element of the outputs: value · scale + offset, in the axis's unit.

    An axis that the policy does not have is 0. A denormal is 0 too: it means nothing and slows what computes with it.
    NaN and infinities pass through, so that the gate sees them and stops.
    """

    def __init__(self, axes: Iterable[Axis]) -> None:
        by_name: dict[str, Axis] = {axis.name: axis for axis in axes}
        self._axes = tuple(by_name.get(name) for name in AXES)

    def __call__(self, outputs: Mapping[str, Values]) -> Velocity:
        """The velocity that the flattened `outputs`, by tensor name, ask for."""
        return Velocity(*(_read(axis, outputs) for axis in self._axes))


def _read(axis: Axis | None, outputs: Mapping[str, Values]) -> float:
    if axis is None:
        return 0.0
    value = float(outputs[axis.tensor][axis.index])
    return without_denormals(without_denormals(value) * axis.scale + axis.offset)
