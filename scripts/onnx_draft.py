"""A manifest as far as an ONNX graph tells it, and the questions that it leaves."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from math import prod
from typing import TYPE_CHECKING, TypeAlias

import onnx
from google.protobuf.message import DecodeError
from onnx import TensorProto

from mvla_daemon.engines.files import external_files, sha256_of
from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

Shape: TypeAlias = "tuple[int | str | None, ...]"
_TYPES = {TensorProto.FLOAT: "float32", TensorProto.FLOAT16: "float16", TensorProto.UINT8: "uint8"}
_FLOATS = ("float32", "float16", "float64")
_MOST_AXES = 3
_WIDEST_ACTIONS = 64
"""Beyond that many numbers an output is no list of axes."""


@dataclass(frozen=True, slots=True)
class Given:
    """An input or output of the graph."""

    name: str
    dtype: str
    shape: Shape

    def __str__(self) -> str:
        """As a question shows it: 'images' float32 [batch, 3, 224, 224]."""
        return f"{self.name!r} {self.dtype} [{', '.join('?' if n is None else str(n) for n in self.shape)}]"

    @property
    def layout(self) -> str:
        """How a picture lies in it; nothing when it is none."""
        if len(self.shape) != 4 or self.dtype not in _TYPES.values():
            return ""
        first, last = self.shape[1] == 3, self.shape[3] == 3
        return "NCHW" if first and not last else "NHWC" if last and not first else ""

    @property
    def size(self) -> Shape:
        """Height and width of the picture."""
        return self.shape[2:] if self.layout == "NCHW" else self.shape[1:3]

    @property
    def width(self) -> int:
        """How many numbers there are for one picture; 0 where the file leaves it open."""
        rest = self.shape[1:]
        return prod(n for n in rest if isinstance(n, int)) if all(isinstance(n, int) for n in rest) else 0


@dataclass
class Draft:
    """Collects the lines of the manifest and the questions."""

    lines: list[str] = field(default_factory=list)
    questions: list[str] = field(default_factory=list)

    def say(self, *lines: str) -> None:
        """Append lines that the file tells."""
        self.lines += lines

    def ask(self, question: str, *lines: str) -> None:
        """Append a question, above the lines that it is about: what is "?" in them is refused by the daemon."""
        self.questions.append(question)
        self.lines += [f"# QUESTION {len(self.questions)}: {question}", *lines]


def draft(path: Path) -> tuple[str, list[str]]:
    """The manifest's text and its questions; raises DaemonError."""
    inputs, outputs = _read(path)
    made = Draft()
    made.say(f"# Drafted by scripts/import_onnx.py from {path.name}; not usable before its questions are answered.")
    made.say(f"name = {json.dumps(path.stem)}", f"model = {json.dumps(path.name)}")
    made.ask("Were these weights trained, or are they random? No graph tells.", 'weights = "?" # "trained", "random"')
    made.say("", "[sha256]")
    made.say(*(f"{json.dumps(file.name)} = {json.dumps(_sum(file))}" for file in sorted({path, *external_files(path)})))
    pictures = [given for given in inputs if given.layout]
    image = pictures[0] if len(pictures) == 1 else None
    _draft_image(made, image, pictures or inputs)
    _draft_others(made, [given for given in inputs if given is not image], outputs)
    return "\n".join(made.lines) + "\n", made.questions


def _read(path: Path) -> tuple[list[Given], list[Given]]:
    """The graph's inputs, without weights, and its outputs; raises DaemonError."""
    try:
        model = onnx.load(path, load_external_data=False)
    except OSError as error:
        raise DaemonError(f"{path} cannot be read ({error.strerror}): check its name", ExitCode.NO_INPUT) from None
    except (DecodeError, ValueError):
        raise DaemonError(f"{path} is no ONNX file: export it again", ExitCode.CONFIG) from None
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [_given(info) for info in model.graph.input if info.name not in weights]
    if not inputs or not model.graph.output:
        raise DaemonError(f"{path} has no input or no output: export it again", ExitCode.CONFIG)
    return inputs, [_given(info) for info in model.graph.output]


def _given(info: onnx.ValueInfoProto) -> Given:
    tensor = info.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name if tensor.elem_type else "unknown"
    sizes = (d.dim_value if d.HasField("dim_value") else d.dim_param or None for d in tensor.shape.dim)
    return Given(info.name, dtype, tuple(sizes))


def _sum(file: Path) -> str:
    try:
        return sha256_of(file)
    except OSError as error:
        sentence = f"{file} cannot be read ({error.strerror}): it holds weights of the model, put it there"
        raise DaemonError(sentence, ExitCode.NO_INPUT) from None


