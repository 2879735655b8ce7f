"""A policy's network, read from the names and shapes in its checkpoint, where nothing else knows it.

Kosmos-2 and CLIP are recognised and built by transformers. Everything else has to be full layers, layer norms and one
recurrent network, in blocks that follow each other in the one way that their widths allow. What has no parameters
leaves no trace: inside a block a ReLU stands wherever the numbering of its layers leaves room for one, as in all of
the project's networks; the rest is asked for. Anything that fits nothing is a refusal. No layer is made up.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import torch
from read_backbones import Backbones, read_backbones
from seed_kinds import INSTRUCTION_WIDTH
from seed_networks import CHUNK, WINDOW, Kosmos, Sight
from torch import Tensor, nn

from mvla_daemon.engines.manifest import refusal
from mvla_daemon.errors import DaemonError, ExitCode

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

ACTIONS = 2
SOURCES = ("kosmos", "image", "projected", "text")
"""What a policy may look at: Kosmos-2's numbers, CLIP's of the picture before or after its projection, the table's."""
_RECURRENT: dict[int, type[nn.RNNBase]] = {1: nn.RNN, 3: nn.GRU, 4: nn.LSTM}
"""By how many times a layer's hidden width its weights are high."""


@dataclass
class Block:
    """Layers under one name: their modules by number, and what they take and give."""

    name: str
    layers: dict[int, nn.Module] = field(default_factory=dict)
    takes: int = 0
    gives: int = 0

    def add(self, number: int, layer: nn.Module, takes: int, gives: int) -> str:
        """Append a layer; what is wrong with it, or nothing."""
        if self.layers and takes != self.gives:
            return f"{self.name}.{number} takes {takes} numbers, but the layer before gives {self.gives}"
        self.takes = self.takes or takes
        self.gives = gives
        self.layers[number] = layer
        return ""

    def run(self, steps: Tensor) -> Tensor:
        """All layers, with a ReLU in each gap of their numbers."""
        last = None
        for number, layer in self.layers.items():
            if last is not None and number > last + 1:
                steps = torch.relu(steps)
            steps, last = layer(steps), number
            if isinstance(layer, nn.RNNBase):
                steps = steps[0]
        return steps

    @property
    def recurrent(self) -> bool:
        """Whether this is the recurrent network."""
        return any(isinstance(layer, nn.RNNBase) for layer in self.layers.values())


class ReadPolicy(Kosmos):
    """A policy as its checkpoint has it; see the options of export_policy.py for what that does not tell."""

    def __init__(self, backbones: Backbones, blocks: Sequence[Block], concat: Sequence[str], sight: Sight) -> None:
        super().__init__()
        for path, module in backbones.modules.items():
            plant(self, path, module)
        for block in blocks:
            for number, layer in block.layers.items():
                plant(self, block.name if number < 0 else f"{block.name}.{number}", layer)
        for path, parameter in backbones.loose.items():
            folder, _, name = path.rpartition(".")
            self.get_submodule(folder).register_parameter(name, parameter)
        self.sight = sight
        self._backbones, self._blocks, self._concat = [backbones], list(blocks), list(concat)
        self.bound = self.between = False

    def forward(self, images: Tensor, told: Tensor | None = None) -> Tensor:
        """The actions, (n, 2), for pictures, (n, 3, 224, 224), and the instruction's numbers."""
        steps = torch.cat([self._look(source, images, told) for source in self._concat], dim=1)
        for number, block in enumerate(self._blocks):
            if block.recurrent:
                steps = steps.unsqueeze(1).repeat(1, WINDOW, 1)
            elif number and self.between and not self._blocks[number - 1].recurrent:
                steps = torch.relu(steps)
            steps = block.run(steps)
        steps = steps[:, -CHUNK:][:, -1] if steps.ndim == 3 else steps
        return torch.tanh(steps) if self.bound else steps

    def _look(self, source: str, images: Tensor, told: Tensor | None) -> Tensor:
        if source == "kosmos":
            return self.see(images)
        if source == "text":
            assert told is not None
            return told
        return self._backbones[0].picture(images, projected=source == "projected")


def plant(root: nn.Module, path: str, module: nn.Module) -> None:
    """Put a module at a dotted path, below modules that hold nothing else."""
    *folders, name = path.split(".")
    for folder in folders:
        if folder not in dict(root.named_children()):
            root.add_module(folder, nn.Module())
        root = root.get_submodule(folder)
    root.add_module(name, module)


