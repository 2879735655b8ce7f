"""A network as an ONNX file, held against what the network itself computes."""

from __future__ import annotations

import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnxruntime as ort
import torch
from seed_kinds import INSTRUCTION_WIDTH, SIZE

from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from seed_kinds import Kind
    from torch import nn

_MOST_IN_ONE_FILE = 2**31 - 2**20
"""Bytes of weights; protobuf ends at 2 GB, and the graph itself needs some room."""
_TOLERANCE = 1e-3
"""Of the largest answer; float32's order of summation makes a tenth of it."""


def example_inputs(kind: Kind) -> list[torch.Tensor]:
    """Noise in the shapes of a kind's inputs, the same every time."""
    chance = torch.Generator().manual_seed(1)
    given = [torch.randn(1, 3, *SIZE, generator=chance)]
    if kind.instruction:
        given.append(torch.randn(1, INSTRUCTION_WIDTH, generator=chance))
    return given


def write_onnx(network: nn.Module, kind: Kind, target: Path) -> None:
    """Write the network, and its weights to `<target>.data` when they are over 2 GB; raises DaemonError, INTERNAL."""
    network.eval()
    given = example_inputs(kind)
    with torch.no_grad():
        expected = network(*given).numpy()
    names = [*kind.inputs, kind.output]
    with tempfile.TemporaryDirectory(prefix=".export-", dir=target.parent) as folder, warnings.catch_warnings():
        # The exporter's own: it is deprecated, and tells of batches of other sizes; what it wrote is compared below.
        warnings.simplefilter("ignore")
        path = Path(folder) / target.name
        torch.onnx.export(
            network,
            tuple(given),
            str(path),
            dynamo=False,
            opset_version=kind.opset,
            input_names=kind.inputs,
            output_names=[kind.output],
            dynamic_axes={name: {0: "batch"} for name in names} if kind.any_batch else None,
        )
        _gather(path, target)
    onnx.checker.check_model(str(target), full_check=True)
    _compare(target, dict(zip(kind.inputs, (tensor.numpy() for tensor in given), strict=True)), expected)


def _gather(path: Path, target: Path) -> None:
    """Put the model in its place, its weights within or in one file beside; the exporter leaves one for each tensor."""
    size = sum(file.stat().st_size for file in path.parent.iterdir())
    if size <= _MOST_IN_ONE_FILE:
        onnx.save(onnx.load(path), target)
    else:
        onnx.save(onnx.load(path), target, save_as_external_data=True, location=f"{target.name}.data")
        target.with_name(f"{target.name}.data").chmod(target.stat().st_mode)  # onnx keeps it from all other users


def _compare(path: Path, given: dict[str, np.ndarray], expected: np.ndarray) -> None:
    """Refuse a file that computes something else than the network."""
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (found,) = session.run(None, given)
    if found.shape != expected.shape or np.abs(found - expected).max() > _TOLERANCE * max(1.0, np.abs(expected).max()):
        sentence = (
            f"the ONNX file answers {found.ravel()}, the network {expected.ravel()}: use another version of torch"
        )
        raise DaemonError(sentence, ExitCode.INTERNAL)
