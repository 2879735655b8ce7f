"""A small convolutional network with random weights, as an ONNX file, for the demo."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import cv2
import numpy as np
import onnx
import onnxruntime as ort
from onnx import TensorProto, helper, numpy_helper

if TYPE_CHECKING:
    from demo_corridor import Floats, Picture
    from numpy.typing import NDArray

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
ACTION_STD = 0.3
ACTION_MEANS = (0.3, 0.0, 0.0)
# (channels out, stride) of each depthwise-separable block, after Howard et al., "MobileNets" (2017), made narrower.
BLOCKS = ((32, 1), (64, 2), (64, 1), (128, 2), (128, 1), (192, 2), (192, 1), (192, 1), (256, 2))
STEM_CHANNELS, LAST_CHANNELS = 16, 16


@dataclass
class Network:
    """Collects the layers of a network with random weights (He et al., 2015, equation 10), from `images` on."""

    rng: np.random.Generator
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)
    last: str = "images"

    def add(self, kind: str, weights: dict[str, Floats], **attributes: Any) -> None:
        """Appends a layer that reads what the last one gave."""
        name = f"{kind.lower()}_{len(self.nodes)}"
        tensors = [numpy_helper.from_array(value, f"{name}.{key}") for key, value in weights.items()]
        self.weights += tensors
        self.nodes.append(helper.make_node(kind, [self.last, *(t.name for t in tensors)], [name], **attributes))
        self.last = name

    def convolve(self, channels: tuple[int, int], size: int, stride: int = 1, groups: int = 1) -> None:
        """Appends a convolution and its ReLU."""
        shape = (channels[1], channels[0] // groups, size, size)
        weight = self.rng.normal(0, np.sqrt(2 / np.prod(shape[1:])), shape).astype(np.float32)
        bias = self.rng.normal(0, 0.05, channels[1]).astype(np.float32)
        pads, strides = [size // 2] * 4, [stride] * 2
        self.add("Conv", {"weight": weight, "bias": bias}, pads=pads, strides=strides, group=groups)
        self.add("Relu", {})

    def smooth(self) -> None:
        """Appends a low-pass filter: without one, untrained strides turn a moving edge into flicker (Zhang, 2019)."""
        self.add("AveragePool", {}, kernel_shape=[3, 3], strides=[1, 1], pads=[1] * 4)

    def model(self, output: str, width: int) -> bytes:
        """The ONNX file up to here, with the last layer's `[1, width]` under the given name."""
        self.nodes[-1].output[0] = self.last = output
        graph = helper.make_graph(
            self.nodes,
            "random-weights-demo",
            [helper.make_tensor_value_info("images", TensorProto.FLOAT, [1, 3, 224, 224])],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, [1, width])],
            self.weights,
        )
        # Opset 13 and IR 8 are read by every ONNX Runtime since 1.10 and every TensorRT since 8.4.
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)], ir_version=8)
        onnx.checker.check_model(model, full_check=True)
        return bytes(model.SerializeToString())


def features(model: bytes, seen: list[Picture]) -> NDArray[np.float64]:
    """What the network makes of each picture, prepared as the manifest says: `[pictures, features]`."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1  # the same sums in the same order at every run
    session = ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])
    rows = []
    for picture in seen:
        small = cv2.resize(picture, (224, 224), interpolation=cv2.INTER_LINEAR)[..., ::-1] / np.float32(255)
        image = (small - np.array(IMAGENET_MEAN, np.float32)) / np.array(IMAGENET_STD, np.float32)
        rows.append(session.run(None, {"images": np.ascontiguousarray(image.transpose(2, 0, 1)[None])})[0][0])
    return np.asarray(rows, np.float64)


def last_layer(rows: NDArray[np.float64]) -> tuple[Floats, Floats]:
    """Weight `[3, features]` and bias `[3]` that give each axis, after tanh, its mean and `ACTION_STD` over the rows.

    The axes are the directions in which the features vary most, so they follow the scene more than the noise.
    """
    mean = rows.mean(axis=0)
    _, directions = np.linalg.eigh(np.cov(rows.T))
    weight = directions[:, ::-1].T[: len(ACTION_MEANS)]
    weight = weight * np.sign(weight[np.arange(len(weight)), np.abs(weight).argmax(axis=1)])[:, None]
    along = (rows - mean) @ weight.T
    gain, bias = 1 / along.std(axis=0), np.arctanh(ACTION_MEANS)
    for _ in range(50):
        action = np.tanh(along * gain + bias)
        gain *= ACTION_STD / action.std(axis=0)
        bias += ACTION_MEANS - action.mean(axis=0)
    weight *= gain[:, None]
    return weight.astype(np.float32), (bias - weight @ mean).astype(np.float32)


def make_network(seed: int, seen: list[Picture]) -> bytes:
    """The ONNX file: `images` `[1, 3, 224, 224]` to `actions` `[1, 3]` within ±1, lively on pictures like these."""
    network = Network(np.random.default_rng(seed))
    network.smooth()
    network.convolve((3, STEM_CHANNELS), 3, stride=2)
    network.smooth()
    width = STEM_CHANNELS
    for channels, stride in BLOCKS:
        network.convolve((width, width), 3, stride, groups=width)
        network.convolve((width, channels), 1)
        width = channels
    network.convolve((width, LAST_CHANNELS), 1)
    network.add("Flatten", {})
    weight, bias = last_layer(features(network.model("features", 49 * LAST_CHANNELS), seen))
    network.add("Gemm", {"weight": weight, "bias": bias}, transB=1)
    network.add("Tanh", {})
    return network.model("actions", len(ACTION_MEANS))
