"""Heat and power supply: whether the machine is being slowed down now, or is about to be.

A passive trip point is where the kernel begins to slow processors down (its thermal sysfs API); a cooling device that
is no fan and is at work is just that.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from mvla_daemon.devices.machine import Machine
from mvla_daemon.doctor.finding import Finding, note, ok, problem
from mvla_daemon.engines.jetpack import RELEASE

_NEAR_C = 5.0
_SLOWING = ("throttle-alert", "cpufreq", "devfreq", "Processor", "intel_powerclamp", "hot-surface-alert", "cpu-")
"""Cooling devices that slow something down, by the beginning or the end of their type; the rest are fans."""
_SENSORS = "sensors"


def look(machine: Machine) -> list[Finding]:
    """Temperatures, what slows the machine down, and its power supply."""
    return [*_temperature(machine), *_slowed(machine), *_supply(machine)]


def _temperature(machine: Machine) -> Iterator[Finding]:
    """The zone that is nearest to being slowed down for, or the hottest where no zone has such a point."""
    zones = []
    for folder in machine.glob("/sys/class/thermal/thermal_zone[0-9]*"):
        temperature = _celsius(machine, folder / "temp")
        if temperature is not None:
            zones.append((machine.text(folder / "type") or folder.name, temperature, _passive(machine, folder)))
    if not zones:
        yield ok("temperature", "no sensor that may be read")
        return
    bounded = [(limit - now, name, now, limit) for name, now, limit in zones if limit is not None]
    if not bounded:
        name, now, _ = max(zones, key=lambda zone: zone[1])
        yield ok("temperature", f"{name} {now:.0f} °C, the hottest of {len(zones)} zones")
        return
    room, name, now, limit = min(bounded)
    text = f"{name} {now:.0f} °C, slowed down from {limit:.0f} °C on"
    if room <= 0:
        yield problem("temperature", text, _fan(machine))
    elif room < _NEAR_C:
        yield note("temperature", text, _fan(machine))
    else:
        yield ok("temperature", text)


def _passive(machine: Machine, folder: Path) -> float | None:
    """The lowest passive trip point."""
    limits = []
    for point in folder.glob("trip_point_*_type"):
        if machine.text(point) == "passive":
            limit = _celsius(machine, point.with_name(point.name.replace("_type", "_temp")))
            if limit is not None and limit > 0:
                limits.append(limit)
    return min(limits, default=None)


def _celsius(machine: Machine, path: Path) -> float | None:
    value = machine.number(path)
    return None if value is None else value / 1000


def _slowed(machine: Machine) -> Iterator[Finding]:
    working = []
    for folder in machine.glob("/sys/class/thermal/cooling_device[0-9]*"):
        kind, state = machine.text(folder / "type") or "", machine.number(folder / "cur_state")
        if state is not None and state > 0 and (kind.startswith(_SLOWING) or kind.endswith(_SLOWING)):
            working.append(kind)
    if working:
        yield problem("throttled", f"slowed down for heat now: {', '.join(sorted(set(working)))}", _fan(machine))
        return
    counts = machine.glob("/sys/devices/system/cpu/cpu[0-9]*/thermal_throttle/*_throttle_count")
    times = max((machine.number(path) or 0 for path in counts), default=0)
    if times:
        yield note("throttled", f"not now; {times} times since the start", _fan(machine))
    else:
        yield ok("throttled", "no")


def _supply(machine: Machine) -> Iterator[Finding]:
    """A Jetson counts how often its supply had too little for it (over-current and under-voltage events)."""
    counts = {
        path.name.removesuffix("_event_cnt"): path for path in machine.glob("/sys/class/hwmon/hwmon*/oc*_event_cnt")
    }
    if not counts:
        return
    events = {name: machine.number(path) or 0 for name, path in counts.items()}
    if not any(events.values()):
        yield ok("power supply", "no over-current or under-voltage event since the start")
        return
    seen = ", ".join(f"{name} {times}" for name, times in sorted(events.items()) if times)
    text = (
        f"too weak for what was asked of it, {seen} times since the start, which slows the processors down; take a "
        "stronger supply and thicker wires, or a lower power mode"
    )
    yield problem("power supply", text, "sudo nvpmodel -q")


def _fan(machine: Machine) -> str:
    return "sudo jetson_clocks --fan" if machine.exists(str(RELEASE)) else _SENSORS
