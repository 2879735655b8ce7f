"""One thing that was found: how it is, in a sentence, and what to type where there is something to do."""

from __future__ import annotations

from dataclasses import dataclass
from enum import Enum


class Level(str, Enum):
    """`note` is worth knowing in a bug report or costs punctuality; `problem` stands in a robot's way."""

    OK = "ok"
    NOTE = "note"
    PROBLEM = "problem"


@dataclass(frozen=True, slots=True)
class Finding:
    """A line of the report. What is not well and has no fix is no finding."""

    level: Level
    name: str
    text: str
    fix: str = ""

    def __post_init__(self) -> None:
        if self.level is not Level.OK and not self.fix:
            raise ValueError(f"the finding {self.name!r} has no fix")


def ok(name: str, text: str) -> Finding:
    """All is well, or it does not matter."""
    return Finding(Level.OK, name, text)


def note(name: str, text: str, fix: str) -> Finding:
    """Worth knowing, and what to type to look into it."""
    return Finding(Level.NOTE, name, text, fix)


def problem(name: str, text: str, fix: str) -> Finding:
    """Something that has to be mended, and how."""
    return Finding(Level.PROBLEM, name, text, fix)
