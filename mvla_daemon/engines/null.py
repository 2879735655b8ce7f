"""An engine that returns at once, for measuring everything but a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from mvla_daemon.core.messages import Stage

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping
    from types import TracebackType

    from numpy.typing import NDArray
    from typing_extensions import Self

    from mvla_daemon.engines.manifest import Manifest


class NullEngine:
    """Buffers as the manifest's policy has them, and no policy: every output stays zero. See `Engine`."""

    how = ""

    def __init__(self, manifest: Manifest) -> None:
        image = manifest.inputs.image
        sizes: dict[str, int] = {}
        for axis in manifest.axes:
            sizes[axis.tensor] = max(sizes.get(axis.tensor, 0), axis.index + 1)
        self.inputs: Mapping[str, NDArray[Any]] = {image.tensor: np.zeros(image.shape, image.dtype)}
        self.outputs: Mapping[str, NDArray[Any]] = {name: np.zeros(size, np.float32) for name, size in sizes.items()}

    def load(self) -> None:
        """Nothing has to be loaded."""

    def warm_up(self) -> None:
        """Nothing gets faster."""

    def infer(self, stage: Callable[[Stage], None]) -> None:
        """Mark the stages, which an engine does too."""
        stage(Stage.H2D)
        stage(Stage.COMPUTE)
        stage(Stage.D2H)

    def reset_state(self) -> None:
        """There is none."""

    def close(self) -> None:
        """There is nothing to let go of."""

    def __enter__(self) -> Self:
        """The engine itself."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Nothing to close."""
