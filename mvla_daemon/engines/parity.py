"""Whether a built engine answers as the model does: before it may ever drive, it is held against ONNX Runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from mvla_daemon.core.action import ActionMapping
from mvla_daemon.core.image import Preprocessor
from mvla_daemon.core.messages import AXES
from mvla_daemon.engines.manifest import UNITS

if TYPE_CHECKING:
    from collections.abc import Sequence

    from numpy.typing import NDArray

    from mvla_daemon.core.messages import Stage
    from mvla_daemon.engines.base import Engine
    from mvla_daemon.engines.manifest import Manifest

PICTURES = 24
LEAST_SPREAD = 0.1
"""Of an axis' scale: a policy that answers nearly the same to all pictures is held against this much of a spread."""


@dataclass(frozen=True, slots=True)
class Parity:
    """How far an axis is off at the worst picture, and how far it may be, in its unit."""

    axis: str
    error: float
    allowed: float

    @property
    def share(self) -> float:
        """Of what is allowed; an axis of scale 0 may not be off at all."""
        return self.error / max(self.allowed, 1e-300)

    def line(self) -> str:
        """It as words."""
        return (
            f"{self.axis} by {self.error:.3g} {UNITS[self.axis]} of the {self.allowed:.3g} {UNITS[self.axis]} allowed"
        )


def worst_axis(manifest: Manifest, engine: Engine, reference: Engine, pictures: Sequence[NDArray[np.uint8]]) -> Parity:
    """The axis that differs most, of both engines' actions on the same pictures in a row, in its share of the allowed.

    What is allowed of an axis is the manifest's `parity_tolerance` times its standard deviation over these pictures.
    Both engines are loaded; their recurrent state is zero afterwards. Raises EngineError.
    """
    wanted, given = _actions(manifest, reference, pictures), _actions(manifest, engine, pictures)
    found = []
    for axis in manifest.axes:
        at = AXES.index(axis.name)
        spread = max(float(np.std(wanted[:, at])), LEAST_SPREAD * abs(axis.scale))
        difference = np.abs(given[:, at] - wanted[:, at])
        error = float(difference.max()) if np.isfinite(difference).all() else float("inf")
        found.append(Parity(axis.name, error, manifest.parity_tolerance * spread))
    return max(found, key=lambda parity: parity.share)


def _actions(manifest: Manifest, engine: Engine, pictures: Sequence[NDArray[np.uint8]]) -> NDArray[np.float64]:
    """What an engine answers to each picture, (n, 3), in m/s and rad/s."""
    image = manifest.inputs.image
    preprocess = Preprocessor(image, *image.size)
    mapping = ActionMapping(manifest.axes)
    engine.reset_state()
    answers = []
    for picture in pictures:
        preprocess(picture, engine.inputs[image.tensor])
        engine.infer(_ignore)
        answers.append(mapping(engine.outputs).as_tuple())
    engine.reset_state()
    return np.array(answers)


def synthetic_pictures(size: tuple[int, int], count: int = PICTURES) -> list[NDArray[np.uint8]]:
    """Pictures of nothing, (height, width, 3) uint8, the same at every call: blobs of all sizes, colors and light."""
    random = np.random.default_rng(1)
    height, width = size
    pictures = []
    for number in range(count):
        block = 4 << number % 4
        coarse = random.integers(0, 256, (-(-height // block), -(-width // block), 3), np.uint8)
        fine = coarse.repeat(block, 0).repeat(block, 1)[:height, :width]
        light = random.uniform(0.2, 1.0)
        pictures.append(np.ascontiguousarray((fine * light).astype(np.uint8)))
    return pictures


def _ignore(_: Stage) -> None:
    """Nobody watches the stages of a comparison."""
