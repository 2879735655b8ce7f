"""What a driver answers is read right: the kernel's own structs, restated from videodev2.h with a compiler's layout."""

from __future__ import annotations

import ctypes
import errno
from dataclasses import dataclass, field
from typing import ClassVar

import pytest

from mvla_daemon.devices.v4l2 import Mode, capability, modes

U8, U32 = ctypes.c_uint8, ctypes.c_uint32
# As <linux/videodev2.h>'s macros come out, printed by a C program.
QUERYCAP, ENUM_FMT, ENUM_FRAMESIZES, ENUM_FRAMEINTERVALS = 0x80685600, 0xC0405602, 0xC02C564A, 0xC034564B
DISCRETE, CONTINUOUS, STEPWISE = 1, 2, 3
CAPTURE, CAPTURE_MPLANE, META_CAPTURE = 0x1, 0x1000, 0x800000
OUTPUT_MPLANE, M2M_MPLANE, STREAMING, DEVICE_CAPS = 0x2000, 0x4000, 0x4000000, 0x80000000


class V4l2Capability(ctypes.Structure):
    _fields_: ClassVar = [
        *(("driver", ctypes.c_char * 16), ("card", ctypes.c_char * 32), ("bus_info", ctypes.c_char * 32)),
        *(("version", U32), ("capabilities", U32), ("device_caps", U32), ("reserved", U32 * 3)),
    ]


class V4l2Fmtdesc(ctypes.Structure):
    _fields_: ClassVar = [
        *(("index", U32), ("type", U32), ("flags", U32), ("description", U8 * 32)),
        *(("pixelformat", U32), ("mbus_code", U32), ("reserved", U32 * 3)),
    ]


class Discrete(ctypes.Structure):
    _fields_: ClassVar = [("width", U32), ("height", U32)]


class Stepwise(ctypes.Structure):
    _fields_: ClassVar = [
        *(("min_width", U32), ("max_width", U32), ("step_width", U32)),
        *(("min_height", U32), ("max_height", U32), ("step_height", U32)),
    ]


class Sizes(ctypes.Union):
    _fields_: ClassVar = [("discrete", Discrete), ("stepwise", Stepwise)]


class V4l2Frmsizeenum(ctypes.Structure):
    _fields_: ClassVar = [
        *(("index", U32), ("pixel_format", U32), ("type", U32)),
        *(("size", Sizes), ("reserved", U32 * 2)),
    ]


class Fract(ctypes.Structure):
    _fields_: ClassVar = [("numerator", U32), ("denominator", U32)]


class IntervalStep(ctypes.Structure):
    _fields_: ClassVar = [("min", Fract), ("max", Fract), ("step", Fract)]


class Intervals(ctypes.Union):
    _fields_: ClassVar = [("discrete", Fract), ("stepwise", IntervalStep)]


class V4l2Frmivalenum(ctypes.Structure):
    _fields_: ClassVar = [
        *(("index", U32), ("pixel_format", U32), ("width", U32), ("height", U32), ("type", U32)),
        *(("interval", Intervals), ("reserved", U32 * 2)),
    ]


def fourcc(letters: str) -> int:
    return int.from_bytes(letters.encode(), "little")


@dataclass
class Driver:
    """A driver's side of the ioctls, in the kernel's structs; a list's end is EINVAL."""

    caps: V4l2Capability = field(default_factory=V4l2Capability)
    formats: dict[str, list[V4l2Frmsizeenum]] = field(default_factory=dict)
    intervals: list[V4l2Frmivalenum] = field(default_factory=list)
    buffer_type: int = 1

    def ioctl(self, request: int, data: bytearray) -> int:
        if request == QUERYCAP:
            data[:] = bytes(self.caps)
        elif request == ENUM_FMT:
            asked = V4l2Fmtdesc.from_buffer(data)
            self._check(asked.type == self.buffer_type)
            asked.pixelformat = fourcc(self._listed(list(self.formats), asked.index))
        elif request == ENUM_FRAMESIZES:
            size = V4l2Frmsizeenum.from_buffer_copy(data)
            letters = next(name for name in self.formats if fourcc(name) == size.pixel_format)
            data[:] = bytes(self._listed(self.formats[letters], size.index))
        elif request == ENUM_FRAMEINTERVALS:
            interval = V4l2Frmivalenum.from_buffer_copy(data)
            here = [
                one
                for one in self.intervals
                if (one.width, one.height) == (interval.width, interval.height)
                and one.pixel_format in {0, interval.pixel_format}
            ]
            data[:] = bytes(self._listed(here, interval.index))
        else:
            raise OSError(errno.ENOTTY, f"{request:#x}")
        return 0

    @staticmethod
    def _listed(entries: list, index: int):  # type: ignore[type-arg, no-untyped-def] # noqa: ANN205
        Driver._check(index < len(entries))
        return entries[index]

    @staticmethod
    def _check(known: bool) -> None:
        if not known:
            raise OSError(errno.EINVAL, "")


def size(width: int, height: int) -> V4l2Frmsizeenum:
    return V4l2Frmsizeenum(type=DISCRETE, size=Sizes(discrete=Discrete(width, height)))


