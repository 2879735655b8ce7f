"""What passes between the double and its user: memory, logs, errors, progress."""

from __future__ import annotations

import os
import signal
from typing import Any

import fake_gpu

from tensorrt._names import ENUMS, Listed


class ILogger:
    Severity = ENUMS.get("Severity") or type("Severity", (), {})
    INTERNAL_ERROR, ERROR, WARNING, INFO, VERBOSE = range(5)

    def __init__(self) -> None:
        self._made = True

    def log(self, severity: int, msg: str) -> None:
        raise fake_gpu.MisuseError("a logger has to say what it does with a line")


def say(logger: ILogger, severity: int, msg: str) -> None:
    """Tell a logger, which must have been made as TensorRT's own are."""
    assert logger._made
    logger.log(severity, msg)


class IProgressMonitor:
    def __init__(self) -> None:
        self._made = True

    def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None: ...

    def step_complete(self, phase_name: str, step: int) -> bool:
        return True

    def phase_finish(self, phase_name: str) -> None: ...


class IHostMemory(bytes):
    @property
    def nbytes(self) -> int:
        return len(self)


class ITimingCache(Listed):
    def __init__(self, content: bytes) -> None:
        self._content = content

    def serialize(self) -> IHostMemory:
        return IHostMemory(self._content)


class ParserError:
    def __init__(self, text: str) -> None:
        self._text = text

    def desc(self) -> str:
        return self._text


def need_driver() -> None:
    """Real TensorRT without a driver may hand out an object whose first use crashes; here it crashes at once."""
    if not fake_gpu.initialised:
        os.kill(os.getpid(), signal.SIGSEGV)


def wrong(name: str) -> Any:
    """What a test wants to go wrong, by MVLA_DOUBLE_FAULTS: a list of NAME or NAME=VALUE."""
    faults = dict(part.partition("=")[::2] for part in os.environ.get("MVLA_DOUBLE_FAULTS", "").split(",") if part)
    return faults.get(name)
