"""What a process has asked the operating system for, what it got, and how to grant the rest: one record for people."""

from __future__ import annotations

import os
import resource
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from mvla_daemon.ops.telemetry import Telemetry


@dataclass(frozen=True, slots=True)
class _Wish:
    """One setting: what it is called, what happens without it, and how it is granted in systemd's unit or a shell.

    `limit` is the resource limit that decides on it (setrlimit(2)), if any.
    """

    name: str
    lost: str
    unit: str
    shell: str
    limit: str = ""


_WISHES = {
    "fifo": _Wish(
        "real-time scheduling",
        "other programs can hold it up for many milliseconds",
        "LimitRTPRIO=99",
        "sudo prlimit --pid $$ --rtprio=99",
        "RLIMIT_RTPRIO",
    ),
    "memory": _Wish(
        "locked memory",
        "a page that was swapped out can hold it up for as long as the disk takes",
        "LimitMEMLOCK=infinity",
        "sudo prlimit --pid $$ --memlock=unlimited",
        "RLIMIT_MEMLOCK",
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
        "RLIMIT_NICE",
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
_NICEST = 40  # of setrlimit(2): 20 - nice
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


@dataclass(frozen=True, slots=True)
class Around:
    """What there is around a process that decides how something can be granted to it.

    `limits` are its soft limits by name; `is_service`: systemd has started it, or its parent, as a unit.
    """

    limits: Mapping[str, int]
    processors: int
    is_service: bool

    @classmethod
    def this_process(cls) -> Around:
        """As it is now."""
        names = [wish.limit for wish in _WISHES.values() if wish.limit]
        limits = {name: resource.getrlimit(getattr(resource, name))[0] for name in names}
        return cls(limits, os.cpu_count() or 1, is_service(os.environ, {os.getpid(), os.getppid()}))


def is_service(environ: Mapping[str, str], pids: Collection[int]) -> bool:
    """Whether systemd has started one of `pids`, a process and its parent (systemd.exec(5)).

    Where a desktop's terminal is a unit, its shells have the first variable too, but not the second with their number.
    """
    started = environ.get("SYSTEMD_EXEC_PID")
    return "INVOCATION_ID" in environ and (started is None or started in map(str, pids))


class Grants:
    """What one process ("gate" or "policy") has asked for; `fields` has an entry for each, "granted" or why not.

    `fifo_priority` is what it asks for of SCHED_FIFO, None for nothing.
    """

    def __init__(self, process: str, fifo_priority: int | None) -> None:
        self._process = process
        self._enough = {"fifo": fifo_priority or 0, "precedence": _NICEST}
        self._around = Around.this_process()
        self.fields: dict[str, str] = {}

    def note(self, field: str, refusal: str = "") -> None:
        """One more setting; `refusal` is what the operating system said, if it was not granted."""
        self.fields[field] = f"refused: {_joined(refusal, self._how_to_grant([field]))}" if refusal else "granted"

    def off(self, field: str, why: str) -> None:
        """A setting that the configuration does not ask for."""
        self.fields[field] = f"off: {why}"

    def tell(self, telemetry: Telemetry) -> None:
        """One record of all of it."""
        refused = [field for field, said in self.fields.items() if said.startswith("refused")]
        granted = [_GRANTED[self._process][field] for field, said in self.fields.items() if said == "granted"]
        text = f"real time, {self._process}: {', '.join(granted) or 'nothing granted'}"
        if refused:
            lost = [f"no {_WISHES[field].name} ({_WISHES[field].lost})" for field in refused]
            text += f". Stops still come, but less punctually: {_joined(*lost, self._how_to_grant(refused))}"
        level = "warning" if refused else "info"
        telemetry.event("realtime", text, level, process=self._process, pid=os.getpid(), **self.fields)

    def _how_to_grant(self, refused: Sequence[str]) -> str:
        return how_to_grant({field: self._enough.get(field) for field in refused}, self._around)


def how_to_grant(refused: Mapping[str, int | None], around: Around) -> str:
    """What to do about fields that were refused, or who withholds them; "" where nothing can be done.

    For each field there is how high its limit has to be; None: unlimited, if it has one.
    """
    fields = [field for field in refused if field != "affinity" or around.processors > 1]
    withheld = [_WISHES[field] for field in fields if _allows(around.limits.get(_WISHES[field].limit), refused[field])]
    missing = [_WISHES[field] for field in fields if _WISHES[field] not in withheld]
    ways = []
    if missing and around.is_service:
        units = " ".join(wish.unit for wish in missing)
        ways.append(f"to grant it, set {units} in the unit; where the unit has it, a container withholds it")
    elif missing:
        ways.append(f"to grant it, say `{'; '.join(wish.shell for wish in missing)}` in the shell before the start")
    if withheld:
        limits = " and ".join(f"{wish.limit} is {_said(around.limits[wish.limit])}" for wish in withheld)
        ways.append(f"{limits}, which is enough: a container or the kernel's settings withhold it")
    return _joined(*ways)


def _allows(limit: int | None, enough: int | None) -> bool:
    return limit == resource.RLIM_INFINITY or (limit is not None and enough is not None and limit >= enough)


def _said(limit: int) -> str:
    return "unlimited" if limit == resource.RLIM_INFINITY else str(limit)


def _joined(*parts: str) -> str:
    return "; ".join(filter(None, parts))
