"""A moment as another user, of the calling thread alone: tests that run beside it keep their own rights."""

from __future__ import annotations

import ctypes
import os
import platform
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

NOBODY = 65534
UNCHANGED = -1
# The number of setresuid in the kernel's tables (asm/unistd_64.h; asm-generic/unistd.h): os.seteuid, which goes through
# the C library, changes every thread of the process.
SETRESUID = {"x86_64": 117, "aarch64": 147}


def _become(uid: int) -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    number = SETRESUID[platform.machine()]
    if libc.syscall(ctypes.c_long(number), UNCHANGED, uid, UNCHANGED):
        raise OSError(ctypes.get_errno(), "setresuid")


@contextmanager
def as_nobody() -> Iterator[None]:
    """Whoever is not root already lacks what nobody lacks, and stays."""
    if os.geteuid() != 0:
        yield
        return
    _become(NOBODY)
    try:
        yield
    finally:
        _become(0)
