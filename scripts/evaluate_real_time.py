"""One drive for an evaluation by the whole daemon: its processes, its clock, this machine."""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from evaluate_drives import Ended, Kind, instruction_for

from mvla_daemon.core.messages import Reason
from mvla_daemon.errors import ExitCode
from mvla_daemon.sim.verdict import verdict
from mvla_daemon.sim.world import Outcome

if TYPE_CHECKING:
    from collections.abc import Sequence

    from mvla_daemon.config import Config

LONGEST_S = 90.0
"""Starting takes a few seconds, a drive 30 s at most, and drawing it a few; a daemon that never arms has no end."""
_SENTENCE = "mvla-daemon: "
_FAILED = {verdict(one, 0)[1].partition(" after ")[0]: one for one in set(Outcome) - {Outcome.RUNNING, Outcome.REACHED}}
"""How the daemon's last sentence begins, and what it means."""


def drive_in_real_time(config: Config, seed: int) -> Ended:
    """Run the daemon in the room of this seed until it ends by itself, or for `LONGEST_S`."""
    instruction = instruction_for(Kind.REAL_TIME, seed)
    settings = ['safety.arm="auto"', 'log.format="json"', 'log.level="info"']
    with tempfile.TemporaryDirectory() as folder:
        if config.sim.picture is not None:  # no value turns it off, so that it goes where nobody looks
            settings.append(f"sim.picture={json.dumps(str(Path(folder) / 'drive.png'))}")
        words = ["--config", str(config.path), "--seed", str(seed), "--instruction", instruction]
        words += [word for setting in settings for word in ("--set", setting)]
        daemon = subprocess.Popen(
            [sys.executable, "-m", "mvla_daemon", *words],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
        )
        try:
            _, said = daemon.communicate(timeout=LONGEST_S)
        except subprocess.TimeoutExpired:
            daemon.kill()  # its children die with it
            _, said = daemon.communicate()
            said += f"{_SENTENCE}It was ended after {LONGEST_S:g} s.\n"
            return judged(seed, instruction, ExitCode.TRY_AGAIN, said.splitlines())
        finally:
            daemon.kill()
            daemon.wait()
    return judged(seed, instruction, daemon.returncode, said.splitlines())


def judged(seed: int, instruction: str, exit_code: int, lines: Sequence[str]) -> Ended:
    """What the daemon's exit code and the lines of its JSON log mean.

    A drive's duration is that from armed to the last STOP, by the times of the log.
    """
    records = [json.loads(line) for line in lines if line.startswith("{")]
    sentences = [line.removeprefix(_SENTENCE) for line in lines if line.startswith(_SENTENCE)]
    last = sentences[-1] if sentences else ""
    armed = [_time(record) for record in records if record["kind"] == "state" and record["state"] == "armed"]
    stops = [(_time(record), record["reason"]) for record in records if record["kind"] == "stop"]
    began, shutdown = (armed[0] if armed else None), Reason.SHUTDOWN.label
    ended = [at for at, reason in stops if reason == shutdown]
    outcome = Outcome.REACHED if exit_code == ExitCode.OK else _FAILED.get(last.partition(" after ")[0])
    return Ended(
        Kind.REAL_TIME,
        seed,
        instruction,
        outcome or Outcome.RUNNING,
        None,
        (ended[-1] - began).total_seconds() if began and ended else None,
        tuple(((at - began).total_seconds() if began else 0.0, why) for at, why in stops if why != shutdown),
        said=last,
    )


def _time(record: dict[str, str]) -> datetime:
    return datetime.fromisoformat(record["timestamp"].replace("Z", "+00:00"))  # Python 3.10 knows no Z
