"""What the policy that is trained here reads and says: its manifest, and the table of the sentences that it knows."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

import numpy as np

from mvla_daemon.core.messages import AXES
from mvla_daemon.engines.manifest import UNITS, ImageInput
from mvla_daemon.sim.instructions import SENTENCES, embedding

if TYPE_CHECKING:
    from numpy.typing import NDArray

IMAGE = ImageInput(
    tensor="images",
    layout="NCHW",
    dtype="float32",
    size=(224, 224),
    color="RGB",
    resize="squash",
    scale=1 / 255,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
)
"""ImageNet's normalisation."""
INSTRUCTION, OUTPUT = "text_embeddings", "actions"
SCALES = (0.5, 0.5, 1.0)
"""What an output of 1 means, in m/s, m/s and rad/s."""
MODEL, TABLE, MANIFEST = "cup.onnx", "instructions.npz", "cup.toml"


def embeddings() -> NDArray[np.float32]:
    """Of every sentence, in their order: (sentences, 512)."""
    return np.stack([embedding(sentence) for sentence in SENTENCES])


def table() -> bytes:
    """The sentences and their embeddings as an npz file; numpy gives its members no time, so it is always the same."""
    file = io.BytesIO()
    np.savez(file, texts=np.array(list(SENTENCES)), embeddings=embeddings())
    return file.getvalue()


def manifest(model: bytes, instructions: bytes) -> str:
    """The manifest of these two files."""
    sums = {name: hashlib.sha256(content).hexdigest() for name, content in ((MODEL, model), (TABLE, instructions))}
    files = "".join(f'"{name}" = "{value}"\n' for name, value in sums.items())
    head = f"""\
# Made by scripts/train_policy.py: a small network that drives the simulated robot to the cup.
name = "cup"
model = "{MODEL}"
weights = "trained"

[sha256]
{files}
[inputs.image]
tensor = "{IMAGE.tensor}"
layout = "{IMAGE.layout}"
dtype = "{IMAGE.dtype}"
size = {list(IMAGE.size)}
color = "{IMAGE.color}"
resize = "{IMAGE.resize}"
scale = {IMAGE.scale!r}
mean = {list(IMAGE.mean)}
std = {list(IMAGE.std)}

[inputs.instruction]
tensor = "{INSTRUCTION}"
table = "{TABLE}"
"""
    axes = (
        f'\n[[axis]]\nname = "{name}"\ntensor = "{OUTPUT}"\nindex = {index}\nscale = {scale}\noffset = 0.0\n'
        f'unit = "{UNITS[name]}"\n'
        for index, (name, scale) in enumerate(zip(AXES, SCALES, strict=True))
    )
    return head + "".join(axes)
