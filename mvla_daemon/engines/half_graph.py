"""The graph of an ONNX model, read, cast to FP16, checked and written; `half.cast_to_half` is what others call.

onnxconverter-common does the casting. What it leaves inconsistent in graphs that exporters really write is mended
before and after it, and what comes out is held against ONNX's own checker, types included, before it is put in its
place.
"""

from __future__ import annotations

import tempfile
import warnings
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import GraphProto, ModelProto, NodeProto, TensorProto, helper, numpy_helper
from onnxconverter_common import float16

if TYPE_CHECKING:
    from collections.abc import Iterator

READ_ERRORS = (OSError, ValueError, onnx.checker.ValidationError, DecodeError)
"""What `read` raises for files that are no model."""
LARGEST = 65504.0
"""The largest finite number in FP16."""
_MASK = 1e30
"""From here on a number stands for infinity, as in the masks of attention, and FP16's largest does it as well."""
_MOST_IN_ONE_FILE = 2**31 - 2**20
"""Bytes of weights; protobuf ends at 2 GB, and the graph itself needs some room."""
_LEAST_OUTSIDE = 1024
"""Bytes; shapes and other small numbers stay within, where whoever reads the graph needs them."""
_OLDEST_IR = 4
"""The first version in which weights need not be listed among the inputs."""


def read(source: Path) -> ModelProto:
    """The model with its weights and the types of all its values; raises `READ_ERRORS`.

    The types are inferred while a large model's weights are still outside, since inference cannot hold 2 GB.
    """
    model = onnx.load(source, load_external_data=False)
    if not model.graph.output:
        raise ValueError("it has no outputs")
    with suppress(onnx.shape_inference.InferenceError):  # `write` finds what is wrong with the types
        model = onnx.shape_inference.infer_shapes(model)
    onnx.external_data_helper.load_external_data_for_model(model, str(source.parent))
    return model


def out_of_range(model: ModelProto) -> str:
    """The first weight or constant that FP16 has no number for, for a sentence; nothing when there is none."""
    for name, tensor in _tensors(model.graph):
        if tensor.data_type == TensorProto.FLOAT:
            sizes = np.abs(numpy_helper.to_array(tensor))
            beyond = sizes[(sizes > LARGEST) & (sizes < _MASK)]
            if beyond.size:
                return f"{name!r} holds {beyond.max():g}, and FP16 ends at {LARGEST:g}"
    return ""


def cast(model: ModelProto) -> ModelProto:
    """The same model in FP16, with the inputs and outputs that it had; the given one is used up."""
    kept = _types(model)
    _prepare(model)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about numbers at FP16's ends, which `out_of_range` has judged
        half: ModelProto = float16.convert_float_to_float16(
            model, max_finite_val=LARGEST, keep_io_types=True, disable_shape_infer=True, check_fp16_ready=False
        )
    if _types(half) != kept:
        raise ValueError("its inputs or outputs would be of other types")
    return half


def _types(model: ModelProto) -> dict[str, int]:
    """Of all inputs and outputs, without weights that are listed as inputs."""
    weights = {tensor.name for tensor in model.graph.initializer}
    both = (*model.graph.input, *model.graph.output)
    return {value.name: value.type.tensor_type.elem_type for value in both if value.name not in weights}


def write(model: ModelProto, target: Path) -> None:
    """Write and check the model beside its place, then put it there, its weights first."""
    size = sum(len(tensor.raw_data) for _, tensor in _tensors(model.graph))
    beside: dict[str, Any] = {
        "save_as_external_data": True,
        "location": f"{target.name}.data",
        "size_threshold": _LEAST_OUTSIDE,
    }
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".half-", dir=target.parent) as folder:
        fresh = Path(folder) / target.name
        onnx.save(model, fresh, **(beside if size > _MOST_IN_ONE_FILE else {}))
        onnx.checker.check_model(str(fresh), full_check=True)
        for path in Path(folder).iterdir():
            path.chmod(fresh.stat().st_mode)  # onnx keeps weights that lie outside from all other users
        for path in sorted(Path(folder).iterdir(), key=lambda path: path == fresh):
            path.replace(target.parent / path.name)


def _graphs(graph: GraphProto) -> Iterator[GraphProto]:
    """A graph and all graphs inside it, of loops and branches."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                if inner.node:
                    yield from _graphs(inner)


def _nodes(graph: GraphProto) -> Iterator[NodeProto]:
    return (node for part in _graphs(graph) for node in part.node)


def _tensors(graph: GraphProto) -> Iterator[tuple[str, TensorProto]]:
    """Every weight and constant of a graph, with a name to tell it by."""
    for part in _graphs(graph):
        yield from ((tensor.name, tensor) for tensor in part.initializer)
    for node in _nodes(graph):
        for attribute in node.attribute:
            held = [attribute.t] if attribute.HasField("t") else []
            yield from ((node.output[0], tensor) for tensor in (*held, *attribute.tensors))


def _prepare(model: ModelProto) -> None:
    """Mend what the converter trips over.

    It takes weights that are listed as inputs for inputs, and tells nodes by their names, which may be absent.
    """
    model.ir_version = max(model.ir_version, _OLDEST_IR)
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [given for given in model.graph.input if given.name not in weights]
    del model.graph.input[:]
    model.graph.input.extend(inputs)
    _part_outputs(model.graph)
    _part_weights(model.graph)
    for part in list(_graphs(model.graph)):
        _turn_casts(part)
    for number, node in enumerate(_nodes(model.graph)):
        node.name = f"{node.op_type}_{number}"


def _turn_casts(graph: GraphProto) -> None:
    """Have a model's own casts to float32 (of a uint8 picture, for example) give what is computed with now.

    The Identity behind each keeps the converter from taking it for one of its own, which it removes in pairs.
    """
    for node in list(graph.node):
        to = next((attribute for attribute in node.attribute if attribute.name == "to"), None)
        if node.op_type == "Cast" and to is not None and to.i == TensorProto.FLOAT:
            to.i = TensorProto.FLOAT16
            name = node.output[0]
            node.output[0] = f"{name}_cast"
            graph.node.append(helper.make_node("Identity", [node.output[0]], [name]))


def _part_outputs(graph: GraphProto) -> None:
    """Give each output an Identity of its own, so that its float32 is nobody's inside and its maker may be any node."""
    makers = {name: node for node in graph.node for name in node.output}
    for output in graph.output:
        if (maker := makers.get(output.name)) is None:
            continue
        inside = f"{output.name}_inside"
        maker.output[list(maker.output).index(output.name)] = inside
        for node in _nodes(graph):
            node.input[:] = [inside if name == output.name else name for name in node.input]
        graph.value_info.add().CopyFrom(output)
        graph.value_info[-1].name = inside
        graph.node.append(helper.make_node("Identity", [inside], [output.name]))


def _part_weights(graph: GraphProto) -> None:
    """Give each node that stays in float32 its own weights: the converter leaves those as they are for all readers."""
    weights = {tensor.name: tensor for tensor in graph.initializer}
    readers = Counter(name for node in _nodes(graph) for name in node.input)
    for node in graph.node:
        if node.op_type not in float16.DEFAULT_OP_BLOCK_LIST:
            continue
        for at, name in enumerate(node.input):
            if name in weights and readers[name] > 1:
                graph.initializer.add().CopyFrom(weights[name])
                graph.initializer[-1].name = node.input[at] = f"{name}_of_{node.output[0]}"
