"""Memory, swap, and the room on the disk where engines and hashes are kept."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mvla_daemon.devices.machine import Machine
from mvla_daemon.doctor.finding import Finding, note, ok, problem
from mvla_daemon.engines.files import cache_folder

_MIB = 1024  # /proc/meminfo counts in KiB
_LEAST_FREE_MIB = 512
"""The daemon's processes take 250 MiB with a small policy."""
_LEAST_ROOM_MIB, _FAIR_ROOM_MIB = 64, 2048
"""Hashes need kilobytes, a TensorRT engine up to the size of its model."""


def look(machine: Machine) -> list[Finding]:
    """What is left of memory and disk."""
    facts = {name: int(value) for name, value in re.findall(r"(\w+):\s+(\d+)", machine.text("/proc/meminfo") or "")}
    return [*_memory(facts), *_cache(machine)]


def _memory(facts: dict[str, int]) -> list[Finding]:
    if "MemTotal" not in facts or "MemAvailable" not in facts:
        return [note("memory", "/proc/meminfo cannot be read", "sudo mount -t proc proc /proc")]
    total_mib, free_mib = facts["MemTotal"] // _MIB, facts["MemAvailable"] // _MIB
    text = f"{free_mib} of {total_mib} MiB available"
    memory = ok("memory", text)
    if free_mib < _LEAST_FREE_MIB:
        memory = problem("memory", f"{text}: end what is not needed", "ps -eo rss,pid,comm --sort=-rss | head")
    swap_mib = facts.get("SwapTotal", 0) // _MIB
    used_mib = swap_mib - facts.get("SwapFree", 0) // _MIB
    if used_mib > swap_mib // 4 and used_mib > 64:
        swap = note(
            "swap", f"{used_mib} of {swap_mib} MiB in use: memory is short", "ps -eo rss,comm --sort=-rss | head"
        )
    else:
        swap = ok("swap", f"{used_mib} of {swap_mib} MiB in use" if swap_mib else "none")
    return [memory, swap]


def _cache(machine: Machine) -> list[Finding]:
    try:
        folder = Path(os.environ.get("CACHE_DIRECTORY", "").split(":")[0] or cache_folder())
    except RuntimeError:
        return [
            problem("cache", "no home folder is known, so nothing can be kept", "export XDG_CACHE_HOME=/var/tmp/$USER")
        ]
    there = machine.path(str(folder))
    while not os.path.isdir(there) and there != machine.root:  # noqa: PTH112 - Path.is_dir raises where it is closed
        there = there.parent
    try:
        about = os.statvfs(there)
    except OSError as error:
        return [note("cache", f"{folder} cannot be looked at ({error.strerror})", f"ls -ld {folder}")]
    room_mib = about.f_bavail * about.f_frsize >> 20
    text = f"{room_mib} MiB free for {folder}"
    if not os.access(there, os.W_OK, effective_ids=True):
        text = f"{folder} may not be written by this user, so engines and hashes are made anew at every start"
        return [note("cache", text, "export XDG_CACHE_HOME=/var/tmp/$USER")]
    if room_mib < _LEAST_ROOM_MIB:
        return [problem("cache", text, f"du -xh --max-depth=1 {machine.name(there)} | sort -h")]
    if room_mib < _FAIR_ROOM_MIB:
        return [note("cache", f"{text}; a large engine may not fit", f"du -xh --max-depth=1 {machine.name(there)}")]
    return [ok("cache", text)]
