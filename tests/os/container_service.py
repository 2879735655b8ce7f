"""The daemon as a service of a container's systemd, and the far end of its serial line."""

from __future__ import annotations

import json
import re
import time
from typing import TYPE_CHECKING, Any

from tests.os.container import PORT, Container, Done
from tests.rig import Rig

if TYPE_CHECKING:
    from collections.abc import Callable
    from pathlib import Path

UNIT = "mvla-daemon"
CONFIG = "/etc/mvla-daemon/config.toml"
DAEMON = ("/usr/local/bin/mvla-daemon", "--config", CONFIG)
FOLDER = "/var/lib/mvla-daemon"
OPERATOR, OUTSIDER = "driver", "outsider"
PATIENCE_S = 40.0
"""The unit's WatchdogSec, TimeoutAbortSec and RestartSec together are 10 s."""

# What a person edits of the installed configuration. On a robot with a camera and a policy of its own it is the first.
THE_PORT = {"motor.port": f'"{PORT}"'}
# A container has no camera, and this robot no wheels: a recording, at its size and rate, and the policy to go with it.
FOR_A_CONTAINER = {
    "camera.source": f'"file://{FOLDER}/moving.avi"',
    "camera.width": "160",
    "camera.height": "120",
    "camera.fps": "50",
    "policy.manifest": f'"{FOLDER}/steady.toml"',
    "safety.bench_test": "true",
}
# Few commands a second, so that a busy machine changes no result; the unit's own behaviour does not depend on it.
RATE_HZ = 5
FOR_A_BUSY_MACHINE = {
    "control.rate_hz": f"{RATE_HZ}",
    "control.deadline_ms": "200",
    "control.max_frame_age_ms": "800",
    "camera.frozen_after_ms": "1000",
    "motor.watchdog_ms": "800",
    "safety.recover_cycles": "5",
}


def edited(text: str, changes: dict[str, str]) -> str:
    """A configuration with these values instead of its own."""
    for name, value in changes.items():
        section, key = name.split(".")
        head, found, body = text.partition(f"[{section}]\n")
        assert found, f"there is no [{section}]"
        own, begin, rest = body.partition("\n[")
        line = f"{key} = {value}"
        own, count = re.subn(rf"(?m)^{key} = .*$", line, own)
        text = head + found + (own if count else f"{line}\n{own}") + begin + rest
    return text