def read_network(
    path: Path, state: Mapping[str, Tensor], concat: Sequence[str], bound: bool, between: bool, sight: Sight
) -> ReadPolicy:
    """The network of a checkpoint's parameters, not yet filled with them; raises DaemonError, CONFIG."""
    backbones = read_backbones(state)
    blocks, problems = read_blocks({key: value for key, value in state.items() if not backbones.owns(key)})
    if problems:
        raise refusal(f"{path} holds what no policy is read from", problems, ExitCode.CONFIG)
    widths = {**backbones.widths, "text": INSTRUCTION_WIDTH}
    absent = [source for source in concat if source not in widths]
    has = ", ".join(f"{source} ({width})" for source, width in widths.items())
    if absent:
        sentence = f"{path} has no {' and no '.join(absent)}, only {has}: mend --concat"
        raise DaemonError(sentence, ExitCode.CONFIG)
    given = sum(widths[source] for source in concat)
    ordered = _in_order(path, blocks, given, f"--concat {','.join(concat)} gives {given} of {has}")
    policy = ReadPolicy(backbones, ordered, concat, sight)
    policy.bound, policy.between = bound, between
    return policy


def _in_order(path: Path, blocks: Sequence[Block], width: int, said: str) -> list[Block]:
    """The blocks in the only order in which each takes what the one before gives; raises DaemonError, CONFIG."""
    ordered: list[Block] = []
    while len(ordered) < len(blocks):
        fitting = [block for block in blocks if block.takes == width and block not in ordered]
        if len(fitting) != 1:
            left = [block for block in blocks if block not in ordered]
            shown = ", ".join(f"{block.name} ({block.takes} to {block.gives})" for block in left)
            which = "more than one block" if fitting else "no block"
            raise DaemonError(
                f"{path}: {which} of {shown} takes the {width} numbers before it; {said}", ExitCode.CONFIG
            )
        ordered += fitting
        width = fitting[0].gives
    if width != ACTIONS:
        raise DaemonError(f"{path}: its last layer gives {width} numbers, not {ACTIONS} actions", ExitCode.CONFIG)
    return ordered


def read_blocks(state: Mapping[str, Tensor]) -> tuple[list[Block], list[str]]:
    """The blocks of these parameters, and what is wrong with them."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, tensor in state.items():
        path, _, name = key.rpartition(".")
        layers.setdefault(path, {})[name] = tensor
    blocks: dict[str, Block] = {}
    problems = []
    for path, parts in layers.items():
        layer, takes, gives = _layer(parts)
        if layer is None:
            problems.append(
                f"{path or 'top level'}: {', '.join(f'{name} {list(t.shape)}' for name, t in parts.items())}"
            )
            continue
        name, _, number = path.rpartition(".")
        numbered = bool(name) and number.isdecimal()
        block = blocks.setdefault(name if numbered else path, Block(name if numbered else path))
        if problem := block.add(int(number) if numbered else -1, layer, takes, gives):
            problems.append(problem)
    return list(blocks.values()), problems


def _layer(parts: Mapping[str, Tensor]) -> tuple[nn.Module | None, int, int]:
    """The layer that has these parameters, what it takes and gives; None when it is of no known sort."""
    if "weight_ih_l0" in parts:
        return _recurrent(parts)
    shapes = {name: tuple(tensor.shape) for name, tensor in parts.items()}
    weight, bias = shapes.pop("weight", ()), shapes.pop("bias", None)
    if not shapes and len(weight) == 2 and bias in {None, weight[:1]}:
        return nn.Linear(weight[1], weight[0], bias=bias is not None), weight[1], weight[0]
    if not shapes and len(weight) == 1 and bias == weight:
        return nn.LayerNorm(weight[0]), weight[0], weight[0]
    return None, 0, 0


def _recurrent(parts: Mapping[str, Any]) -> tuple[nn.Module | None, int, int]:
    hidden = parts["weight_hh_l0"].shape[1] if "weight_hh_l0" in parts else 0
    height, takes = parts["weight_ih_l0"].shape
    kind = _RECURRENT.get(height // hidden if hidden else 0)
    depth = sum(re.fullmatch(r"weight_ih_l\d+", name) is not None for name in parts)
    if kind is None or any("reverse" in name for name in parts):
        return None, 0, 0
    return kind(takes, hidden, depth, bias="bias_ih_l0" in parts, batch_first=True), takes, hidden
