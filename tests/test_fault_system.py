"""Faults of the machine around the daemon: its clocks, its readers, its users, its end; judged at the far end."""

from __future__ import annotations

import itertools
import json
import os
import signal
import socket
import time
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from mvla_daemon.config_load import load_config
from mvla_daemon.core.messages import Velocity
from mvla_daemon.sim.layout import make_room
from mvla_daemon.sim.lockstep import Lockstep, Unheard
from tests.proving import (
    DEADLINE_MISSED,
    INTERNAL,
    SHUTDOWN,
    SUSPENDED,
    Proving,
    drives_on,
    first_reason,
    latched,
    provoke,
    stop_record,
    tried,
)
from tests.rig import PATIENCE_S, ROOT, GroundRig, Rig, freeze, reasons, thaw
from tests.wire import decode_stream

SECOND = 1_000_000_000
YEAR = 365 * 24 * 3600 * SECOND


def test_a_wall_clock_that_jumps_by_a_year_changes_nothing(ground: GroundRig, proving: Proving) -> None:
    for jump_ns in (YEAR, -YEAR, 0):
        drives_on(ground, partial(proving.clocks.set_wall, jump_ns))


def test_after_a_suspension_nothing_is_written_before_the_stop(ground: GroundRig, proving: Proving) -> None:
    freeze(ground.pid)  # asleep, with the policy process
    pid = ground.policy_pid()
    freeze(pid)
    ground.wait_until(lambda: _is_frozen(ground.pid), "sleep")
    proving.clocks.suspend(3600 * SECOND)
    thaw(pid)
    told = len(ground.statuses())
    ground.wait_until(lambda: len(ground.statuses()) > told, "STATUS")  # whatever was on the line has been read
    before = len(ground.read_wire())
    thaw(ground.pid)
    ground.wait_for("STOP", after=before)
    assert ground.read_wire()[before].kind == "STOP"
    assert latched(ground) == "suspended"
    assert reasons(ground, before) == [SUSPENDED]


def test_a_gate_that_wakes_late_has_missed_a_deadline_and_no_more(ground: GroundRig) -> None:
    """Late by less than ten periods, which are half a second here; what is older than that is the gate's own fault."""

    told = 0

    def nap() -> None:
        nonlocal told
        told = len(ground.events("stop"))
        freeze(ground.pid)
        time.sleep(0.15)
        thaw(ground.pid)

    provoke(ground, nap, DEADLINE_MISSED)
    assert stop_record(ground, told)["reason"] == "deadline_missed"


def _is_frozen(pid: int) -> bool:
    return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "T"


def test_fifty_clients_at_once_are_answered_or_refused_and_the_drive_goes_on(ground: GroundRig) -> None:
    answered = turned_away = 0

    def crowd() -> None:
        nonlocal answered, turned_away
        for _ in range(2):
            told_off = crowd_in(ground)
            answered += told_off[0]
            turned_away += told_off[1]

    drives_on(ground, crowd)
    assert answered > 4
    assert answered + turned_away >= 40
    ground.wait_until(lambda: ground.ask("status")["ok"], "free desk")


def crowd_in(rig: GroundRig) -> tuple[int, int]:
    """Fifty clients: some ask, some of whom do not read, and some never ask; how many were answered and turned away."""
    path = str(next((rig.folder / "run").glob("*.sock")))
    answered = turned_away = 0
    with ExitStack() as stack:
        clients = [stack.enter_context(socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)) for _ in range(50)]
        asked = []
        for number, client in enumerate(clients):
            client.setblocking(False)
            try:
                client.connect(path)
                if number % 5:  # the others are half open: they never ask
                    client.send(b"arm" if number % 2 else b"status")
                    asked.append(client)
            except OSError:
                turned_away += 1
        for client in asked[::2]:  # and the others never read
            client.settimeout(PATIENCE_S)
            try:
                answer: dict[str, Any] = json.loads(client.recv(8192) or b"null") or {}
            except OSError:
                answer = {}
            answered += bool(answer)
            turned_away += not answer
            if answer and not answer["ok"]:
                assert "armed already" in answer["text"] or rig.ask("status")["state"] != "armed"
    return answered, turned_away


def test_nobody_who_reads_is_needed_and_what_nobody_reads_is_counted(ground: GroundRig) -> None:
    """The reporter frozen, then gone with everybody who read from it; and a client that never reads its answer."""
    reporter = next(pid for pid in children(ground.pid) if "ops.reporter" in Path(f"/proc/{pid}/cmdline").read_text())
    freeze(reporter)
    with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as mute:
        mute.connect(str(next((ground.folder / "run").glob("*.sock"))))
        mute.send(b"status")
        drives_on_unheard(ground)
    dropped = ground.ask("status")["dropped_records"]
    os.kill(reporter, signal.SIGKILL)
    drives_on_unheard(ground)
    assert ground.ask("status")["dropped_records"] > dropped
    before = len(ground.read_wire())
    os.kill(ground.pid, signal.SIGTERM)
    assert ground.wait() == 0
    assert reasons(ground, before)[-1] == SHUTDOWN


def drives_on_unheard(rig: GroundRig) -> None:
    """Without `drives_on`, which reads the log between two tries."""

    def attempt(before: int) -> int | None:
        rig.wait_until(lambda: len(rig.read_wire()) >= before + 4, "commands")
        return first_reason(rig, before)

    rig.arm()
    _, stopped_for = tried(rig, attempt, again=Rig.arm)
    assert stopped_for is None


def children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


class Broken(Unheard):
    """Telemetry that fails as the end is told of."""

    def event(self, name: str, message: str, level: str = "info", /, **fields: Any) -> None:
        super().event(name, message, level, **fields)
        if fields.get("reason") == "shutdown":
            raise RuntimeError("the log is broken")


def test_an_error_during_the_shutdown_comes_after_the_stop_and_still_waits_for_standstill() -> None:
    config = load_config(ROOT / "config.toml", ("safety.recover_cycles=2",))
    room = make_room(3)
    drive = Lockstep(config, room, None, lambda _: Velocity(0.3), telemetry=Broken(), longest_ns=SECOND)
    with pytest.raises(RuntimeError, match="the log is broken"):
        drive.run()
    wire = decode_stream(bytes(drive.port.written))
    kinds = [kind for kind, _ in itertools.groupby(frame.kind for frame in wire)]
    assert kinds[-2:] == ["VELOCITY", "STOP"]
    said = [frame.number("reason") for frame in wire if frame.kind == "STOP"]
    assert [reason for reason, _ in itertools.groupby(said)] == [SHUTDOWN, INTERNAL]
    assert drive.robot.controller.velocity == Velocity()