def _draft_image(made: Draft, image: Given | None, candidates: Sequence[Given]) -> None:
    made.say("", "[inputs.image]")
    if image is None:
        listed = ", ".join(str(given) for given in candidates)
        question = f"Which input is the picture, with its colors first (NCHW) or last (NHWC)? There are {listed}."
        made.ask(question, 'tensor = "?"', 'layout = "?"', 'dtype = "?"', 'size = ["?", "?"] # height, width')
    else:
        made.say(f"tensor = {json.dumps(image.name)}", f'layout = "{image.layout}"', f'dtype = "{image.dtype}"')
        if all(isinstance(n, int) for n in image.size):
            made.say(f"size = {list(image.size)}")
        else:
            question = f"Which height and width was it trained with? {image} leaves them open."
            made.ask(question, 'size = ["?", "?"] # mostly 224, 224')
    made.ask("Are its colors in the order RGB or BGR?", 'color = "?"')
    made.ask("Was the picture made to fit by squash, letterbox or crop?", 'resize = "?"')
    if image is None or image.dtype != "uint8":
        made.ask(
            "How were pixels v of 0 to 255 normalised? The model gets (v * scale - mean) / std.",
            'scale = "?" # 1.0 for nothing, 0.00392156862745098 for a division by 255',
            'mean = "?" # [0, 0, 0] for nothing, [0.485, 0.456, 0.406] is ImageNet\'s',
            'std = "?" # [1, 1, 1] for nothing, [0.229, 0.224, 0.225] is ImageNet\'s',
        )


def _draft_others(made: Draft, others: Sequence[Given], outputs: Sequence[Given]) -> None:
    """The inputs that are no picture, and the outputs."""
    states = _states(others, outputs)
    for given in others:
        if given.name in states:
            continue
        made.say("")
        if given.dtype in _FLOATS and len(given.shape) == 2 and isinstance(given.shape[1], int):
            made.say("[inputs.instruction]", f"tensor = {json.dumps(given.name)}")
            question = f"Which table has the {given.shape[1]} numbers for {given}? embed_instruction.py makes one."
            made.ask(question, 'table = "?" # "instructions.npz", and its sha256 above')
        else:
            made.ask(f"What feeds {given}? The daemon has a picture, an instruction's numbers and recurrent states.")
    for name, fitting in states.items():
        made.say("", "[[state]]", f"input = {json.dumps(name)}")
        if len(fitting) == 1:
            made.say(f"output = {json.dumps(fitting[0])}")
        else:
            made.ask(f"Which output follows the state {name!r}, one of {', '.join(fitting)}?", 'output = "?"')
    _draft_axes(made, [output for output in outputs if not any(output.name in fit for fit in states.values())])


def _states(others: Sequence[Given], outputs: Sequence[Given]) -> dict[str, list[str]]:
    """For each input that an output has the shape and type of, with more than two dimensions, those outputs."""
    return {
        given.name: fitting
        for given in others
        if len(given.shape) > 2
        and (fitting := [o.name for o in outputs if o.dtype == given.dtype and _alike(o.shape, given.shape)])
    }


def _alike(one: Shape, other: Shape) -> bool:
    """Whether two shapes agree wherever the file gives numbers for both."""
    pairs = zip(one, other, strict=False)
    return len(one) == len(other) and all(a == b or not (isinstance(a, int) and isinstance(b, int)) for a, b in pairs)


def _draft_axes(made: Draft, outputs: Sequence[Given]) -> None:
    actions = [output for output in outputs if output.dtype in _FLOATS and 0 < output.width <= _WIDEST_ACTIONS]
    listed = ", ".join(str(output) for output in outputs) or "none"
    tensor, count = (actions[0].name, min(_MOST_AXES, actions[0].width)) if len(actions) == 1 else ("?", 1)
    made.say("")
    if len(actions) != 1:
        made.ask(f"Which of the outputs holds the actions? There are {listed}.")
    question = "Which number of {} drives which axis, and what does 1 mean in its unit (scale)?"
    made.ask(question.format(actions[0] if len(actions) == 1 else "it"), *_axes(tensor, count))


def _axes(tensor: str, count: int) -> list[str]:
    """As many tables of axes as there may be, with everything open that a graph does not tell."""
    lines: list[str] = []
    for index in range(count):
        lines += ["[[axis]]", 'name = "?" # "linear_x", "linear_y", "angular_z"', f"tensor = {json.dumps(tensor)}"]
        lines += [f"index = {index}", 'scale = "?"', "offset = 0.0", 'unit = "?" # "m/s", "rad/s"', ""]
    return lines
