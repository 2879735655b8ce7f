"""The one error that reaches a user: a sentence that says what to do, and a sysexits code."""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """The exit codes of sysexits(3) that this program uses."""

    OK = 0
    USAGE = 64
    NO_INPUT = 66
    UNAVAILABLE = 69
    INTERNAL = 70
    TRY_AGAIN = 75
    NO_PERMISSION = 77
    CONFIG = 78


class DaemonError(Exception):
    """Something a user has to mend; `str(error)` is shown as it is, so it says what to do.

    `exit_code` is what the process ends with when nobody handles it.
    """

    def __init__(self, sentence: str, exit_code: ExitCode) -> None:
        super().__init__(sentence)
        self.exit_code = exit_code