def interval(width: int, height: int, numerator: int, denominator: int, form: str = "") -> V4l2Frmivalenum:
    return V4l2Frmivalenum(
        pixel_format=fourcc(form) if form else 0,
        width=width,
        height=height,
        type=DISCRETE,
        interval=Intervals(discrete=Fract(numerator, denominator)),
    )


@pytest.mark.parametrize(
    ("whole", "node", "captures", "planes"),
    [
        (CAPTURE | META_CAPTURE | STREAMING | DEVICE_CAPS, CAPTURE | STREAMING, True, False),
        (CAPTURE | META_CAPTURE | STREAMING | DEVICE_CAPS, META_CAPTURE | STREAMING, False, True),
        (CAPTURE | STREAMING, 0, True, False),
        (CAPTURE_MPLANE | DEVICE_CAPS, CAPTURE_MPLANE | STREAMING, True, True),
        (CAPTURE_MPLANE | OUTPUT_MPLANE | DEVICE_CAPS, CAPTURE_MPLANE | OUTPUT_MPLANE, False, True),
        (M2M_MPLANE | DEVICE_CAPS, M2M_MPLANE | STREAMING, False, True),
    ],
    ids=["camera", "its metadata", "an old driver's", "in planes", "an encoder", "an encoder of the new kind"],
)
def test_who_a_node_is_and_whether_it_gives_pictures(whole: int, node: int, captures: bool, planes: bool) -> None:
    caps = V4l2Capability(
        driver=b"uvcvideo",
        card=b"HD Pro Webcam C920",
        bus_info=b"usb-3610000.usb-2",
        version=0x050F94,
        capabilities=whole,
        device_caps=node,
    )
    about = capability(Driver(caps).ioctl)
    assert (about.driver, about.card, about.bus) == ("uvcvideo", "HD Pro Webcam C920", "usb-3610000.usb-2")
    assert about.captures == captures
    assert about.planes == planes


def test_names_that_fill_their_fields() -> None:
    about = capability(Driver(V4l2Capability(driver=b"d" * 16, card=b"c" * 32, bus_info=b"b" * 32)).ioctl)
    assert (about.driver, about.card, about.bus) == ("d" * 16, "c" * 32, "b" * 32)


def test_a_webcams_list_of_modes() -> None:
    driver = Driver(
        formats={"YUYV": [size(640, 480), size(1280, 720)], "MJPG": [size(1280, 720)]},
        intervals=[
            interval(640, 480, 1, 15),
            interval(640, 480, 1, 30),
            interval(1280, 720, 1, 10, "YUYV"),
            interval(1280, 720, 1001, 30_000, "MJPG"),
        ],
    )
    assert modes(driver.ioctl, planes=False) == [
        Mode("YUYV", 640, 480, (30.0, 15.0)),
        Mode("YUYV", 1280, 720, (10.0,)),
        Mode("MJPG", 1280, 720, (29.97,)),
    ]


@pytest.mark.parametrize("kind", [CONTINUOUS, STEPWISE])
def test_ranges_of_sizes_and_rates(kind: int) -> None:
    sizes = V4l2Frmsizeenum(type=kind, size=Sizes(stepwise=Stepwise(32, 1920, 2, 16, 1080, 4)))
    rates = V4l2Frmivalenum(width=1920, height=1080, type=kind)
    rates.interval.stepwise.min = Fract(1, 1000)
    rates.interval.stepwise.max = Fract(2, 1)
    (mode,) = modes(Driver(formats={"NV12": [sizes]}, intervals=[rates], buffer_type=9).ioctl, planes=True)
    assert mode == Mode("NV12", 32, 16, (1000.0, 0.5), any_rate=True, to_width=1920, to_height=1080)
    assert mode.holds(640, 480)
    assert not mode.holds(640, 1200)
    assert mode.text == "32x16 to 1920x1080 at 0.5 to 1000 fps"


def test_a_driver_that_tells_no_rates_and_intervals_that_are_no_time() -> None:
    driver = Driver(formats={"GREY": [size(320, 240)], "Y16 ": [size(320, 240)]}, intervals=[interval(320, 240, 0, 30)])
    assert modes(driver.ioctl, planes=False) == [Mode("GREY", 320, 240, ()), Mode("Y16", 320, 240, ())]


def test_a_list_without_an_end_is_left() -> None:
    class Endless(Driver):
        def ioctl(self, request: int, data: bytearray) -> int:
            if request == ENUM_FRAMEINTERVALS:
                data[:] = bytes(interval(640, 480, 1, 30))
                return 0
            return super().ioctl(request, data)

    assert modes(Endless(formats={"YUYV": [size(640, 480)]}).ioctl, planes=False) == [Mode("YUYV", 640, 480, (30.0,))]


def test_a_camera_that_goes_meanwhile_is_an_error() -> None:
    def gone(request: int, data: bytearray) -> int:
        raise OSError(errno.ENODEV, "No such device", f"{request:#x} of {len(data)} bytes")

    with pytest.raises(OSError, match="No such device"):
        modes(gone, planes=False)
