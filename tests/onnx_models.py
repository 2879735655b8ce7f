"""Small real policies for tests: ONNX files whose answers can be computed in the head, and manifests for them."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ONNX_TYPES = {
    "float32": TensorProto.FLOAT,
    "float16": TensorProto.FLOAT16,
    "uint8": TensorProto.UINT8,
    "int64": TensorProto.INT64,
    "string": TensorProto.STRING,
}
SIZE = (6, 8)
"""Height and width of the pictures."""


@dataclass
class ModelFile:
    """Collects the parts of a graph; each method adds one."""

    nodes: list[onnx.NodeProto] = field(default_factory=list)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    outputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    constants: list[onnx.TensorProto] = field(default_factory=list)

    def input(self, name: str, dtype: str, shape: Sequence[int | str | None]) -> ModelFile:
        self.inputs.append(helper.make_tensor_value_info(name, ONNX_TYPES[dtype], shape))
        return self

    def output(self, name: str, dtype: str, shape: Sequence[int | str | None]) -> ModelFile:
        self.outputs.append(helper.make_tensor_value_info(name, ONNX_TYPES[dtype], shape))
        return self

    def constant(self, name: str, values: object, dtype: str = "float32") -> ModelFile:
        self.constants.append(numpy_helper.from_array(np.array(values, dtype), name))
        return self

    def node(self, kind: str, inputs: str, output: str, **attributes: Any) -> ModelFile:
        self.nodes.append(helper.make_node(kind, inputs.split(), [output], **attributes))
        return self

    def save(self, path: Path, **options: Any) -> Path:
        graph = helper.make_graph(self.nodes, "policy", self.inputs, self.outputs, self.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model)
        onnx.save(model, path, **options)
        return path


def mean_model(dtype: str = "float32", layout: str = "NCHW", batch: int | str = 1) -> ModelFile:
    """`images` to `means`, float32 [batch, 3]: each channel's mean."""
    shape = [batch, 3, *SIZE] if layout == "NCHW" else [batch, *SIZE, 3]
    axes = [2, 3] if layout == "NCHW" else [1, 2]
    return (
        ModelFile()
        .input("images", dtype, shape)
        .node("Cast", "images", "floats", to=TensorProto.FLOAT)
        .node("ReduceMean", "floats", "means", axes=axes, keepdims=0)
    )


def picture_model(dtype: str = "float32", layout: str = "NCHW", batch: int | str = 1) -> ModelFile:
    """`images` to `actions`: each channel's mean."""
    return (
        mean_model(dtype, layout, batch).node("Identity", "means", "actions").output("actions", "float32", [batch, 3])
    )


def told_model() -> ModelFile:
    """`images` and `text_embeddings` [1, 4] to `actions`: each channel's mean plus ten times a value."""
    weights = np.zeros((4, 3))
    np.fill_diagonal(weights, 10.0)
    return (
        mean_model(batch="batch")
        .input("text_embeddings", "float32", ["batch", 4])
        .constant("weights", weights)
        .node("MatMul", "text_embeddings weights", "told")
        .node("Add", "means told", "actions")
        .output("actions", "float32", ["batch", 3])
    )


def counting_model(inner: int | str = 1) -> ModelFile:
    """A recurrent model: `actions` are each channel's mean plus the number of inferences since the reset."""
    return (
        mean_model(batch="batch")
        .input("h0", "float32", [inner, "batch", 3])
        .constant("one", [1.0])
        .constant("rows", [-1, 3], "int64")
        .node("Add", "h0 one", "hN")
        .node("Reshape", "hN rows", "counted")
        .node("Add", "means counted", "actions")
        .output("actions", "float32", ["batch", 3])
        .output("hN", "float32", [inner, "batch", 3])
    )


def image_table(**changes: object) -> dict[str, object]:
    """`[inputs.image]` for the models above, without normalisation."""
    image = {
        "tensor": "images",
        "layout": "NCHW",
        "dtype": "float32",
        "size": list(SIZE),
        "color": "RGB",
        "resize": "squash",
    }
    return {**image, **changes}


def axis_table(name: str, index: int, **changes: object) -> dict[str, object]:
    """One `[[axis]]` of the models above."""
    unit = "rad/s" if name == "angular_z" else "m/s"
    return {"name": name, "tensor": "actions", "index": index, "scale": 1.0, "offset": 0.0, "unit": unit, **changes}


def write_manifest(folder: Path, **changes: object) -> Path:
    """Write `hallway.toml` for the `hallway.onnx` in the folder; a change to None leaves that key out."""
    tables: dict[str, Any] = {
        "name": "hallway",
        "model": "hallway.onnx",
        "sha256": {"hallway.onnx": sha256(folder / "hallway.onnx")},
        "weights": "random",
        "inputs": {"image": image_table()},
        "axis": [axis_table(name, at) for at, name in enumerate(("linear_x", "linear_y", "angular_z"))],
        **changes,
    }
    path = folder / "hallway.toml"
    text = "".join(f"{key} = {_toml(value)}\n" for key, value in tables.items() if value is not None)
    path.write_text(text, "utf-8")
    return path


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _toml(value: object) -> str:
    """A value as inline TOML, which for all but tables is JSON."""
    if isinstance(value, dict):
        return "{" + ", ".join(f"{json.dumps(key)} = {_toml(item)}" for key, item in value.items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return json.dumps(value, ensure_ascii=False)
