"""The simulated robot's camera, as the policy process sees it: pictures over shared memory."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from mvla_daemon.cameras.base import CameraError, Capture, PictureError
from mvla_daemon.sim.camera_link import CameraClient

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class SimulatedCamera:
    """Pictures of 640x480 from the simulator that serves `path`; their capture time is when the robot was there."""

    name = "simulated camera"
    clock = "simulator"

    def __init__(self, path: Path) -> None:
        self._path = path
        self._client: CameraClient | None = None

    def open(self) -> None:
        """Connect; raises CameraError when there is no simulator."""
        try:
            self._client = CameraClient(self._path)
        except OSError as error:
            raise CameraError(
                f"{self.name}: the simulator does not answer ({error}); start the daemon again"
            ) from error

    def read(self, into: NDArray[np.uint8]) -> Capture:
        """Wait for the next picture; raises PictureError for one that was overwritten, CameraError at the end."""
        client = self._client
        if client is None:
            raise CameraError(f"{self.name} is closed")
        try:
            news = client.wait()
        except OSError as error:
            raise CameraError(f"{self.name}: {error}") from error
        if news is None:
            raise CameraError(f"{self.name}: the simulator has ended")
        if not client.copy(news, into):
            raise PictureError("overwritten while it was read")
        return Capture(news.captured_ns, news.number)

    def close(self) -> None:
        """Hang up."""
        client, self._client = self._client, None
        if client is not None:
            client.close()
