"""Real-time settings of a process: scheduling, memory, processors; each is granted, or said to be not.

Nothing here is needed for a stop to happen, only for it to happen within fractions of a millisecond.
"""

from __future__ import annotations

import ctypes
import gc
import os
import signal

from mvla_daemon.errors import DaemonError, ExitCode

_LIBC = ctypes.CDLL(None, use_errno=True)
_MCL_CURRENT, _MCL_FUTURE = 1, 2  # <sys/mman.h>
_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29  # <sys/prctl.h>
SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep Python's lock while another waits; the default of 5 ms is a quarter of a cycle."""


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends; DaemonError when `parent_pid` has ended already.

    The signal follows the thread that started this process, so that has to be its parent's main one.
    """
    if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise DaemonError(f"prctl: {os.strerror(ctypes.get_errno())}: this needs Linux", ExitCode.UNAVAILABLE)
    if os.getppid() != parent_pid:
        raise DaemonError(f"the process {parent_pid} is not the parent: start it from there", ExitCode.UNAVAILABLE)


def use_fifo(priority: int) -> str:
    """Put the calling thread under SCHED_FIFO; threads and children that it starts later are ordinary ones.

    Returns "" when granted, else what to grant.
    """
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except PermissionError:
        return "no real-time scheduling: set LimitRTPRIO=99 in the unit, or run under `sudo chrt -f 80`"
    return ""


def wake_on_time() -> None:
    """Let the calling thread's sleeps end when they should, and not up to 50 us later (prctl(2), timer slack)."""
    _LIBC.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0)


def lock_memory() -> str:
    """Keep all pages of this process in memory, later ones too; "" when granted, else what to grant."""
    if _LIBC.mlockall(_MCL_CURRENT | _MCL_FUTURE) != 0:
        return "memory not locked: set LimitMEMLOCK=infinity in the unit, or `ulimit -l unlimited`"
    return ""


def set_garbage_aside() -> None:
    """Leave what is loaded so far out of later collections, which would walk through all of it for milliseconds."""
    gc.collect()
    gc.freeze()


def stop_collecting_garbage() -> None:
    """No pauses for the cycle collector: what the gate allocates while running has no cycles."""
    set_garbage_aside()
    gc.disable()


def gate_core(cores: set[int]) -> int:
    """The processor that the gate keeps for itself, out of those it may use: the last one."""
    return max(cores)


def keep_off(cores: set[int], core: int) -> None:
    """Use all of these processors but one; the only one there is has to be shared."""
    os.sched_setaffinity(0, cores - {core} or cores)
