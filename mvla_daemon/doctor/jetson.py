"""A Jetson's release, power mode and GPU clocks; on any other machine one line that says it is none.

Which mode is the fastest depends on the module: MAXN_SUPER, else MAXN, has other numbers on each of them.
"""

from __future__ import annotations

import re
from pathlib import Path

from mvla_daemon.devices.machine import Machine
from mvla_daemon.doctor.finding import Finding, note, ok, problem
from mvla_daemon.engines.jetpack import RELEASE, jetpack_release

_JETPACKS = {"R35": "JetPack 5", "R36": "JetPack 6", "R38": "JetPack 7"}
_OLDEST = (36, 4)
"""Jetson Linux of JetPack 6.1, the first with TensorRT 10.3."""
_STATUS = "/var/lib/nvpmodel/status"
_MODES = "/etc/nvpmodel.conf"
_MODE = re.compile(r"<\s*POWER_MODEL\s+ID=(\d+)\s+NAME=(\S+)\s*>")
_UNBOUNDED = ("MAXN_SUPER", "MAXN")


def look(machine: Machine) -> list[Finding]:
    """All that is a Jetson's own."""
    release = jetpack_release(machine.path(str(RELEASE)))
    model = machine.text("/proc/device-tree/model")
    if release is None:
        return [ok("release", f"no Jetson{f' ({model})' if model else ''}")]
    return [_release(release, model), *_power(machine), *_gpu_clock(machine)]


def _release(release: str, model: str | None) -> Finding:
    text = f"{model or 'unknown module'}, Jetson Linux {release}"
    if package := _JETPACKS.get(release.split(".", maxsplit=1)[0]):
        text += f" ({package})"
    numbers = tuple(int(part) for part in re.findall(r"\d+", release)[:2])
    if numbers < _OLDEST:
        return problem("release", f"{text}: too old for TensorRT 10.3", "install JetPack 6.1 or newer (SDK Manager)")
    return ok("release", text)


def _power(machine: Machine) -> list[Finding]:
    modes = {int(number): name for number, name in _MODE.findall(machine.text(_MODES) or "")}
    number, name = _present_mode(machine, modes)
    if number is None:
        return [note("power mode", "unknown: nvpmodel has written none", "sudo nvpmodel -q")]
    fastest = next((at for wanted in _UNBOUNDED for at, known in modes.items() if known == wanted), number)
    if fastest == number:
        return [ok("power mode", f"{name} ({number})")]
    text = f"{name} ({number}) slows the processors; {modes[fastest]} does not, and needs power and cooling for it"
    return [note("power mode", text, f"sudo nvpmodel -m {fastest}")]


def _present_mode(machine: Machine, modes: dict[int, str]) -> tuple[int | None, str]:
    """From the file in which nvpmodel keeps its mode, else from itself."""
    found = re.search(r"pmode:(\d+)", machine.text(_STATUS) or "")
    if found:
        number = int(found[1])
        return number, modes.get(number, "unnamed")
    asked = re.search(r"NV Power Mode:\s*(\S+)\s+(\d+)", machine.run("nvpmodel", "-q") or "")
    return (int(asked[2]), asked[1]) if asked else (None, "")


def _gpu_clock(machine: Machine) -> list[Finding]:
    folders = [*machine.glob("/sys/class/devfreq/*.gpu"), *machine.glob("/sys/class/devfreq/*.ga10b")]
    folders += [path for path in machine.glob("/sys/class/devfreq/gpu-*") if "gpc" in path.name]  # JetPack 7 on Thor
    return [found for folder in folders[:1] if (found := _clock(machine, folder)) is not None]


def _clock(machine: Machine, folder: Path) -> Finding | None:
    least, most, now = (machine.number(folder / f"{name}_freq") for name in ("min", "max", "cur"))
    if least is None or most is None or now is None:
        return None
    text = f"{now / 1e6:.0f} MHz now, {least / 1e6:.0f} to {most / 1e6:.0f} MHz"
    if least < most:
        return note("gpu clock", f"{text}: it falls when idle, and the next inference is slower", "sudo jetson_clocks")
    return ok("gpu clock", f"{text}, held there")
