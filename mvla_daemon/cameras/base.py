"""What every camera is to the rest of the daemon, and how one says that it has no picture."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


class CameraError(DaemonError):
    """The camera is absent, lost or not what the configuration says; it has to be opened again."""

    def __init__(self, sentence: str, exit_code: ExitCode = ExitCode.UNAVAILABLE) -> None:
        super().__init__(sentence, exit_code)


class PictureError(Exception):
    """This one picture can't be used (cut short, of another size); the camera itself goes on."""


@dataclass(frozen=True, slots=True)
class Capture:
    """When a picture was captured (CLOCK_MONOTONIC), and which of its source it is."""

    captured_ns: int
    number: int


class Camera(Protocol):
    """A source of BGR pictures of one size.

    One thread opens and reads; `close` may be called from any other one, also while `read` blocks, and more than once.
    A closed camera may be opened again.
    """

    @property
    def name(self) -> str:
        """What messages call it."""

    @property
    def clock(self) -> str:
        """Where capture times come from: "kernel", "stream", "read returned", "paced file"; known once it is open."""

    def open(self) -> None:
        """Make it ready to be read; raises CameraError when it is absent or not as configured."""

    def read(self, into: NDArray[np.uint8]) -> Capture:
        """Wait for the next picture and put it into `into`, (height, width, 3) uint8 BGR.

        Raises PictureError when this picture is unusable and CameraError when there will be no more.
        """

    def close(self) -> None:
        """Let go of the device, at once or as soon as a `read` that is under way returns."""
