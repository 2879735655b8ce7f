"""Real-time settings of a process: scheduling, memory, processors; each is granted, or said to be not.

Nothing here is needed for a stop to happen, only for it to happen within fractions of a millisecond.
"""

from __future__ import annotations

import ctypes
import gc
import os
import resource
import signal
from contextlib import suppress
from pathlib import Path

from mvla_daemon.errors import DaemonError, ExitCode
from mvla_daemon.ops.grants import Grants

_LIBC = ctypes.CDLL(None, use_errno=True)
_MCL_CURRENT, _MCL_FUTURE = 1, 2  # <sys/mman.h>
_PR_SET_PDEATHSIG, _PR_SET_TIMERSLACK = 1, 29  # <sys/prctl.h>
_CAP_IPC_LOCK = 14  # <linux/capability.h>; its holder is above RLIMIT_MEMLOCK
CAMERA_STEPS, ENGINE_STEPS = 1, 2
"""Below the event loop, in the order of how long each may keep the others."""
SWITCH_INTERVAL_S = 0.0005
"""How long a thread may keep Python's lock while another waits; the default of 5 ms is a quarter of a cycle."""
NEVER_KILLED, KILLED_FIRST = -1000, 1000  # proc(5), oom_score_adj
HIGHEST_NICE = -20
LOCK_SPARE_BYTES = 64 << 20
"""What a limit on locked memory has to leave: with all later pages locked too, to reach the limit is a MemoryError."""


# --- both processes at their start ---


def become_gate(cores: set[int], fifo_priority: int | None, *, lock: bool) -> Grants:
    """All that the gate asks for; `fifo_priority` is None and `lock` False where the configuration wants it so."""
    grants = Grants("gate", fifo_priority)
    grants.note("affinity", _share_out({gate_core(cores)}, cores))
    stop_collecting_garbage()
    grants.note("garbage")
    grants.note("timer_slack", wake_on_time())
    grants.note("precedence", precede_others())  # without real-time scheduling it is not to be below the policy's
    grants.note("oom", set_oom_score(NEVER_KILLED))
    if lock:
        grants.note("memory", lock_memory())
    else:
        grants.off("memory", "realtime.lock_memory is false")
    _note_fifo(grants, fifo_priority)
    return grants


def become_policy(cores: set[int], fifo_priority: int | None, *, gate_has_fifo: bool) -> Grants:
    """All that the policy process asks for: off the gate's processor, below it, and the first to go without memory.

    What is refused to the gate is not for the policy process either: it would be above it. The calling thread is the
    event loop's; the camera's and the engine's come after it by `follow_event_loop`, whatever else it starts is
    ordinary.
    """
    grants = Grants("policy", fifo_priority)
    grants.note("parent_death")  # asked for before all else, since without it there is no policy process
    grants.note("affinity", _share_out(cores - {gate_core(cores)}, cores))
    set_garbage_aside()
    grants.note("garbage")
    grants.note("timer_slack", wake_on_time())
    grants.note("precedence", precede_others())
    grants.note("oom", set_oom_score(KILLED_FIRST))
    if fifo_priority is not None and not gate_has_fifo:
        grants.off("fifo", "the gate does not have it, which must not be below the policy process")
    else:
        _note_fifo(grants, fifo_priority)
    return grants


def _note_fifo(grants: Grants, priority: int | None) -> None:
    if priority is None:
        grants.off("fifo", 'realtime.scheduler is "other"')
    else:
        grants.note("fifo", use_fifo(priority))


# --- single settings: "" when granted, else what the operating system said ---


def use_fifo(priority: int) -> str:
    """Put the calling thread under SCHED_FIFO; threads and children that it starts later are ordinary ones."""
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, os.sched_param(priority))
    except OSError as error:
        return error.strerror or str(error)
    return ""


def would_grant_fifo(priority: int) -> bool:
    """Whether the calling thread, which is an ordinary one, would get SCHED_FIFO; it stays as it is.

    It asks without SCHED_RESET_ON_FORK, since only a privileged process may take that flag back (sched(7)).
    """
    before = os.sched_getscheduler(0), os.sched_getparam(0)
    try:
        os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(priority))
    except OSError:
        return False
    os.sched_setscheduler(0, *before)
    return True


def wake_on_time() -> str:
    """Let the calling thread's sleeps end when they should, and not up to 50 us later (prctl(2), timer slack)."""
    return _outcome(_LIBC.prctl(_PR_SET_TIMERSLACK, 1, 0, 0, 0))


