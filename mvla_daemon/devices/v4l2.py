"""What a V4L2 driver says of its camera: who it is and which pictures it gives, asked by ioctl; no picture is taken.

Layouts and numbers are those of the kernel's include/uapi/linux/videodev2.h, which are the same on 64-bit ARM and PC.
"""

from __future__ import annotations

import errno
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeAlias

Ioctl: TypeAlias = Callable[[int, bytearray], object]
"""Does an ioctl on an open device, the argument in place; raises OSError."""

CAPABILITY = struct.Struct("=16s32s32s3I12x")  # struct v4l2_capability
FORMAT = struct.Struct("=3I32s2I12x")  # struct v4l2_fmtdesc
FRAME_SIZE = struct.Struct("=3I6I8x")  # struct v4l2_frmsizeenum, its union as the larger member, stepwise
FRAME_INTERVAL = struct.Struct("=5I6I8x")  # struct v4l2_frmivalenum, likewise
_READ, _WRITE = 2, 1  # <asm-generic/ioctl.h>
_DISCRETE = 1  # V4L2_FRMSIZE_TYPE_DISCRETE, V4L2_FRMIVAL_TYPE_DISCRETE
_CAPTURE, _CAPTURE_PLANES = 0x1, 0x1000  # V4L2_CAP_VIDEO_CAPTURE, _MPLANE
_OUTPUT, _OUTPUT_PLANES, _MEMORY = 0x2, 0x2000, 0xC000  # V4L2_CAP_VIDEO_OUTPUT, _MPLANE, _M2M and _M2M_MPLANE
_PER_NODE = 0x8000_0000  # V4L2_CAP_DEVICE_CAPS: device_caps are this node's, capabilities the whole device's
_BUFFER_CAPTURE, _BUFFER_CAPTURE_PLANES = 1, 9  # V4L2_BUF_TYPE_VIDEO_CAPTURE, _MPLANE
_MOST = 256
"""Entries of one list; a driver that never ends its list must not hold anybody up."""


def _request(direction: int, number: int, layout: struct.Struct) -> int:
    return direction << 30 | layout.size << 16 | ord("V") << 8 | number


QUERYCAP = _request(_READ, 0, CAPABILITY)
ENUM_FMT = _request(_READ | _WRITE, 2, FORMAT)
ENUM_FRAMESIZES = _request(_READ | _WRITE, 74, FRAME_SIZE)
ENUM_FRAMEINTERVALS = _request(_READ | _WRITE, 75, FRAME_INTERVAL)


@dataclass(frozen=True, slots=True)
class Capability:
    """Who a device is, and whether this node of it gives pictures (another may give their metadata)."""

    driver: str
    card: str
    bus: str
    captures: bool
    planes: bool


@dataclass(frozen=True, slots=True)
class Mode:
    """Pictures of one format and size, and their rates (1/s), highest first.

    With `to_width` and `to_height` every size from width x height up to that is possible; with `any_rate` every rate
    between the two that `rates_hz` has. Without rates the driver does not tell.
    """

    fourcc: str
    width: int
    height: int
    rates_hz: tuple[float, ...]
    any_rate: bool = False
    to_width: int = 0
    to_height: int = 0

    def holds(self, width: int, height: int) -> bool:
        """Whether it can give pictures of this size."""
        if self.to_width:
            return self.width <= width <= self.to_width and self.height <= height <= self.to_height
        return (width, height) == (self.width, self.height)

    @property
    def text(self) -> str:
        """Size and rates in words."""
        size = f"{self.width}x{self.height}"
        if self.to_width:
            size += f" to {self.to_width}x{self.to_height}"
        if not self.rates_hz:
            return size
        rates = [f"{rate:g}" for rate in self.rates_hz]
        return f"{size} at {f'{rates[-1]} to {rates[0]}' if self.any_rate else ', '.join(rates)} fps"


