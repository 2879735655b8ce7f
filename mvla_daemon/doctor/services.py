"""The systemd unit, the journal, and other programs that are known to grab serial ports."""

from __future__ import annotations

from collections.abc import Iterator

from mvla_daemon.devices.machine import Machine
from mvla_daemon.doctor.finding import Finding, note, ok, problem
from mvla_daemon.ops.journal import SOCKET

UNIT = "mvla-daemon.service"
_ASKED = (
    "LoadState",
    "ActiveState",
    "SubState",
    "UnitFileState",
    "Result",
    "ExecMainStatus",
    "NRestarts",
    "LimitRTPRIO",
)
_GRABBERS = {
    "brltty": problem("brltty", "runs: it takes USB serial adapters (CH340, CP210x)", "sudo apt remove brltty"),
    "ModemManager": note(
        "ModemManager",
        "runs: it may talk to a serial device that was just plugged in, to see whether it is a modem",
        "sudo systemctl disable --now ModemManager",
    ),
    "nvgetty": note(
        "nvgetty",
        "keeps a login on the Jetson's own serial port (ttyTHS): not with motors there",
        "sudo systemctl disable --now nvgetty",
    ),
}
_BRLTTY_RULES = "/usr/lib/udev/rules.d/*brltty*"


def look(machine: Machine) -> list[Finding]:
    """The service, its journal, and who else is after the port."""
    return [*_unit(machine), *_journal(machine), *_grabbers(machine)]


def _unit(machine: Machine) -> Iterator[Finding]:
    if not machine.exists("/run/systemd/system"):
        yield ok("unit", "systemd does not run here")
        return
    said = machine.run("systemctl", "show", UNIT, "--no-pager", *(f"--property={name}" for name in _ASKED))
    if said is None:
        yield note("unit", "systemctl does not answer", f"systemctl status {UNIT}")
        return
    facts = dict(line.split("=", 1) for line in said.splitlines() if "=" in line)
    if facts.get("LoadState") != "loaded":
        yield ok("unit", "not installed; the daemon is started by hand")
        return
    state = f"{facts.get('ActiveState')} ({facts.get('SubState')}), {facts.get('UnitFileState') or 'not enabled'}"
    restarts = facts.get("NRestarts", "0")
    text = f"{state}, last exit {facts.get('ExecMainStatus')} ({facts.get('Result')}), {restarts} restarts"
    if facts.get("ActiveState") == "failed" or facts.get("Result") not in {"success", None, ""}:
        yield problem("unit", text, f"journalctl -u {UNIT} -n 50")
    else:
        yield ok("unit", text)
    if facts.get("LimitRTPRIO") in {"0", "1"}:
        yield note("unit limits", "the unit grants no SCHED_FIFO; LimitRTPRIO=99 does", f"sudo systemctl edit {UNIT}")


def _journal(machine: Machine) -> Iterator[Finding]:
    if not machine.exists(SOCKET):
        yield ok("journal", "none here; the log goes to standard error")
    elif machine.exists("/var/log/journal"):
        yield ok("journal", "kept across starts")
    else:
        fix = "sudo mkdir -p /var/log/journal && sudo systemctl restart systemd-journald"
        yield note("journal", "lost at every start of the machine, and with it why the robot stopped", fix)


def _grabbers(machine: Machine) -> Iterator[Finding]:
    """By the processes' names; nvgetty is a script that becomes a getty on ttyTHS."""
    running = set()
    for process in machine.glob("/proc/[0-9]*"):
        name = machine.text(process / "comm") or ""
        if name in {"agetty", "getty"} and "ttyTHS" in (machine.text(process / "cmdline") or ""):
            name = "nvgetty"
        running.add(name)
    found = [_GRABBERS[name] for name in _GRABBERS if name in running]
    if "brltty" not in running and machine.glob(_BRLTTY_RULES):
        text = "installed: it takes some USB serial adapters (CH340, CP210x) when they are plugged in"
        found.append(note("brltty", text, "sudo apt remove brltty"))
    yield from found or [ok("grabbers", f"none of {', '.join(_GRABBERS)}")]