def precede_others() -> str:
    """Give the calling thread precedence over ordinary programs.

    With all processors busy a frame was on the wire within 1.6 ms instead of 6.5 (p90, median of four runs of each on
    two cores). Each thread has to ask for itself: those of a real-time thread begin as ordinary ones.
    """
    try:
        os.setpriority(os.PRIO_PROCESS, 0, HIGHEST_NICE)  # which of Linux's are threads, not processes
    except OSError as error:
        return error.strerror or str(error)
    return ""


class Precedence:
    """The calling thread's real-time priority, 0 for none, which it can lay down for a while and take up again."""

    def __init__(self, priority: int) -> None:
        self._priority = priority
        self._up, self._down = os.sched_param(priority), os.sched_param(0)

    def take_up(self) -> None:
        """Be real-time, where this is granted."""
        if self._priority:
            os.sched_setscheduler(0, os.SCHED_FIFO | os.SCHED_RESET_ON_FORK, self._up)

    def lay_down(self) -> None:
        """Be an ordinary thread, before others by its nice value only."""
        if self._priority:
            os.sched_setscheduler(0, os.SCHED_OTHER | os.SCHED_RESET_ON_FORK, self._down)


def follow_event_loop(steps: int) -> Precedence:
    """Make the calling thread real-time too, so many steps below the policy process's event loop, where that is.

    An ordinary thread that waits for a processor while it holds Python's lock holds the event loop up with it. Measured
    with other programs on both of two processors, `bench --null` at 500 Hz, 30 s: 3 and 11 misses instead of 36 and 27.
    Only away from the gate's processor: with real-time threads on all of them, the kernel's own threads, the one that
    hands a terminal's bytes over too, would have to wait for them.
    """
    loop, gate = os.getpid(), os.getppid()
    is_real_time = os.sched_getscheduler(loop) & ~os.SCHED_RESET_ON_FORK == os.SCHED_FIFO
    if not is_real_time or os.sched_getaffinity(0) & os.sched_getaffinity(gate):
        return Precedence(0)
    priority = max(1, os.sched_getparam(loop).sched_priority - steps)
    return Precedence(0 if use_fifo(priority) else priority)


def lock_memory() -> str:
    """Keep all pages of this process in memory, later ones too."""
    refusal = _outcome(_LIBC.mlockall(_MCL_CURRENT | _MCL_FUTURE))
    limit_bytes = resource.getrlimit(resource.RLIMIT_MEMLOCK)[0]
    if refusal or limit_bytes == resource.RLIM_INFINITY or _holds_capability(_CAP_IPC_LOCK):
        return refusal
    used_bytes = int(Path("/proc/self/statm").read_bytes().split()[0]) * resource.getpagesize()
    if limit_bytes - used_bytes < LOCK_SPARE_BYTES:
        _LIBC.munlockall()
        return f"the limit of {limit_bytes >> 20} MiB leaves no room to grow"
    return ""


def _holds_capability(number: int) -> bool:
    status = Path("/proc/self/status").read_bytes()
    effective = next(line for line in status.splitlines() if line.startswith(b"CapEff:"))
    return bool(int(effective.split()[1], 16) >> number & 1)


def set_oom_score(adjustment: int) -> str:
    """How gladly the kernel ends this process when memory runs out: -1000 never, 1000 before all others.

    To go below what a process was started with takes CAP_SYS_RESOURCE; to raise it, nothing.
    """
    try:
        Path("/proc/self/oom_score_adj").write_bytes(b"%d" % adjustment)
    except OSError as error:
        return error.strerror or str(error)
    return ""


def _share_out(mine: set[int], cores: set[int]) -> str:
    try:
        os.sched_setaffinity(0, mine or cores)
    except OSError as error:
        return error.strerror or str(error)
    return "there is one processor only" if len(cores) == 1 else ""


def _outcome(status: int) -> str:
    return os.strerror(ctypes.get_errno()) if status != 0 else ""


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


# --- parents and children ---


def die_with_parent(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends; DaemonError when `parent_pid` has ended already.

    The signal follows the thread that started this process, so that has to be its parent's main one.
    """
    if _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0) != 0:
        raise DaemonError(f"prctl: {os.strerror(ctypes.get_errno())}: this needs Linux", ExitCode.UNAVAILABLE)
    if os.getppid() != parent_pid:
        raise DaemonError(f"the process {parent_pid} is not the parent: start it from there", ExitCode.UNAVAILABLE)


def expose(pid: int) -> None:
    """Take from a child what protects its parent, the gate, when memory runs out; it would be inherited for ever."""
    score = Path(f"/proc/{pid}/oom_score_adj")
    with suppress(OSError):  # the child has ended
        if int(score.read_bytes()) < 0:
            score.write_bytes(b"0")
