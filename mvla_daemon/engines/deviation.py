"""How far two computations of one policy lie apart, in units of how much its answers vary from frame to frame.

An error only means something beside what the policy says with its outputs: 0.01 is nothing for an output that swings
by 1, and everything for one that never moves by more. So both are given, and an output that hardly varies proves
nothing.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from numpy.typing import NDArray

LARGEST_SHARE = 0.05
"""Of an output's standard deviation: the largest error of FP16 that counts as the same policy."""
LEAST_SPREAD = 0.1
"""The standard deviation across frames from which on an output can be judged, in units of the model's output."""
LEAST_FRAMES = 100


@dataclass(frozen=True, slots=True)
class Deviation:
    """Of one output across the same frames: the largest error, and the reference's standard deviation."""

    error: float
    spread: float

    @property
    def share(self) -> float:
        """The error in units of the standard deviation; infinite for an output that does not vary."""
        return self.error / self.spread if self.spread > 0 else float("inf")

    @property
    def problem(self) -> str:
        """Why this is not the same policy, or why that cannot be told; nothing when it is the same."""
        if not np.isfinite(self.error):
            return "an answer is not finite"
        if self.spread < LEAST_SPREAD:
            return f"the answers vary by {self.spread:.3g} only, {LEAST_SPREAD:g} is needed to judge them"
        if self.share > LARGEST_SHARE:
            return f"they differ by {self.share:.1%} of how much they vary, {LARGEST_SHARE:.0%} is allowed"
        return ""


def deviations(reference: NDArray[Any], other: NDArray[Any]) -> list[Deviation]:
    """For each output its deviation; both arrays are (frames, outputs), and row n of each answers the same frame."""
    if reference.ndim != 2 or reference.shape != other.shape:
        raise ValueError(f"answers are (frames, outputs), twice the same, not {reference.shape} and {other.shape}")
    if len(reference) < LEAST_FRAMES:
        raise ValueError(f"{len(reference)} frames are too few to judge, {LEAST_FRAMES} are needed")
    exact = reference.astype(np.float64)
    errors = np.abs(other.astype(np.float64) - exact).max(axis=0)
    return [Deviation(float(error), float(spread)) for error, spread in zip(errors, exact.std(axis=0), strict=True)]
