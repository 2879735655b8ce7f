"""The manifest of an exported policy, as text."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING

from seed_kinds import AXES, MEAN, SCALE, SIZE, STD

from mvla_daemon.engines.files import external_files, sha256_of
from mvla_daemon.engines.manifest import UNITS

if TYPE_CHECKING:
    from pathlib import Path

    from checkpoints import Checkpoint
    from seed_kinds import Kind


def manifest_text(kind: Kind, name: str, model: Path, table: Path | None, checkpoint: Checkpoint | None) -> str:
    """The manifest of a model and its table of instructions, which lie where it will; no checkpoint, random weights."""
    files = sorted({model, *external_files(model)} | ({table} if table else set()))
    sums = "".join(f"{json.dumps(file.name)} = {json.dumps(sha256_of(file))}\n" for file in files)
    head = f"# Made by scripts/export_policy.py --kind {kind.key}{'' if checkpoint else ': RANDOM WEIGHTS'}.\n"
    head += f'name = "{name}"\nmodel = "{model.name}"\nweights = "{"trained" if checkpoint else "random"}"\n'
    instruction = f'[inputs.instruction]\ntensor = "{kind.instruction}"\ntable = "{table.name}"\n' if table else ""
    axes = [_axis(kind, axis, index) for index, axis in enumerate(AXES[: kind.axes])]
    parts = [head, f"[sha256]\n{sums}", _training(checkpoint), _image(kind), instruction, *axes]
    return "\n".join(part for part in parts if part)


def _image(kind: Kind) -> str:
    lines = {"tensor": kind.image, "layout": "NCHW", "dtype": "float32", "size": list(SIZE), "color": "RGB"}
    lines |= {"resize": "squash", "scale": 1 / 255, "mean": list(MEAN), "std": list(STD)}
    return "[inputs.image]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())


def _axis(kind: Kind, axis: str, index: int) -> str:
    lines = {"name": axis, "tensor": kind.output, "index": index, "scale": SCALE, "offset": 0.0, "unit": UNITS[axis]}
    return "[[axis]]\n" + "".join(f"{key} = {json.dumps(value)}\n" for key, value in lines.items())


def _training(checkpoint: Checkpoint | None) -> str:
    """What the checkpoint said of its training, if anything."""
    if checkpoint is None:
        return ""
    said = {"epoch": checkpoint.epoch, "val_mae": checkpoint.val_mae}
    lines = "".join(f"{key} = {value!r}\n" for key, value in said.items() if value is not None)
    return f"[training]\n{lines}" if lines else ""
