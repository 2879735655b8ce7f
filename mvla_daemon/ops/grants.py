"""What a process has asked the operating system for, what it got, and how to grant the rest: one record for people."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

from mvla_daemon.ops.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class _Wish:
    """One setting: what it is called, what happens without it, and how it is granted in systemd's unit or a shell."""

    name: str
    lost: str
    unit: str
    shell: str


_WISHES = {
    "fifo": _Wish(
        "real-time scheduling",
        "other programs can hold it up for many milliseconds",
        "LimitRTPRIO=99",
        "sudo prlimit --pid $$ --rtprio=99",
    ),
    "memory": _Wish(
        "locked memory",
        "a page that was swapped out can hold it up for as long as the disk takes",
        "LimitMEMLOCK=infinity",
        "sudo prlimit --pid $$ --memlock=unlimited",
    ),
    "affinity": _Wish(
        "processor of its own",
        "gate and policy process can hold one another up",
        "AllowedCPUs=0-1",
        "sudo taskset --cpu-list --pid 0-1 $$",
    ),
    "precedence": _Wish(
        "precedence over ordinary programs",
        "on a busy machine pictures and inferences wait for other programs",
        "LimitNICE=-20",
        "sudo prlimit --pid $$ --nice=40",
    ),
    "oom": _Wish(
        "protection when memory runs out",
        "the gate can be killed, and only the controller's watchdog stops the robot",
        "OOMScoreAdjust=-1000",
        "sudo choom --adjust -1000 --pid $$",
    ),
    "timer_slack": _Wish(
        "exact timers", "each wait can end 50 us late", "TimerSlackNSec=1", "echo 1 | sudo tee /proc/$$/timerslack_ns"
    ),
}
_ALIKE = {
    "fifo": "SCHED_FIFO",
    "memory": "memory locked",
    "garbage": "garbage collector frozen",
    "parent_death": "ends with the gate",
    "timer_slack": "exact timers",
    "precedence": "before ordinary programs",
}
_GRANTED = {
    "gate": {**_ALIKE, "affinity": "a processor to itself", "oom": "never killed for memory"},
    "policy": {**_ALIKE, "affinity": "off the gate's processor", "oom": "first to be killed for memory"},
}


class Grants:
    """What one process ("gate" or "policy") has asked for; `fields` has an entry for each, "granted" or why not."""

    def __init__(self, process: str) -> None:
        self._process = process
        self.fields: dict[str, str] = {}

    def note(self, field: str, refusal: str = "") -> None:
        """One more setting; `refusal` is what the operating system said, if it was not granted."""
        self.fields[field] = f"refused: {refusal}; {_how_to_grant([_WISHES[field]])}" if refusal else "granted"

    def off(self, field: str, why: str) -> None:
        """A setting that the configuration does not ask for."""
        self.fields[field] = f"off: {why}"

    def tell(self, telemetry: Telemetry) -> None:
        """One record of all of it."""
        refused = [_WISHES[field] for field, said in self.fields.items() if said.startswith("refused")]
        granted = [_GRANTED[self._process][field] for field, said in self.fields.items() if said == "granted"]
        text = f"real time, {self._process}: {', '.join(granted) or 'nothing granted'}"
        if refused:
            lost = "; ".join(f"no {wish.name} ({wish.lost})" for wish in refused)
            text += f". Stops still come, but less punctually: {lost}; {_how_to_grant(refused)}"
        level = "warning" if refused else "info"
        telemetry.event("realtime", text, level, process=self._process, pid=os.getpid(), **self.fields)


def _how_to_grant(wishes: Sequence[_Wish]) -> str:
    units, shells = " ".join(wish.unit for wish in wishes), "; ".join(wish.shell for wish in wishes)
    return f"to grant it, set {units} in the unit, or say `{shells}` in the shell before the start"
