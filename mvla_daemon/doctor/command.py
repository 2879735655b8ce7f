"""Looks at everything at once, each group on a thread of its own, so that one that hangs keeps none of the others."""

from __future__ import annotations

import os
import queue
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeAlias

from mvla_daemon.devices.machine import Machine
from mvla_daemon.doctor import (
    equipment,
    heat,
    jetson,
    memory,
    processors,
    report,
    rights,
    services,
    settings,
    software,
)
from mvla_daemon.doctor.finding import Finding, note
from mvla_daemon.errors import ExitCode

Look: TypeAlias = Callable[[Machine], list[Finding]]
LOOK_S = 40.0
"""Longer than the slowest probe is given."""
GROUPS: Mapping[str, Look] = {
    "Software": software.look,
    "Jetson": jetson.look,
    "Processors": processors.look,
    "Heat and power": heat.look,
    "Memory and disk": memory.look,
    "Rights": rights.look,
    "Services": services.look,
    "Cameras": equipment.look_at_cameras,
    "Serial ports": equipment.look_at_ports,
}


def run(config: Path | None, overrides: Sequence[str], *, as_json: bool) -> ExitCode:
    """Print what was found; OK whatever that is, since it could be looked at."""
    groups = dict(GROUPS)
    if config is not None:
        groups["Configuration"] = settings.look_with(config, overrides)
    found = examine(Machine(), groups)
    text = report.as_json(found) if as_json else report.as_text(found)
    print(text, flush=True)  # noqa: T201 - the answer
    return ExitCode.OK


def examine(machine: Machine, groups: Mapping[str, Look], within_s: float = LOOK_S) -> dict[str, list[Finding]]:
    """What each group finds; one that gives no answer in time is said to have given none, and left alone."""
    answers: dict[str, queue.SimpleQueue[list[Finding]]] = {}
    for name, look in groups.items():
        answers[name] = queue.SimpleQueue()
        threading.Thread(target=_answer, args=(look, machine, answers[name]), daemon=True).start()
    end_s = time.monotonic() + within_s
    return {name: _awaited(name, answer, end_s) for name, answer in answers.items()}


def _answer(look: Look, machine: Machine, answer: queue.SimpleQueue[list[Finding]]) -> None:
    try:
        answer.put(look(machine))
    except Exception as error:  # noqa: BLE001 - one organ that cannot be looked at must not hide all others; it is told
        if os.environ.get("MVLA_TRACEBACK"):
            traceback.print_exc()
        text = f"could not be looked at ({type(error).__name__}: {error}); please report this line"
        answer.put([note("doctor", text, "MVLA_TRACEBACK=1 mvla-daemon doctor")])


def _awaited(name: str, answer: queue.SimpleQueue[list[Finding]], end_s: float) -> list[Finding]:
    try:
        return answer.get(timeout=max(0.0, end_s - time.monotonic()))
    except queue.Empty:
        return [note("doctor", f"{name} gave no answer in time: a driver that hangs?", "sudo dmesg | tail -50")]
