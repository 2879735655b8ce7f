"""From a camera's picture to a model's input, as the manifest says and without a copy too many."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from mvla_daemon.opencv import load_opencv

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from mvla_daemon.engines.manifest import ImageInput

_CHANNELS = 3


@dataclass(frozen=True, slots=True)
class Orientation:
    """How a camera's picture becomes upright: turned clockwise by 0, 90, 180 or 270 degrees, and then flipped.

    horizontal exchanges left and right, vertical top and bottom, of the picture as it is after turning.
    """

    rotation: int = 0
    flip: Literal["none", "horizontal", "vertical"] = "none"

    def __post_init__(self) -> None:
        if self.rotation not in {0, 90, 180, 270}:
            raise ValueError(f"rotation must be 0, 90, 180 or 270, it is {self.rotation}")


class Preprocessor:
    """Turns, flips, fits, orders and normalises pictures of one size into a model's input.

    `source_height` and `source_width` are the camera's, before `orientation`.
    squash stretches; letterbox keeps the shape and pads with black, before normalisation; crop takes the largest
    middle part that has the model's shape. All sample plain bilinear (cv2.INTER_LINEAR, half-pixel centres), as
    training with OpenCV's default did: INTER_AREA is eight times slower. The picture is turned after it was made
    small, which gives the same values and touches fewer pixels. Normalisation is a table of 256 entries a channel,
    (v · scale - mean) / std rounded once, in every dtype. One instance belongs to one thread.
    """

    def __init__(
        self, image: ImageInput, source_height: int, source_width: int, orientation: Orientation | None = None
    ) -> None:
        self._cv2 = load_opencv()
        self._image = image
        self._source_shape = (source_height, source_width, _CHANNELS)
        orientation = orientation or Orientation()
        self._turn = {0: None, 90: 0, 180: 1, 270: 2}[orientation.rotation]  # the values of cv2.RotateFlags
        self._flip = {"none": None, "horizontal": 1, "vertical": 0}[orientation.flip]  # cv2.flip's codes
        self._allocate(orientation)
        self._tables = _tables(image)

    def _allocate(self, orientation: Orientation) -> None:
        """The part of the source that is used, and the buffers between the steps."""
        height, width, _ = self._source_shape
        rotation = orientation.rotation
        sideways = rotation in {90, 270}
        mirrored = (orientation.flip == "vertical", orientation.flip == "horizontal")  # rows, columns, when upright
        mirrored_rows, mirrored_columns = reversed(mirrored) if sideways else mirrored
        upright = (width, height) if sideways else (height, width)
        used, fitted = upright, self._image.size
        if self._image.resize == "crop":
            used = _largest_within(upright, self._image.size)
        elif self._image.resize == "letterbox":
            fitted = _largest_within(self._image.size, upright)
        used_height, used_width = reversed(used) if sideways else used
        self._used = (
            _middle(height, used_height, from_end=(rotation in {90, 180}) != mirrored_rows),
            _middle(width, used_width, from_end=(rotation in {180, 270}) != mirrored_columns),
        )
        self._upright = np.zeros((*self._image.size, _CHANNELS), np.uint8)
        """The fitted picture in BGR; what it leaves of the model's size stays black."""
        self._fitted = self._upright[_middle(self._image.size[0], fitted[0]), _middle(self._image.size[1], fitted[1])]
        small = (fitted[1], fitted[0]) if sideways else fitted
        self._turned = self._fitted if self._flip is None else np.empty((*fitted, _CHANNELS), np.uint8)
        self._small = self._turned if self._turn is None else np.empty((*small, _CHANNELS), np.uint8)
        swap = self._image.color == "RGB"
        self._ordered = np.empty_like(self._upright) if swap else self._upright
        """The same in the model's order of colors, for NHWC; planes are exchanged instead."""
        self._order = (2, 1, 0) if swap else (0, 1, 2)
        self._planes = [np.empty(self._image.size, np.uint8) for _ in range(_CHANNELS)]

    def __call__(self, bgr: NDArray[np.uint8], out: NDArray[Any]) -> None:
        """Write the picture `bgr`, uint8 (source height, source width, 3), to the model's input `out`, in place.

        Raises ValueError for a picture or an input of another shape or dtype.
        """
        if bgr.shape != self._source_shape or bgr.dtype != np.uint8:
            raise ValueError(f"the picture is {bgr.shape} {bgr.dtype}, expected {self._source_shape} uint8")
        if out.shape != self._image.shape or out.dtype != self._image.dtype or not out.flags.c_contiguous:
            raise ValueError(f"the input is {out.shape} {out.dtype}, expected {self._image.shape} {self._image.dtype}")
        cv2, small = self._cv2, self._small
        cv2.resize(bgr[self._used], small.shape[1::-1], dst=small, interpolation=cv2.INTER_LINEAR)
        if self._turn is not None:
            cv2.rotate(small, self._turn, dst=self._turned)
        if self._flip is not None:
            cv2.flip(self._turned, self._flip, dst=self._fitted)
        if self._image.layout == "NCHW":
            self._write_planes(out)
            return
        if self._ordered is not self._upright:
            cv2.cvtColor(self._upright, cv2.COLOR_BGR2RGB, dst=self._ordered)
        if self._tables is None:
            np.copyto(out[0], self._ordered)
        else:
            cv2.LUT(self._ordered, self._tables, dst=out.view(self._tables.dtype)[0])

    def _write_planes(self, out: NDArray[Any]) -> None:
        if self._tables is None:
            self._cv2.split(self._upright, [out[0][channel] for channel in self._order])
            return
        self._cv2.split(self._upright, self._planes)
        stored = out.view(self._tables.dtype)[0]
        for channel, source in enumerate(self._order):
            self._cv2.LUT(self._planes[source], self._tables[channel], dst=stored[channel])


def _tables(image: ImageInput) -> NDArray[Any] | None:
    """What each of the values 0 to 255 becomes: (1, 256, 3) for NHWC, (3, 1, 256) for NCHW, None for uint8.

    float16 is stored as uint16 of the same bits, since cv2.LUT of OpenCV 4 knows no float16.
    """
    if image.dtype == "uint8":
        return None
    levels = np.arange(256, dtype=np.float64)[:, None]
    exact = (levels * image.scale - np.array(image.mean)) / np.array(image.std)
    table = exact.astype(image.dtype)
    stored = table.view(np.uint16) if image.dtype == "float16" else table
    return stored[None] if image.layout == "NHWC" else np.ascontiguousarray(stored.T[:, None])


def _largest_within(space: tuple[int, int], like: tuple[int, int]) -> tuple[int, int]:
    """The largest (height, width) inside `space` that has the shape of `like`, to the nearest pixel."""
    height, width = space
    return (
        min(height, max(1, round(width * like[0] / like[1]))),
        min(width, max(1, round(height * like[1] / like[0]))),
    )


def _middle(length: int, part: int, *, from_end: bool = False) -> slice:
    """The middle `part` of `length`; an odd pixel is left over at the end, or `from_end` at the start."""
    rest = length - part
    start = rest - rest // 2 if from_end else rest // 2
    return slice(start, start + part)
