"""One policy on one engine at one precision: measured in a process of its own."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mvla_daemon.bench.latency import Block, Spread
from mvla_daemon.bench.subject import Subject
from mvla_daemon.config import Config
from mvla_daemon.engines.half import cast_to_half
from mvla_daemon.errors import DaemonError, ExitCode

WARM_UPS = 20


@dataclass(frozen=True, slots=True)
class Measured:
    """What came out of one process. `answer` is the action that the network gave for the bench's picture, by axis."""

    device: str
    on_gpu: bool
    how: str
    block: Block
    peak_mib: float
    policy_mib: float
    gpu_mib: float | None
    answer: dict[str, float]

    @property
    def latency(self) -> Spread:
        """From the host's input to the host's output."""
        return self.block.parts["latency"]


@dataclass(frozen=True, slots=True)
class Contest:
    """A row of the table: what was measured, or why nothing was. `failed` is its exit code when that is an error."""

    subject: Subject
    engine: str
    precision: str
    measured: Measured | None = None
    why: str = ""
    failed: ExitCode | None = None


@dataclass(frozen=True, slots=True)
class Terms:
    """What is the same for all rows."""

    config: Config
    given: Sequence[str]
    tries: int
    scratch: Path
    """For models that are cast; gone after the bench."""


def hold(subject: Subject, engine: str, precision: str, terms: Terms) -> Contest:
    """Measure, or say why not."""
    row = (subject, engine, precision)
    if engine == "torch" and (why := _no_torch(subject, precision)):
        return Contest(*row, why=why)
    try:
        model = _model(subject, engine, precision, terms.scratch)
    except DaemonError as error:
        # Without the packages for it a robot has no FP16 on ONNX Runtime, and lacks nothing else.
        failed = None if error.exit_code is ExitCode.UNAVAILABLE else error.exit_code
        return Contest(*row, why=str(error), failed=failed)
    try:
        return Contest(*row, measured=_measure(subject, engine, precision, model, terms))
    except DaemonError as error:
        return Contest(*row, why=str(error), failed=error.exit_code)


def _no_torch(subject: Subject, precision: str) -> str:
    if subject.manifest.states:
        return "a policy with states is not measured on PyTorch"
    script = subject.torch_script(precision)
    if not script.is_file():
        return f"there is no {script.name} (TorchScript) beside the model"
    return ""


def _model(subject: Subject, engine: str, precision: str, scratch: Path) -> Path | None:
    """The model in FP16 where the engine does not make it so itself; cast once for all engines."""
    if engine != "onnxruntime" or precision == "FP32" or subject.weights.half:
        return None
    target = scratch / f"{subject.manifest.sha256[subject.manifest.model]}.fp16.onnx"
    if not target.exists():
        try:
            cast_to_half(subject.manifest.model, target)
        except OSError as error:
            raise DaemonError(
                f"{subject.manifest.model.name} cannot be cast to FP16 in {scratch} ({error.strerror}): make room "
                "there, or set TMPDIR to another folder.",
                ExitCode.NO_PERMISSION,
            ) from error
    return target


def _measure(subject: Subject, engine: str, precision: str, model: Path | None, terms: Terms) -> Measured:
    task = {
        "config": str(terms.config.path),
        "given": list(terms.given),
        "manifest": str(subject.path),
        "model": str(model) if model else "",
        "script": str(subject.torch_script(precision)),
        "engine": engine,
        "precision": precision,
        "tries": terms.tries,
        "warm_ups": WARM_UPS,
    }
    done = subprocess.run(
        [sys.executable, "-m", "mvla_daemon.bench.contestant"],
        input=json.dumps(task),
        capture_output=True,
        text=True,
        errors="replace",
        check=False,
    )
    if done.returncode or not done.stdout:
        raise DaemonError(_end_of(done), ExitCode.INTERNAL)
    return _read(json.loads(done.stdout))


def _end_of(done: subprocess.CompletedProcess[str]) -> str:
    """Why a process that said nothing has ended."""
    if done.returncode == -signal.SIGKILL:
        return "the process was killed, most likely for its memory: use a machine with more, or a smaller policy"
    said = done.stderr.strip().splitlines()[-1:] or ["without a word"]
    how = f"by signal {-done.returncode}" if done.returncode < 0 else f"with {done.returncode}"
    return f"the process that measured ended {how} ({said[0]}): run it again, and report it if it stays so"


def _read(found: dict[str, Any]) -> Measured:
    if "error" in found:
        raise DaemonError(found["error"], ExitCode(found["exit_code"]))
    parts = {name: Spread(**spread) for name, spread in found.pop("parts").items()}
    return Measured(block=Block(found.pop("throughput_hz"), parts), **found)
