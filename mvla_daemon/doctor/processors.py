"""The processors: how many, how fast, which clock, and what a virtual machine takes from them."""

from __future__ import annotations

import re

from mvla_daemon.devices.machine import Machine
from mvla_daemon.doctor.finding import Finding, note, ok, problem
from mvla_daemon.engines.jetpack import RELEASE

_CPUS = "/sys/devices/system/cpu"
_GOOD_CLOCKS = ("tsc", "arch_sys_counter", "kvm-clock", "hyperv_clocksource_tsc_page")
"""Read without entering the kernel or a device; others take a microsecond and more each time."""
_BUSY_SHARE = 0.8
_STOLEN_SHARE = 0.01
_SELF_SCALING = ("intel_pstate", "amd-pstate-epp")
"""Drivers whose "powersave" still raises the clock under load; elsewhere it stays at the lowest."""


def look(machine: Machine) -> list[Finding]:
    """A line for each property of the processors."""
    looked = [
        _cores(machine),
        _governor(machine),
        _speed(machine),
        _isolation(machine),
        _clock(machine),
        _load(machine),
    ]
    return [found for found in [*looked, _virtual(machine)] if found is not None]


def _cores(machine: Machine) -> Finding:
    online, present = (_count(machine.text(f"{_CPUS}/{name}") or "") for name in ("online", "present"))
    if online == 1:
        text = "one processor: gate and policy process share it, and can hold one another up"
        return note("cores", text, "give the machine two processors or more")
    if online < present:
        text = f"{online} of {present} are switched on"
        fix = "sudo nvpmodel -q" if machine.exists(str(RELEASE)) else f"echo 1 | sudo tee {_CPUS}/cpu*/online"
        return note("cores", text, fix)
    return ok("cores", f"{online} processors")


def _governor(machine: Machine) -> Finding | None:
    folders = machine.glob(f"{_CPUS}/cpu[0-9]*/cpufreq")
    governors = sorted({said for folder in folders if (said := machine.text(folder / "scaling_governor"))})
    if not governors:
        return None
    if governors == ["performance"]:
        return ok("governor", "performance")
    on_jetson = machine.exists(str(RELEASE))
    fix = "sudo jetson_clocks" if on_jetson else f"echo performance | sudo tee {_CPUS}/cpu*/cpufreq/scaling_governor"
    names = ", ".join(governors)
    driver = machine.text(folders[0] / "scaling_driver")
    if "powersave" in governors and driver not in _SELF_SCALING:
        return problem("governor", f"{names}: the processors stay at their lowest clock", fix)
    return note("governor", f"{names}: the clock falls between two cycles, which costs punctuality", fix)


def _speed(machine: Machine) -> Finding | None:
    """What the clocks are now, and whether somebody has set a bound below what the processor can do."""
    folders = machine.glob(f"{_CPUS}/cpu[0-9]*/cpufreq")
    now, allowed, able = (
        [value for folder in folders if (value := machine.number(folder / name)) is not None]
        for name in ("scaling_cur_freq", "scaling_max_freq", "cpuinfo_max_freq")
    )
    if not now or not allowed or not able:
        return None
    text = (
        f"{min(now) / 1000:.0f} to {max(now) / 1000:.0f} MHz now"
        if min(now) < max(now)
        else f"{now[0] / 1000:.0f} MHz now"
    )
    if min(allowed) < min(able):
        bound = f"{text}; bounded to {min(allowed) / 1000:.0f} MHz where {min(able) / 1000:.0f} are possible"
        if machine.exists(str(RELEASE)):
            return note("clock speed", f"{bound} (by the power mode?)", "sudo nvpmodel -q")
        return note("clock speed", bound, "sudo cpupower frequency-set -u max")
    return ok("clock speed", f"{text}, {min(able) / 1000:.0f} MHz possible")


def _isolation(machine: Machine) -> Finding:
    isolated = machine.text(f"{_CPUS}/isolated")
    if isolated:
        return ok("isolation", f"processors {isolated} are kept free; the daemon runs there only if started there")
    return ok("isolation", "none, which the daemon does not need")


def _clock(machine: Machine) -> Finding | None:
    folder = "/sys/devices/system/clocksource/clocksource0"
    name = machine.text(f"{folder}/current_clocksource")
    if name is None:
        return None
    if name in _GOOD_CLOCKS:
        return ok("time from", name)
    available = (machine.text(f"{folder}/available_clocksource") or "").split()
    better = next((clock for clock in _GOOD_CLOCKS if clock in available), None)
    text = f"{name}, which is slow to read; the kernel has none better, or has given it up"
    if better is None:
        return note("time from", text, "sudo dmesg | grep -i clocksource")
    return problem("time from", text, f"echo {better} | sudo tee {folder}/current_clocksource")


def _load(machine: Machine) -> Finding | None:
    words = (machine.text("/proc/loadavg") or "").split()
    cores = _count(machine.text(f"{_CPUS}/online") or "")
    try:
        load = float(words[0])
    except (IndexError, ValueError):
        return None
    if load > _BUSY_SHARE * cores:
        return note("load", f"{load:g} over the last minute, on {cores} processors", "top -o %CPU")
    return ok("load", f"{load:g} over the last minute")


def _virtual(machine: Machine) -> Finding | None:
    """Whether this is a virtual machine, and what share of its time went to others since it was started."""
    found = re.match(r"cpu((?: +\d+){8})", machine.text("/proc/stat") or "")
    ticks = [int(word) for word in found[1].split()] if found else [0] * 8
    stolen = ticks[7] / max(sum(ticks), 1)  # the eighth is "steal", proc(5)
    is_virtual = " hypervisor" in (machine.text("/proc/cpuinfo") or "") or machine.exists("/sys/hypervisor/type")
    if stolen > _STOLEN_SHARE:
        text = f"a virtual machine; {100 * stolen:.1f} % of its time was taken by others"
        return problem("virtual", text, "give it processors of its own (pin them on the host)")
    if is_virtual:
        text = f"a virtual machine; {100 * stolen:.2f} % of its time was taken by others, as far as its host admits"
        return note("virtual", text, "mvla-daemon --config FILE bench --null     # how often it stands still")
    return ok("virtual", "no")


def _count(cpus: str) -> int:
    """How many processors a list such as 0-3,6 has; 1 where it cannot be read."""
    total = 0
    for part in cpus.split(","):
        first, _, last = part.partition("-")
        if first.isdigit():
            total += int(last or first) - int(first) + 1
    return max(total, 1)
