"""What the operating system would grant to a daemon started from here, and how its scheduler treats real-time threads.

Under systemd the unit's own limits count instead; those are the service's findings.
"""

from __future__ import annotations

import re

from mvla_daemon.devices.machine import Machine
from mvla_daemon.doctor.finding import Finding, note, ok, problem

_UNLIMITED = "unlimited"
_NICE, _LOCK = 23, 14  # CAP_SYS_NICE, CAP_IPC_LOCK in <linux/capability.h>
_LEAST_LOCK_BYTES = 256 << 20
"""All of the gate's address space and 64 MiB to grow."""
_NICEST = 40  # of setrlimit(2): 20 - nice
_RT_SHARE = "/proc/sys/kernel/sched_rt_runtime_us"


def look(machine: Machine) -> list[Finding]:
    """A line for each right, then the kernel's own behaviour."""
    limits = _limits(machine)
    capabilities = _capabilities(machine)
    looked = [
        _fifo(limits, capabilities),
        _lock(limits, capabilities),
        _nice(limits, capabilities),
        _kernel(machine),
        _throttle(machine),
        _group(machine),
    ]
    return [found for found in looked if found is not None]


def _limits(machine: Machine) -> dict[str, str]:
    """The soft limits of this process, by the names that /proc has for them."""
    lines = (machine.text("/proc/self/limits") or "").splitlines()
    found = (re.match(r"(Max .+?)\s{2,}(\S+)", line) for line in lines)
    return {match[1]: match[2] for match in found if match}


def _capabilities(machine: Machine) -> int:
    found = re.search(r"^CapEff:\s*([0-9a-f]+)", machine.text("/proc/self/status") or "", re.MULTILINE)
    return int(found[1], 16) if found else 0


def _reaches(value: str, least: int) -> bool:
    return value == _UNLIMITED or (value.isdigit() and int(value) >= least)


def _fifo(limits: dict[str, str], capabilities: int) -> Finding:
    limit = limits.get("Max realtime priority", "0")
    if capabilities >> _NICE & 1 or _reaches(limit, 80):
        return ok("real time", "SCHED_FIFO is granted")
    text = (
        f"RLIMIT_RTPRIO is {limit}: no SCHED_FIFO, so that others can hold up a STOP for milliseconds; in the unit "
        "LimitRTPRIO=99 grants it"
    )
    return note("real time", text, "sudo prlimit --pid $$ --rtprio=99")


def _lock(limits: dict[str, str], capabilities: int) -> Finding:
    limit = limits.get("Max locked memory", "0")
    if capabilities >> _LOCK & 1 or _reaches(limit, _LEAST_LOCK_BYTES):
        return ok("memory lock", "granted")
    size = f"{int(limit) >> 10} KiB" if limit.isdigit() else limit
    text = f"RLIMIT_MEMLOCK is {size}: pages can be swapped out; in the unit LimitMEMLOCK=infinity grants it"
    return note("memory lock", text, "sudo prlimit --pid $$ --memlock=unlimited")


def _nice(limits: dict[str, str], capabilities: int) -> Finding:
    if capabilities >> _NICE & 1 or _reaches(limits.get("Max nice priority", "0"), _NICEST):
        return ok("precedence", "nice -20 is granted")
    text = (
        "RLIMIT_NICE is too low: on a busy machine pictures and inferences wait for other programs; in the unit "
        "LimitNICE=-20 grants it"
    )
    return note("precedence", text, "sudo prlimit --pid $$ --nice=40")


def _kernel(machine: Machine) -> Finding:
    version = machine.text("/proc/version") or ""
    if machine.number("/sys/kernel/realtime") == 1 or "PREEMPT_RT" in version:
        return ok("kernel", "PREEMPT_RT")
    kind = next((word for word in ("PREEMPT_DYNAMIC", "PREEMPT") if word in version), None)
    if kind is None:
        return note("kernel", "not known to be preemptible, so that its own work can hold a STOP up", "uname -v")
    return ok("kernel", f"{kind}, not PREEMPT_RT: a STOP came within 0.4 ms on such a one, but nothing bounds it")


def _throttle(machine: Machine) -> Finding | None:
    share_us, period_us = machine.number(_RT_SHARE), machine.number("/proc/sys/kernel/sched_rt_period_us")
    if share_us is None:
        return None
    if share_us == 0:
        return problem("rt share", "sched_rt_runtime_us is 0: no real-time thread ever runs", _set(950_000))
    if share_us < 0:
        return ok("rt share", "no bound on real-time threads")
    share = 100 * share_us / (period_us or 1_000_000)
    return ok("rt share", f"real-time threads may have {share:.0f} % of the time")


def _set(share_us: int) -> str:
    return f"sudo sysctl -w kernel.sched_rt_runtime_us={share_us}"


def _group(machine: Machine) -> Finding | None:
    """A control group can refuse SCHED_FIFO (version 1), or put a process to sleep for a share of each 100 ms."""
    lines = [line.split(":", 2) for line in (machine.text("/proc/self/cgroup") or "").splitlines()]
    for _, controllers, place in (line for line in lines if len(line) == 3):
        if "cpu" in controllers.split(","):
            share_us = machine.number(f"/sys/fs/cgroup/cpu{place}/cpu.rt_runtime_us")
            if share_us == 0:
                text = f"the control group {place} has no share of real time, so SCHED_FIFO is refused"
                return problem("cpu quota", text, f"echo 950000 | sudo tee /sys/fs/cgroup/cpu{place}/cpu.rt_runtime_us")
        quota = (machine.text(f"/sys/fs/cgroup{place}/cpu.max") or "").split() if not controllers else []
        if len(quota) == 2 and quota[0].isdigit():
            text = f"the control group {place} is put to sleep after {quota[0]} of each {quota[1]} us"
            return problem("cpu quota", text, f"echo max | sudo tee /sys/fs/cgroup{place}/cpu.max")
    return ok("cpu quota", "none")
