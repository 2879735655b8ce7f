"""The daemon in a virtual machine, its motor controller at the far end of the line on this one."""

from __future__ import annotations

import io
import json
import shlex
import tarfile
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tests.os.able import cannot
from tests.os.image.recipe import RecipeError
from tests.os.machine import Machine, started_from_snapshot, why_impossible
from tests.rig import ROOT, Pace, Rig, Scene, Timed, reasons

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator

    from typing_extensions import Self

PATIENCE_S = 90.0
PACE = Pace(rate_hz=5, deadline_ms=200, max_frame_age_ms=1000, watchdog_ms=1000)
"""What a translated processor can keep up with, also beside other programs."""
DEADLINE_MISSED, FRAME_STALE, FRAME_FROZEN, CAMERA_LOST = range(1, 5)
POLICY_LOST, CONTROLLER_LOST, CONTROLLER_FAULT, SHUTDOWN, PORT_LOST = 7, 10, 12, 14, 17
BUSY = {DEADLINE_MISSED, FRAME_STALE, CAMERA_LOST, POLICY_LOST, CONTROLLER_LOST, CONTROLLER_FAULT}
"""What comes of a machine that others keep from running for a tenth of a second and more."""
TRIES = 4
NEUTRAL = "percentage_of_dropped_buffers=0,test_pattern=21,osd_text_mode=2,timestamp_source=1"
"""Noise, of which no two pictures are alike, without words; each with the time at which it began."""
VIVID = "/sys/bus/platform/drivers/vivid"
PLACE = "/opt/mvla"
HOME = "/home/robot"
RUN = "/run/mvla"
CONFIG = """\
[control]
rate_hz = {pace.rate_hz}
deadline_ms = {pace.deadline_ms}
max_frame_age_ms = {pace.max_frame_age_ms}

[camera]
source = "/dev/video0"
width = 320
height = 180
fps = 10
frozen_after_ms = 2000

[policy]
manifest = "{manifest}"

[motor]
port = "{port}"
baud = 115200
watchdog_ms = {pace.watchdog_ms}
identify_timeout_s = 45

[safety]
arm = "auto"
recover_cycles = 2
max_stops = 1000
policy_dead_after_ms = 10000

[log]
format = "json"
"""
AS_ROBOT = (
    "prlimit --rtprio=99 --memlock=unlimited --nice=40 setpriv --reuid=robot --regid=robot --init-groups "
    f"env -i PATH=/usr/bin:/bin HOME={HOME} PYTHONPATH={PLACE} RUNTIME_DIRECTORY={RUN} PYTHONUNBUFFERED=1"
)
"""As the user that a unit would run it as: no more rights than groups and limits give."""


@contextmanager
def machine_with_daemon(folder: Path, policy: Path) -> Iterator[Machine]:
    """A machine with the package of this checkout, a policy (a manifest and its model) and a camera."""
    if why := why_impossible():
        cannot(why)
    try:
        machine = started_from_snapshot(folder)
    except RecipeError as error:
        cannot(str(error))
    model = policy.with_suffix(".onnx")
    with machine:
        machine.run(
            f"mkdir -p {PLACE} {RUN} && tar -xzC {PLACE} && chown -R robot:robot {PLACE} {RUN}",
            _tar({ROOT / "mvla_daemon": "mvla_daemon", policy: policy.name, model: model.name}),
        )
        machine.run("modprobe vivid n_devs=1 node_types=0x1 num_inputs=1 input_types=0 && udevadm settle")
        repair_camera(machine)
        yield machine


def repair_camera(machine: Machine) -> None:
    """The camera is plugged in, under whatever number, and gives its pictures."""
    machine.run(
        f"test -e {VIVID}/vivid.0 || echo vivid.0 >{VIVID}/bind; udevadm settle; "
        f"v4l2-ctl -d /dev/v4l/by-path/platform-vivid.0-video-index0 -c {NEUTRAL}"
    )


def unplug_camera(machine: Machine) -> None:
    """As it is when a cable is pulled: reads fail, and the node is gone."""
    machine.run(f"echo vivid.0 >{VIVID}/unbind")


def _tar(members: dict[Path, str]) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz", compresslevel=1) as tar:
        for path, name in members.items():
            tar.add(path, name, filter=lambda member: None if "__pycache__" in member.name else member)
    return data.getvalue()


