"""What OpenCV does not tell of a V4L2 device, asked beside it by ioctl (videodev2.h; 64-bit layouts).

A V4L2 device may be opened more than once, and these questions change nothing. Each answer is None where the driver
gives none.
"""

from __future__ import annotations

import fcntl
import os
import struct

_VIDIOC_G_CTRL = 0xC008561B  # _IOWR('V', 27, struct v4l2_control)
_VIDIOC_QUERYBUF = 0xC0585609  # _IOWR('V', 9, struct v4l2_buffer)
_CONTROL = struct.Struct("=Ii")  # id, value
_EXPOSURE_AUTO_PRIORITY = 0x009A0903  # V4L2_CID_EXPOSURE_AUTO_PRIORITY
_BUFFER = struct.Struct("=4I72x")  # index, type, bytesused, flags, and what is not asked for
_CAPTURE = 1  # V4L2_BUF_TYPE_VIDEO_CAPTURE
_TIMESTAMP_MASK, _TIMESTAMP_MONOTONIC = 0xE000, 0x2000  # V4L2_BUF_FLAG_TIMESTAMP_...


def stretches_exposure(path: str) -> bool | None:
    """Whether the camera may lower its frame rate to expose longer."""
    answer = _ask(path, _VIDIOC_G_CTRL, _CONTROL.pack(_EXPOSURE_AUTO_PRIORITY, 0))
    return None if answer is None else bool(_CONTROL.unpack(answer)[1])


def has_monotonic_times(path: str) -> bool | None:
    """Whether the first of the device's allocated buffers is stamped with CLOCK_MONOTONIC, as its driver says."""
    answer = _ask(path, _VIDIOC_QUERYBUF, _BUFFER.pack(0, _CAPTURE, 0, 0))
    return None if answer is None else _BUFFER.unpack(answer)[3] & _TIMESTAMP_MASK == _TIMESTAMP_MONOTONIC


def buffer_count(path: str, most: int) -> int | None:
    """How many buffers are allocated on the device, up to `most`."""
    count = 0
    while count < most and _ask(path, _VIDIOC_QUERYBUF, _BUFFER.pack(count, _CAPTURE, 0, 0)) is not None:
        count += 1
    return count or None


def _ask(path: str, request: int, question: bytes) -> bytes | None:
    try:
        device = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        return fcntl.ioctl(device, request, question)
    except OSError:
        return None
    finally:
        os.close(device)
