"""A model in half precision: FP16 inside, its inputs and outputs as they were, so that nothing around it changes."""

from __future__ import annotations

import importlib
import secrets
import warnings
from contextlib import suppress
from typing import TYPE_CHECKING, Any

import numpy as np

from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from pathlib import Path

LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
_PROTOBUF_BYTES = 2_000_000_000
"""A protobuf message holds less than 2 GiB; weights of a larger model go to a file beside it."""


def cast_to_half(source: Path, target: Path) -> None:
    """Write the ONNX model `source` as `target`, in FP16 with unchanged inputs and outputs; in one step.

    A model of over 2 GB has its weights in `<target>.data`. Raises DaemonError: UNAVAILABLE without the packages that
    it takes, CONFIG for a model that cannot be cast or has a weight that FP16 cannot hold; OSError of the disk.
    """
    try:
        onnx: Any = importlib.import_module("onnx")
        float16: Any = importlib.import_module("onnxconverter_common.float16")
    except ImportError as error:
        raise DaemonError(
            f"a model cannot be cast to FP16 here ({error}): pip install onnx onnxconverter-common, which the extra "
            "'jetson' brings",
            ExitCode.UNAVAILABLE,
        ) from None
    model = onnx.load(str(source))
    large = source.stat().st_size > _PROTOBUF_BYTES or model.ByteSize() > _PROTOBUF_BYTES
    _check_weights(onnx, model, source)
    _turn_casts(onnx, model.graph)
    _part_outputs(onnx, model.graph)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of each weight that is rounded to the smallest number: there are thousands
        try:
            half = float16.convert_float_to_float16(
                model,
                min_positive_val=SMALLEST,
                max_finite_val=LARGEST,
                keep_io_types=True,
                disable_shape_infer=large,
                check_fp16_ready=False,  # it takes any FP16 inside for a model that was cast before
            )
        except Exception as error:  # noqa: BLE001 - the converter raises whatever it stumbles over
            raise DaemonError(
                f"{source} cannot be cast to FP16 ({type(error).__name__}: {' '.join(str(error).split())}): export it "
                'with other operators, or set tensorrt.precision to "fp32"',
                ExitCode.CONFIG,
            ) from None
    _save(onnx, half, target, large=large)


def _check_weights(onnx: Any, model: Any, source: Path) -> None:
    for tensor in model.graph.initializer:
        if tensor.data_type == onnx.TensorProto.FLOAT:
            values = onnx.numpy_helper.to_array(tensor)
            if values.size and float(np.abs(values).max()) > LARGEST:
                raise DaemonError(
                    f"{source}: the weights {tensor.name!r} reach {np.abs(values).max():g}, FP16 ends at {LARGEST:g}: "
                    'scale them in the network, or set tensorrt.precision to "fp32"',
                    ExitCode.CONFIG,
                )


def _turn_casts(onnx: Any, graph: Any) -> None:
    """Have what the model itself casts to FP32 be cast to FP16: the converter leaves such casts as they are."""
    for node in graph.node:
        for attribute in node.attribute:
            if node.op_type == "Cast" and attribute.name == "to" and attribute.i == onnx.TensorProto.FLOAT:
                attribute.i = onnx.TensorProto.FLOAT16
            for inner in (attribute.g, *attribute.graphs):
                _turn_casts(onnx, inner)


def _part_outputs(onnx: Any, graph: Any) -> None:
    """Give an output that the network itself goes on with (a recurrent state) a name of its own inside.

    The converter casts outputs back to FP32 under their names, and would have the network go on with that.
    """
    used = {name for node in graph.node for name in node.input}
    for name in [output.name for output in graph.output if output.name in used]:
        inside = f"{name}_inside"
        for node in graph.node:
            for names in (node.input, node.output):
                for at, other in enumerate(names):
                    if other == name:
                        names[at] = inside
        graph.node.append(onnx.helper.make_node("Identity", [inside], [name]))


def _save(onnx: Any, model: Any, target: Path, *, large: bool) -> None:
    """Under another name first, then in its place; the weights' file before the model that names it."""
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    data = target.with_name(f"{target.name}.data")
    try:
        if large:
            with suppress(FileNotFoundError):
                data.unlink()  # onnx would append to it
            onnx.save(model, str(part), save_as_external_data=True, location=data.name)
        else:
            onnx.save(model, str(part))
        onnx.checker.check_model(str(part))
        part.replace(target)
    finally:
        part.unlink(missing_ok=True)
