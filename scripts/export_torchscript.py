"""A network as the TorchScript files that `mvla-daemon bench` runs on PyTorch, in FP32 and in FP16."""

from __future__ import annotations

import warnings
from typing import TYPE_CHECKING

import torch
from export_onnx import example_inputs

if TYPE_CHECKING:
    from pathlib import Path

    from seed_kinds import Kind
    from torch import nn


def write_torchscript(network: nn.Module, kind: Kind, model: Path) -> None:
    """Write `<model>.pt` and `<model>.fp16.pt` beside the ONNX file; the network's weights are FP16 afterwards.

    A trace keeps the type of the zeros that a recurrent layer begins with, so each precision has one of its own.
    """
    network.eval()
    for suffix, dtype in ((".pt", torch.float32), (".fp16.pt", torch.float16)):
        network.to(dtype)
        given = tuple(tensor.to(dtype) for tensor in example_inputs(kind))
        with torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the tracer's own: it is deprecated, and tells of shapes that it fixes
            traced = torch.jit.trace(network, given, check_trace=False)
            torch.jit.save(traced, str(model.with_suffix(suffix)))
