"""Memory that two processes share and neither can resize."""

from __future__ import annotations

import fcntl
import os


def create(name: str, length: int) -> int:
    """A memfd of `length` bytes that nobody can shrink (which would kill its readers) or grow; its descriptor."""
    fd = os.memfd_create(name, os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
    os.ftruncate(fd, length)
    fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
    return fd