class Service(Rig):
    """Use as a context manager; `container` is set as soon as it runs at the other end of the line."""

    container: Container

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        super().__init__(folder, scene=None, port=None)  # type: ignore[arg-type]
        self._since_s = 0.0
        self.begin = 0
        """The wire's index at the last `mark`."""

    def _start_far(self, *words: str) -> list[str]:
        return super()._start_far("tests.os.container_line", *words[1:])

    def _configure(self) -> None:
        """It is not this process that configures the daemon."""

    # --- what happens, and what was said ---

    def wait_until(self, true: Callable[[], bool], what: str) -> None:
        end = time.monotonic() + PATIENCE_S
        while not true():
            assert time.monotonic() < end, f"no {what} within {PATIENCE_S} s; the journal says:\n{self.said()}"
            time.sleep(0.05)

    def said(self) -> str:
        return self.container.run("journalctl", f"--unit={UNIT}", "--lines=30", "--no-pager", check=False).stdout

    def mark(self) -> None:
        """Forget what was on the wire and in the journal."""
        self._since_s = time.time()
        self.begin = len(self.read_wire())

    def records(self, *matches: str) -> list[dict[str, Any]]:
        """The journal's records of the unit since the mark."""
        words = ("journalctl", f"--unit={UNIT}", f"--since=@{self._since_s:.6f}", "--output=json", "--quiet", *matches)
        return [json.loads(line) for line in self.container.run(*words).stdout.splitlines()]

    def kinds(self) -> list[str]:
        """The kinds of frames since the mark, repetitions left out."""
        kinds = [timed.kind for timed in self.read_wire()[self.begin :]]
        return [kind for i, kind in enumerate(kinds) if not i or kinds[i - 1] != kind]

    def stop_reasons(self) -> list[int]:
        """The reasons of the STOPs since the mark, repetitions left out."""
        stops = [timed.frame.number("reason") for timed in self.read_wire()[self.begin :] if timed.kind == "STOP"]
        return [reason for i, reason in enumerate(stops) if not i or stops[i - 1] != reason]

    def wait_for_state(self, *states: int) -> None:
        """Wait until the controller reports standstill in one of these states."""

        def stands() -> bool:
            if not (statuses := self.statuses()):
                return False
            last = statuses[-1]
            return last.number("state") in states and not any(last.number(axis) for axis in ("vx", "vy", "wz"))

        self.wait_until(stands, f"controller's state {states}")

    # --- installation ---

    def install(self, *options: str) -> str:
        """Install from a clone, without a network: packages come from a folder of wheels."""
        run = self.container.run
        run("sh", "-c", "rm -rf /root/clone && cp -r /mnt/project /root/clone")
        offline = {"PIP_NO_INDEX": "1", "PIP_FIND_LINKS": "/mnt/wheels"}
        said = run("/root/clone/scripts/install.sh", *options, timeout_s=600.0, **offline).stdout
        run("rm", "-rf", "/root/clone")  # an installation does not need it
        return said

    def files(self) -> set[str]:
        """All files and folders, but for what a boot, a log or a user's home comes and goes with."""
        places = ("/dev", "/home", "/mnt", "/proc", "/run", "/sys", "/tmp", "/var/log", "/var/mail", "/var/tmp")
        prune = " -o ".join(f"-path {place}" for place in places)
        return set(self.container.run("sh", "-c", rf"find / \( {prune} \) -prune -o -print").stdout.splitlines())

    # --- the unit ---

    def systemctl(self, *words: str, check: bool = True) -> Done:
        return self.container.run("systemctl", *words, check=check, timeout_s=120.0)

    def show(self, name: str) -> str:
        return self.systemctl("show", f"--property={name}", "--value", UNIT).stdout.strip()

    def main_pid(self) -> int:
        return int(self.show("MainPID"))

    def policy_pid(self) -> int:
        (pid,) = self.policy_pids()
        return pid

    def policy_pids(self) -> list[int]:
        """None while the gate waits before it starts another one."""
        found = self.container.run("sh", "-c", "grep -lza 'mvla_daemon[.]policy' /proc/[0-9]*/cmdline || true").stdout
        return [int(pid) for pid in re.findall(r"/proc/(\d+)/", found)]

    def kill(self, name: str, pid: int) -> None:
        self.container.run("sh", "-c", f"kill -s {name} {pid}")

    def status(self) -> dict[str, Any]:
        return dict(json.loads(self.container.run(*DAEMON, "status", "--json").stdout))

    def arm(self) -> None:
        done = self.container.run_as(OPERATOR, *DAEMON, "arm")
        assert done.returncode == 0, f"{done.stderr}{self.said()}"

    def configure(self, **more: str) -> None:
        """The shipped configuration with what has to be edited here, and nothing else."""
        changes = THE_PORT | FOR_A_CONTAINER | FOR_A_BUSY_MACHINE
        changes |= {name.replace("__", "."): value for name, value in more.items()}
        self.container.write(CONFIG, edited(self.container.read("/mnt/project/systemd/config.robot.toml"), changes))

    def stand(self) -> None:
        """Have it run, disarmed, whatever came before."""
        self.systemctl("stop", UNIT)
        self.configure()
        self.systemctl("reset-failed", UNIT, check=False)
        self.systemctl("start", UNIT)
        self.mark()

    def drive(self) -> None:
        """Have it drive, from a fresh start; `begin` is where its commands begin."""
        self.stand()
        self.wait_until(lambda: self.container.run_as(OPERATOR, *DAEMON, "arm").returncode == 0, "arming")
        self.wait_for("VELOCITY", after=self.begin, count=3)
        self.mark()

    def wait_for_restart(self, gone: int) -> None:
        """Wait until systemd has started another main process, which is ready."""

        def back() -> bool:
            return self.show("ActiveState") == "active" and self.main_pid() not in {0, gone}

        self.wait_until(back, f"start after process {gone}")
