"""A policy that is measured: its manifest, its size and whose weights it has."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any

from mvla_daemon.bench.published import Published, published_for
from mvla_daemon.config import BUNDLED, BUNDLED_POLICIES, Config
from mvla_daemon.engines.files import external_files
from mvla_daemon.engines.manifest import Manifest, load_manifest
from mvla_daemon.errors import DaemonError, ExitCode

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib  # type: ignore[import-not-found, unused-ignore]

CONFIGURED = "configured"
"""How `--policies` names the configuration's own policy."""
_FLOAT, _FLOAT16, _DOUBLE, _BFLOAT16 = 1, 10, 11, 16
_BYTES = {_FLOAT: 4, _FLOAT16: 2, _DOUBLE: 8, _BFLOAT16: 2}
"""The numbers of TensorProto.DataType that a weight can have (onnx.proto), and their sizes."""


@dataclass(frozen=True, slots=True)
class Weights:
    """How many there are, in bytes, and whether most are FP16 already; the number is None without onnx."""

    parameters: int | None
    fp32_bytes: int
    half: bool


@dataclass(frozen=True, slots=True)
class Subject:
    """One policy, checked against its manifest."""

    path: Path
    manifest: Manifest
    weights: Weights

    @property
    def name(self) -> str:
        """What the manifest calls it."""
        return self.manifest.name

    @property
    def whose(self) -> str:
        """Whose weights, as every table says it."""
        return "RANDOM WEIGHTS" if self.manifest.weights == "random" else "trained weights"

    @property
    def val_mae(self) -> float | None:
        """The checkpoint's own error on its validation data, when the manifest carries it."""
        training = self.manifest.training
        return None if training is None else training.val_mae

    @property
    def published(self) -> Published | None:
        """What was claimed for it."""
        return published_for(self.name, self.weights.parameters)

    @property
    def precisions(self) -> tuple[str, ...]:
        """FP32 and what it becomes, or FP16 alone where the file has nothing else."""
        return ("FP16",) if self.weights.half else ("FP32", "FP16")

    def torch_script(self, precision: str) -> Path:
        """Where the same network as TorchScript would be; one that was traced in FP16 is taken for that."""
        half = self.manifest.model.with_suffix(".fp16.pt")
        return half if precision == "FP16" and half.is_file() else self.manifest.model.with_suffix(".pt")

    def weight_bytes(self, precision: str) -> int:
        """What an inference at this precision has to read."""
        return self.weights.fp32_bytes // 2 if precision == "FP16" else self.weights.fp32_bytes


def subjects_of(config: Config, names: Sequence[str]) -> list[Subject]:
    """The policies that were named, each once; raises DaemonError for one that is not there or not right."""
    paths = [path for name in names for path in _manifests(config, name)]
    return [_subject(path) for path in dict.fromkeys(path.resolve() for path in paths)]


def _manifests(config: Config, name: str) -> list[Path]:
    if name == CONFIGURED:
        return [config.resolve(config.policy.manifest)]
    if name.startswith(BUNDLED):
        inside = name.removeprefix(BUNDLED)
        return [BUNDLED_POLICIES / inside / f"{inside}.toml"]
    path = Path(name)
    if not path.is_dir():
        return [path]
    found = [file for file in sorted(path.rglob("*.toml")) if _is_manifest(file)]
    if not found:
        raise DaemonError(
            f"--policies {name}: no manifest is in this folder; export a policy there, or name a manifest.",
            ExitCode.NO_INPUT,
        )
    return found


def _is_manifest(file: Path) -> bool:
    """Whether a TOML file in a folder means to be a manifest; one that is broken does, and is then reported."""
    try:
        content = tomllib.loads(file.read_text("utf-8"))
    except (OSError, ValueError):
        return True
    return "model" in content


def _subject(path: Path) -> Subject:
    manifest = load_manifest(path)
    return Subject(path, manifest, weights_of(manifest.model))


def weights_of(model: Path) -> Weights:
    """The weights of an ONNX file, counted without reading those in files beside it; raises DaemonError, CONFIG."""
    try:
        onnx: Any = importlib.import_module("onnx")
    except ImportError:
        sizes = (file.stat().st_size for file in {model, *external_files(model)})
        return Weights(None, sum(sizes), half=False)
    try:
        graph = onnx.load(str(model), load_external_data=False).graph
    except Exception as error:
        sentence = f"{model} is no ONNX model that can be read ({type(error).__name__}): export it anew"
        raise DaemonError(sentence, ExitCode.CONFIG) from error
    counts = dict.fromkeys(_BYTES, 0)
    for tensor in _tensors(graph):
        if tensor.data_type in counts:
            counts[tensor.data_type] += prod(tensor.dims)
    parameters = sum(counts.values())
    return Weights(parameters, 4 * parameters, half=2 * counts[_FLOAT16] > parameters)


def _tensors(graph: Any) -> Iterator[Any]:
    """All constants of a graph and of those inside its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Constant" and attribute.name == "value":
                yield attribute.t
            for inner in (attribute.g, *attribute.graphs):
                yield from _tensors(inner)