def capability(ioctl: Ioctl) -> Capability:
    """VIDIOC_QUERYCAP; raises OSError where the device is no V4L2 one."""
    data = bytearray(CAPABILITY.size)
    ioctl(QUERYCAP, data)
    driver, card, bus, _version, whole, node = CAPABILITY.unpack(data)
    caps = node if whole & _PER_NODE else whole
    gives = bool(caps & (_CAPTURE | _CAPTURE_PLANES))
    takes = bool(caps & (_OUTPUT | _OUTPUT_PLANES | _MEMORY))  # an encoder or scaler, which makes pictures of pictures
    return Capability(_text(driver), _text(card), _text(bus), gives and not takes, not caps & _CAPTURE)


def modes(ioctl: Ioctl, *, planes: bool) -> list[Mode]:
    """All formats, sizes and rates that the driver lists."""
    return [mode for fourcc in _formats(ioctl, planes=planes) for mode in _sizes(ioctl, fourcc)]


def _formats(ioctl: Ioctl, *, planes: bool) -> Iterator[int]:
    kind = _BUFFER_CAPTURE_PLANES if planes else _BUFFER_CAPTURE
    for index in range(_MOST):
        answer = _listed(ioctl, ENUM_FMT, FORMAT, index, kind, 0, b"", 0, 0)
        if answer is None:
            return
        yield answer[4]


def _sizes(ioctl: Ioctl, fourcc: int) -> Iterator[Mode]:
    for index in range(_MOST):
        answer = _listed(ioctl, ENUM_FRAMESIZES, FRAME_SIZE, index, fourcc, *[0] * 7)
        if answer is None:
            return
        _, _, kind, *union = answer
        if kind == _DISCRETE:
            width, height = union[:2]
            rates, any_rate = _rates(ioctl, fourcc, width, height)
            yield Mode(_name(fourcc), width, height, rates, any_rate)
            continue
        width, to_width, _, height, to_height, _ = union
        rates, any_rate = _rates(ioctl, fourcc, to_width, to_height)
        yield Mode(_name(fourcc), width, height, rates, any_rate, to_width, to_height)
        return  # a range is the whole list


def _rates(ioctl: Ioctl, fourcc: int, width: int, height: int) -> tuple[tuple[float, ...], bool]:
    """The rates, and whether any between them is possible; the driver gives them as intervals, shortest first."""
    rates: list[float] = []
    for index in range(_MOST):
        answer = _listed(ioctl, ENUM_FRAMEINTERVALS, FRAME_INTERVAL, index, fourcc, width, height, *[0] * 7)
        if answer is None:
            break
        kind, *union = answer[4:]
        if kind != _DISCRETE:
            shortest, longest = _hertz(*union[0:2]), _hertz(*union[2:4])
            return tuple(rate for rate in (shortest, longest) if rate), True
        rates.append(_hertz(*union[0:2]))
    return tuple(sorted({rate for rate in rates if rate}, reverse=True)), False


def _listed(ioctl: Ioctl, request: int, layout: struct.Struct, *question: int | bytes) -> tuple[int, ...] | None:
    """One entry of a list; None after the last one, and where the driver has no such list."""
    data = bytearray(layout.pack(*question))
    try:
        ioctl(request, data)
    except OSError as error:
        if error.errno in {errno.EINVAL, errno.ENOTTY, errno.ENODATA}:
            return None
        raise
    return layout.unpack(data)


def _hertz(numerator: int, denominator: int) -> float:
    """The rate of an interval of numerator/denominator seconds; 0 for one that is no time."""
    return round(denominator / numerator, 2) if numerator else 0.0


def _name(fourcc: int) -> str:
    """A format's four letters; bit 31 marks a big-endian one."""
    letters = (fourcc & 0x7FFF_FFFF).to_bytes(4, "little").decode("ascii", "backslashreplace").rstrip(" \0")
    return f"{letters}-BE" if fourcc >> 31 else letters


def _text(field: bytes) -> str:
    return field.split(b"\0", 1)[0].decode("utf-8", "replace").strip()
