"""The kinds of values that a configuration has, each with its bounds, and the sentence for what is none of its kind."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def whole_number(value: object) -> object:
    """The value itself; ValueError where it is no integer of TOML."""
    if type(value) is not int:  # a Literal alone would take true for 1 and 90.0 for 90
        raise ValueError("must be a whole number")
    return value


def _openable(path: str) -> str:
    if not path or "\0" in path:
        raise ValueError("must be a path")
    return path


def sayable(text: str) -> str:
    """The text itself; ValueError where it has a zero character."""
    if "\0" in text:
        raise ValueError("must have no zero characters")
    return text


def as_pixel_format(code: str) -> str:
    """The code itself; ValueError where it is not four characters of a V4L2 format."""
    if len(code) != 4 or not code.isascii() or not code.isprintable():
        raise ValueError('must be the four characters of a V4L2 format, for example "MJPG" or "YUYV"')
    return code


Hertz = Annotated[float, Field(ge=0.1, le=1000)]
Milliseconds = Annotated[float, Field(gt=0, le=60_000)]
MillisecondsOrZero = Annotated[float, Field(ge=0, le=60_000)]
Priority = Annotated[int, Field(ge=1, le=99)]
"""A priority of Linux's real-time schedulers, sched(7)."""
PathText = Annotated[str, AfterValidator(_openable)]


class Section(BaseModel):
    """A section of the file: every key is known, of its own type, finite, and never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, validate_default=True, allow_inf_nan=False)
