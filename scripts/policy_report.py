"""What a training leaves behind: the policy's files, its figures and its learning curve."""

from __future__ import annotations

import io
import json
import platform
import resource
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
import onnxruntime as ort
import torch
from matplotlib.figure import Figure
from policy_manifest import MANIFEST, MODEL, SCALES, TABLE, manifest, table
from policy_network import macs

from mvla_daemon.core.messages import AXES
from mvla_daemon.engines.manifest import UNITS

if TYPE_CHECKING:
    from policy_course import Trained
    from policy_learning import Curve


def policy_files(model: bytes) -> dict[str, bytes]:
    """The policy's files by name; the last one names the others."""
    instructions = table()
    return {MODEL: model, TABLE: instructions, MANIFEST: manifest(model, instructions).encode()}


def report_files(trained: Trained, run: dict[str, Any], seconds: float) -> dict[str, bytes]:
    """The report's files by name; `run` is how the training was called, `seconds` how long it took."""
    figures = run | {
        "seconds": round(seconds),
        "cpu_seconds": round(_cpu_s()),
        "frames": trained.frames,
        "batches": trained.teacher.curve.train[-1][0],
        "held_out": _held_out(trained),
        "checking_drives": dict(trained.ended.most_common()),
        "network": {
            "parameters": sum(parameter.numel() for parameter in trained.teacher.network.parameters()),
            "multiply_accumulates": macs(trained.teacher.network),
            "model_bytes": len(trained.model),
        },
        "versions": {
            "python": platform.python_version(),
            "torch": torch.__version__,
            "numpy": np.__version__,
            "onnxruntime": ort.__version__,
        },
        "machine": platform.machine(),
    }
    text = json.dumps(figures, indent=2) + "\n"
    return {"training.png": _plot(trained.teacher.curve), "training.json": text.encode()}


def _held_out(trained: Trained) -> dict[str, Any]:
    """Mean absolute errors in each axis's unit, and over all axes in units of the network's output."""
    learnt, constant = trained.teacher.held_out_errors()
    rows = {
        f"{name}, {UNITS[name]}": {"policy": float(one) * scale, "constant": float(other) * scale}
        for name, scale, one, other in zip(AXES, SCALES, learnt, constant, strict=True)
    }
    rows["all, network's units"] = {"policy": float(learnt.mean()), "constant": float(constant.mean())}
    rounded = {name: {who: round(error, 5) for who, error in row.items()} for name, row in rows.items()}
    return {"frames": trained.teacher.held_out_frames, "mean_absolute_error": rounded}


def _cpu_s() -> float:
    """Of this process and of those that it has waited for."""
    usages = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _plot(curve: Curve) -> bytes:
    """The losses over the batches, as a PNG without a date."""
    with mpl.rc_context({"font.size": 11}):
        figure = Figure(figsize=(9, 5), dpi=110, layout="constrained")
        axes = figure.subplots()
        axes.plot(*zip(*curve.train, strict=True), color="tab:blue", linewidth=1, label="frames it learns from")
        axes.plot(
            *zip(*curve.held_out, strict=True), color="tab:orange", marker="o", markersize=3, label="held-out drives"
        )
        for step, name in curve.phases:
            axes.axvline(step, color="0.6", linewidth=0.8, linestyle="--")
            axes.annotate(name, (step, 0.01), xycoords=("data", "axes fraction"), rotation=90, fontsize=9)
        axes.set_yscale("log")
        axes.set_ylim(bottom=min(loss for _, loss in curve.train + curve.held_out) / 2)  # room for the names
        axes.set_xlabel("batches learnt from")
        axes.set_ylabel("loss (smooth L1, network's units)")
        axes.set_title("Learning to drive to the cup: first the expert's drives, then its own, corrected")
        axes.grid(which="both", alpha=0.2)
        axes.legend()
        file = io.BytesIO()
        figure.savefig(file, format="png", metadata={"Software": None})
    return file.getvalue()
