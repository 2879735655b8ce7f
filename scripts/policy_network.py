"""The network that drives the robot to the cup, and its ONNX file."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import torch
from onnx import TensorProto, helper, numpy_helper
from policy_manifest import IMAGE, INSTRUCTION, OUTPUT, SCALES
from torch import Tensor, nn

from mvla_daemon.sim.instructions import WIDTH

CHANNELS = ((3, 16, 5, 2), (16, 32, 3, 2), (32, 48, 3, 2), (48, 48, 3, 1), (48, 64, 3, 2))
"""(in, out, kernel, stride) of each convolution, from 112 x 112 down to 7 x 7."""
_CELLS = 7 * 7
_SEEN, _HIDDEN, _TOLD = 128, 128, 16


class Network(nn.Module):
    """Pictures and instructions to actions.

    What is seen stays where it is seen until the first full layer, since places in the picture are what steering is
    about. The instruction scales and shifts the hidden layer (FiLM: Perez et al., AAAI 2018).
    """

    def __init__(self) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for channels, width, kernel, stride in CHANNELS:
            convolution = nn.Conv2d(channels, width, kernel, stride, kernel // 2, bias=False)
            layers += [convolution, nn.BatchNorm2d(width), nn.ReLU()]
        self.convolutions = nn.Sequential(*layers)
        self.seen = nn.Linear(_CELLS * CHANNELS[-1][1], _SEEN)
        self.told = nn.Linear(WIDTH, _TOLD)
        self.film = nn.Linear(_TOLD, 2 * _HIDDEN)
        self.hidden = nn.Linear(_SEEN, _HIDDEN)
        self.actions = nn.Linear(_HIDDEN, len(SCALES))

    def see(self, small: Tensor) -> Tensor:
        """What is in normalised pictures that have been halved, (n, 3, 112, 112): (n, 128)."""
        return torch.relu(self.seen(self.convolutions(small).flatten(1)))

    def decide(self, seen: Tensor, told: Tensor) -> Tensor:
        """The actions, (n, 3), for what is seen, (n, 128), and for instructions' embeddings, (n, 512)."""
        scale, shift = self.film(torch.relu(self.told(told))).chunk(2, dim=1)
        return self.actions(torch.relu(self.hidden(seen) * (1 + scale) + shift))

    def forward(self, images: Tensor, told: Tensor) -> Tensor:
        """The actions, (n, 3), for the model's inputs: normalised pictures, (n, 3, 224, 224), and embeddings."""
        return self.decide(self.see(nn.functional.avg_pool2d(images, 2)), told)


def macs(network: Network) -> int:
    """Multiplications and additions of one inference, in pairs; the pooling's and activations' are left out."""
    total, side = 0, IMAGE.size[0] // 2
    for channels, width, kernel, stride in CHANNELS:
        side //= stride
        total += side * side * width * channels * kernel * kernel
    full = (network.seen, network.told, network.film, network.hidden, network.actions)
    return total + sum(layer.weight.numel() for layer in full)


class _Graph:
    """Collects the layers of an ONNX graph."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []
        self.weights: list[onnx.TensorProto] = []

    def add(self, kind: str, inputs: list[str], *weights: Tensor, output: str = "", **attributes: Any) -> str:
        """Append a layer and return what its output is called."""
        name = output or f"{kind.lower()}_{len(self.nodes)}"
        tensors = [
            numpy_helper.from_array(np.ascontiguousarray(weight.detach().numpy()), f"{name}.{i}")
            for i, weight in enumerate(weights)
        ]
        self.weights += tensors
        self.nodes.append(helper.make_node(kind, [*inputs, *(t.name for t in tensors)], [name], **attributes))
        return name

    def full(self, layer: nn.Linear, last: str, output: str = "") -> str:
        """Append a fully connected layer."""
        return self.add("Gemm", [last], layer.weight, layer.bias, output=output, transB=1)


def to_onnx(network: Network) -> bytes:
    """The ONNX file of a trained network, its batch norms within its convolutions; the batch may be of any size."""
    graph = _Graph()
    last = graph.add("AveragePool", [IMAGE.tensor], kernel_shape=[2, 2], strides=[2, 2])
    layers = list(network.convolutions)
    for convolution, norm in zip(layers[::3], layers[1::3], strict=True):
        scale = norm.weight / torch.sqrt(norm.running_var + norm.eps)
        weight = (convolution.weight * scale[:, None, None, None]).contiguous()
        pads, strides = [convolution.padding[0]] * 4, list(convolution.stride)
        bias = norm.bias - norm.running_mean * scale
        last = graph.add("Relu", [graph.add("Conv", [last], weight, bias, pads=pads, strides=strides)])
    seen = graph.add("Relu", [graph.full(network.seen, graph.add("Flatten", [last]))])
    told = graph.add("Relu", [graph.full(network.told, INSTRUCTION)])
    # 1 + scale is made by adding 1 to the bias.
    half = network.film.out_features // 2
    scale = graph.add("Gemm", [told], network.film.weight[:half], network.film.bias[:half] + 1, transB=1)
    shift = graph.add("Gemm", [told], network.film.weight[half:], network.film.bias[half:], transB=1)
    hidden = graph.add("Add", [graph.add("Mul", [graph.full(network.hidden, seen), scale]), shift])
    graph.full(network.actions, graph.add("Relu", [hidden]), output=OUTPUT)
    batch = {"elem_type": TensorProto.FLOAT}
    model = helper.make_graph(
        graph.nodes,
        "cup",
        [
            helper.make_tensor_value_info(IMAGE.tensor, shape=["batch", *IMAGE.shape[1:]], **batch),
            helper.make_tensor_value_info(INSTRUCTION, shape=["batch", WIDTH], **batch),
        ],
        [helper.make_tensor_value_info(OUTPUT, shape=["batch", len(SCALES)], **batch)],
        graph.weights,
    )
    # Opset 13 and IR 8 are read by every ONNX Runtime since 1.10 and every TensorRT since 8.4.
    made = helper.make_model(model, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
    onnx.checker.check_model(made, full_check=True)
    return bytes(made.SerializeToString())
