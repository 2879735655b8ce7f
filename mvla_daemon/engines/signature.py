"""A model's inputs and outputs, held against what the manifest says of them."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import TYPE_CHECKING, TypeAlias

from mvla_daemon.engines.manifest import refusal
from mvla_daemon.errors import ExitCode

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from mvla_daemon.engines.manifest import Axis, Manifest

Shape: TypeAlias = tuple[int | str | None, ...]
_FLOATS = ("float16", "float32", "float64")
_NUMBERS = (*_FLOATS, "uint8", "int32", "int64", "bool")


@dataclass(frozen=True, slots=True)
class Tensor:
    """An input or output as a model file has it; a dimension that the file leaves open is a name or None."""

    name: str
    dtype: str
    shape: Shape

    def __str__(self) -> str:
        """As an error shows it: 'images' float32 [batch, 3, 224, 224]."""
        return f"{self.name!r} {self.dtype} [{', '.join('?' if n is None else str(n) for n in self.shape)}]"


@dataclass(frozen=True, slots=True)
class Buffer:
    """What to allocate for one tensor."""

    dtype: str
    shape: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Signature:
    """The buffers of a policy, by tensor name: every input of the model, and the outputs that the manifest uses."""

    inputs: dict[str, Buffer]
    outputs: dict[str, Buffer]


def match(
    manifest: Manifest, embedding_size: int | None, inputs: Iterable[Tensor], outputs: Iterable[Tensor]
) -> Signature:
    """The buffers for one picture at a time; raises DaemonError, CONFIG, with all that does not fit.

    `embedding_size` is the instruction's, None without one. A batch that the file leaves open is bound to 1: the first
    dimension of the image, every dimension of the same name, and the first of an output, whose names exporters invent.
    """
    checker = _Checker(manifest, tuple(inputs), tuple(outputs))
    checker.check_image()
    checker.check_instruction(embedding_size)
    checker.check_states()
    for axis in manifest.axes:
        checker.check_axis(axis)
    checker.check_all_fed()
    if checker.problems:
        subject = f"policy {manifest.name}: the manifest does not fit {manifest.model.name}"
        raise refusal(subject, checker.problems, ExitCode.CONFIG)
    return Signature(checker.fed, checker.read)


class _Checker:
    """Collects the buffers that fit and the problems with the others."""

    def __init__(self, manifest: Manifest, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self.manifest = manifest
        self.problems: list[str] = []
        self.fed: dict[str, Buffer] = {}
        self.read: dict[str, Buffer] = {}
        image = next((tensor for tensor in inputs if tensor.name == manifest.inputs.image.tensor), None)
        self.batch = image.shape[0] if image and image.shape and isinstance(image.shape[0], str) else ""
        self.inputs = {tensor.name: tensor for tensor in inputs}
        self.outputs = {tensor.name: tensor for tensor in outputs}

    def check_image(self) -> None:
        image = self.manifest.inputs.image
        said = f"inputs.image: {image.layout} of size {image.size[0]} x {image.size[1]}"
        self._check_input("inputs.image", image.tensor, said, (image.dtype,), image.shape)

    def check_instruction(self, embedding_size: int | None) -> None:
        instruction = self.manifest.inputs.instruction
        if instruction and embedding_size:
            said = f"inputs.instruction: embeddings of {embedding_size} values in {instruction.table.name}"
            shape = (1, embedding_size)
            self._check_input("inputs.instruction", instruction.tensor, said, ("float32", "float16"), shape)

    def _check_input(self, table: str, name: str, said: str, dtypes: tuple[str, ...], shape: tuple[int, ...]) -> None:
        """One input whose shape the manifest knows."""
        found = self._find(f"{table}.tensor", name, self.inputs, "input")
        if found is None:
            return
        if found.dtype not in dtypes:
            self.problems.append(f"{table}: the manifest gives {' or '.join(dtypes)}, the model's input is {found}")
        if not _fits(found, shape):
            self.problems.append(f"{said}, that is {list(shape)}, the model's input is {found}")
        self.fed[name] = Buffer(found.dtype, shape)

    def check_states(self) -> None:
        for at, state in enumerate(self.manifest.states):
            source = self._find(f"state.{at}.output", state.output, self.outputs, "output")
            target = self._find(f"state.{at}.input", state.input, self.inputs, "input")
            if source and target:
                self._check_state(at, source, target)

    def _check_state(self, at: int, source: Tensor, target: Tensor) -> None:
        shape = self._single(target.shape)
        if shape is None:
            self.problems.append(f"state.{at}: the model leaves the size of {target} open: export it with a fixed one")
        elif target.dtype not in _NUMBERS:
            self.problems.append(f"state.{at}: a state is one of {', '.join(_NUMBERS)}, the model's input is {target}")
        elif source.dtype != target.dtype or not _fits(source, shape):
            self.problems.append(f"state.{at}: the model's output {source} does not fit its input {target}")
        else:
            self.fed[target.name] = self.read[source.name] = Buffer(target.dtype, shape)

    def check_axis(self, axis: Axis) -> None:
        found = self._find(f"axis {axis.name}: tensor", axis.tensor, self.outputs, "output")
        if found is None:
            return
        first, rest = found.shape[:1], found.shape[1:]
        shape = self._single(tuple(n if isinstance(n, int) else 1 for n in first) + rest)
        if shape is None:
            self.problems.append(
                f"axis {axis.name}: the model leaves the size of {found} open: export it with a fixed one"
            )
        elif found.dtype not in _FLOATS:
            self.problems.append(f"axis {axis.name}: reads floats, the model's output is {found}")
        elif axis.index >= prod(shape):
            self.problems.append(
                f"axis {axis.name}: index is {axis.index}, the model's output {found} has {prod(shape)} values"
            )
        else:
            self.read[found.name] = Buffer(found.dtype, shape)

    def check_all_fed(self) -> None:
        """Refuse an input of the model that nothing in the manifest feeds."""
        manifest = self.manifest
        named = {manifest.inputs.image.tensor, *(state.input for state in manifest.states)}
        if manifest.inputs.instruction:
            named.add(manifest.inputs.instruction.tensor)
        self.problems += [
            f"the model has an input {tensor} that no table of the manifest names: add its [inputs.…] or [[state]]"
            for name, tensor in self.inputs.items()
            if name not in named
        ]

    def _find(self, key: str, name: str, among: Mapping[str, Tensor], kind: str) -> Tensor | None:
        if name not in among:
            listed = ", ".join(str(tensor) for tensor in among.values()) or "none"
            self.problems.append(f"{key} is {name!r}, the model's {kind}s are {listed}")
        return among.get(name)

    def _single(self, shape: Shape) -> tuple[int, ...] | None:
        """The shape for a batch of one; None where another dimension is open."""
        bound = [1 if n == self.batch else n for n in shape]
        fixed = tuple(n for n in bound if isinstance(n, int))
        return fixed if len(fixed) == len(shape) else None


def _fits(tensor: Tensor, shape: tuple[int, ...]) -> bool:
    """Whether a tensor can have this shape; what the file leaves open can have any size."""
    return len(tensor.shape) == len(shape) and all(
        has == wanted or not isinstance(has, int) for has, wanted in zip(tensor.shape, shape, strict=True)
    )