class MachineRig(Rig):
    """A `Rig` whose daemon is in a machine; `terminal` is what the test has to connect the machine's port to."""

    def __init__(self, folder: Path, machine: Machine, port: str, manifest: str, name: str = "daemon") -> None:
        super().__init__(folder, Scene(None, manifest), pace=PACE, port=port)
        self.machine = machine
        self.port = port
        self._guest = f"{HOME}/{name}"
        self._manifest = manifest
        self._heard = ""
        self._heard_bytes = 0
        self._looked_at = 0

    def __enter__(self) -> Self:
        (self.terminal,) = self._start_far("tests.far_end", str(self._log_path))
        self._configure()
        return self

    def _configure(self) -> None:
        text = CONFIG.format(pace=PACE, manifest=f"{PLACE}/{self._manifest}", port=self.port)
        self.machine.run(f"cat > {self._guest}.toml", text.encode())

    def _command(self, *words: str) -> str:
        return (
            f"cd {HOME} && {AS_ROBOT} python3 -W error -m mvla_daemon --config {self._guest}.toml {shlex.join(words)}"
        )

    # --- the daemon ---

    def start(self, *words: str) -> None:
        self._heard, self._heard_bytes = "", 0
        self.machine.run(
            f"rm -f {self._guest}.code; ({self._command(*words)} >/dev/null 2>{self._guest}.log </dev/null; "
            f"echo $? >{self._guest}.code) >/dev/null 2>&1 &"
        )

    @property
    def pid(self) -> int:
        return int(self.ask("status")["pid"])

    def wait(self) -> int:
        self.wait_until(lambda: self.machine.run(f"cat {self._guest}.code", may_fail=True)[0] == 0, "end of the daemon")
        return int(self.machine.run(f"cat {self._guest}.code")[1])

    def said(self) -> str:
        new = self.machine.run(f"tail -c +{self._heard_bytes + 1} {self._guest}.log", may_fail=True)[1]
        self._heard_bytes += len(new.encode())
        self._heard += new
        return self._heard

    def events(self, kind: str) -> list[dict[str, object]]:
        lines = [line for line in self.said().splitlines(keepends=True) if line.startswith("{") and line.endswith("\n")]
        return [event for event in map(json.loads, lines) if event.get("kind") == kind]

    def run(self, *words: str) -> tuple[int, str]:
        """A whole command of the program, to its end."""
        return self.machine.run(self._command(*words), may_fail=True, timeout_s=90)

    def ask(self, request: str) -> dict[str, Any]:
        answer = self.machine.ask(request, RUN)
        return dict(json.loads(answer)) if answer else {"state": "", "reason": None, "ok": False}

    def wait_until(self, true: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < end, f"no {what} within {PATIENCE_S} s; the daemon said:\n{self.said()}"
            time.sleep(0.05)

    # --- the far end ---

    def read_wire(self) -> list[Timed]:
        """All frames so far; what can't be decoded fails the test, but for an echo when the port is opened.

        A terminal echoes what arrives until its settings are made, and they can't be made before it is open.
        """
        with suppress(AssertionError):
            super().read_wire()
        self._reader.undecodable.clear()
        for before, after in zip(self.wire[self._looked_at :], self.wire[self._looked_at + 1 :], strict=False):
            between = after.frame.offset_start - before.frame.offset_end
            assert between <= 1 or after.kind == "HELLO", f"{between} bytes that are no frame, before {after}"
        self._looked_at = max(0, len(self.wire) - 1)
        return self.wire

    def state(self) -> str:
        return str(self.ask("status")["state"])

    def latched(self) -> str:
        """The reason of a stop that only an operator ends."""
        self.wait_until(lambda: self.state() == "latched", "latch")
        return str(self.ask("status")["reason"])

    def provoke(self, what: Callable[[], object], *expected: int) -> list[Timed]:
        """Do something to a driving robot: the STOPs that follow have these reasons; the wire from there on.

        Nothing moves after them. A try that a busy machine has spoiled, with a stop of its own, is forgiven.
        """
        for attempt in range(1, TRIES + 1):
            before = len(self.read_wire())
            what()
            self.wait_for("STOP", after=before)
            first = reasons(self, before)[0]
            if first == expected[0] or first not in BUSY or attempt == TRIES:
                break
            print(f"forgiven: STOPs for {reasons(self, before)} instead of {expected}")
            repair_camera(self.machine)
            self.arm()
        self.wait_until(lambda: reasons(self, before)[: len(expected)] == list(expected), f"STOPs for {expected}")
        wire = self.read_wire()[before:]
        at = next(i for i, timed in enumerate(wire) if timed.kind == "STOP")
        assert {timed.kind for timed in wire[at:]} <= {"STOP", "HELLO"}
        return wire

    def judge(self) -> None:
        """Of all that was said: no motion outside a session, no session twice, numbers that rise.

        They begin anew with a HELLO to a port that was opened again.
        """
        armed = newest = seq = 0
        for timed in self.read_wire():
            assert timed.frame.seq > seq or timed.kind == "HELLO", timed
            seq = timed.frame.seq
            if timed.kind == "ARM":
                assert timed.frame.session not in {0, newest} or armed, "a session was used twice"
                armed = newest = timed.frame.session
            elif timed.kind == "STOP":
                armed = 0
            elif timed.kind == "VELOCITY":
                assert timed.frame.session == armed, "a VELOCITY outside an armed session"
