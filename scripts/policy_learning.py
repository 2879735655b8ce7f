"""How the network learns from frames: batches, phases, and its errors on frames that it never learns from."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np
import torch
from policy_data import SIDES
from policy_frames import Frames
from policy_manifest import IMAGE, embeddings
from policy_network import Network
from torch import Tensor

from mvla_daemon.sim.instructions import SENTENCES

if TYPE_CHECKING:
    from numpy.typing import NDArray

BATCH = 128
_LEARNING_RATE = 2e-3
_WARM_UP = 0.05
"""The share of a phase in which the learning rate rises; then it falls along a cosine."""
_LAST_RATE = 0.01
_WEIGHT_DECAY = 0.02
_QUADRATIC_BELOW = 0.05
_LIGHT = 0.12
"""Pictures are made brighter, darker and tinted by as much."""
_NOTE_EVERY, _TRY_EVERY = 25, 200
"""Batches between the points of the curve, on frames to learn from and on held-out ones."""


def make_repeatable(seed: int, threads: int) -> None:
    """From here on the same calls compute the same bits on the same machine."""
    torch.manual_seed(seed)
    torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(True)


@dataclass
class Curve:
    """(step, loss) on what is learnt from and on held-out frames, and where phases begin."""

    train: list[tuple[int, float]] = field(default_factory=list)
    held_out: list[tuple[int, float]] = field(default_factory=list)
    phases: list[tuple[int, str]] = field(default_factory=list)


class Teacher:
    """Trains one network, phase after phase."""

    def __init__(self, network: Network, held_out: Frames, seed: int) -> None:
        self.network = network.to(memory_format=torch.channels_last)
        self.curve = Curve()
        self._held_out = held_out
        self._random = np.random.default_rng((seed, 1))
        self._embeddings = torch.from_numpy(embeddings())
        sides = list(SENTENCES.values())
        self._sentences = [[i for i, one in enumerate(sides) if one is side] for side in SIDES]
        self._step = 0

    def phase(self, name: str, frames: Frames, steps: int, tell: Callable[[int], None]) -> None:
        """Learn from batches drawn from all the frames; `tell` is called after each step with 1."""
        self.curve.phases.append((self._step, name))
        optimizer = torch.optim.AdamW(self.network.parameters(), _LEARNING_RATE, weight_decay=_WEIGHT_DECAY)
        share = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: _rate(step / steps))
        recent: list[float] = []
        order = np.empty(0, np.int64)
        for step in range(steps):
            if len(order) < BATCH:
                order = np.concatenate([order, self._random.permutation(len(frames))])
            chosen, order = order[:BATCH], order[BATCH:]
            self.network.train()
            loss = self._batch_loss(frames, chosen)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            share.step()
            self._step += 1
            recent.append(float(loss.detach()))
            if len(recent) == _NOTE_EVERY or step + 1 == steps:
                self.curve.train.append((self._step, sum(recent) / len(recent)))
                recent.clear()
            if (step + 1) % _TRY_EVERY == 0 or step + 1 == steps:
                self.curve.held_out.append((self._step, self.held_out_loss()))
            tell(1)

    def _batch_loss(self, frames: Frames, chosen: NDArray[np.int64]) -> Tensor:
        """Both instructions' loss on a batch, half of it seen in a mirror."""
        mirrored = self._random.random(len(chosen)) < 0.5
        pictures = frames.pictures[chosen]
        pictures[mirrored] = pictures[mirrored, :, ::-1]
        labels, weights = frames.labels[chosen], frames.weights[chosen]
        labels[mirrored] = labels[mirrored, ::-1] * np.array([1, -1, -1], np.float32)
        weights[mirrored] = weights[mirrored, ::-1]
        light = 1 + _LIGHT * self._random.uniform(-1, 1, (len(chosen), 1))
        tint = 1 + _LIGHT / 2 * self._random.uniform(-1, 1, (len(chosen), 3))
        small = normalised(pictures, (light * tint).astype(np.float32))
        seen = self.network.see(small)
        told = [self._embeddings[self._random.choice(known, len(chosen))] for known in self._sentences]
        return _loss(torch.stack([self.network.decide(seen, one) for one in told], 1), labels, weights)

    def predict(self, frames: Frames) -> Tensor:
        """What the network would do on each frame for each of `SIDES`, (n, 2, 3), by the first sentence of each."""
        self.network.eval()
        parts = []
        with torch.inference_mode():
            for begin in range(0, len(frames), BATCH):
                seen = self.network.see(normalised(frames.pictures[begin : begin + BATCH]))
                told = [self._embeddings[known[0]].expand(len(seen), -1) for known in self._sentences]
                parts.append(torch.stack([self.network.decide(seen, one) for one in told], 1))
        return torch.cat(parts)

    @property
    def held_out_frames(self) -> int:
        """How many frames are held out."""
        return len(self._held_out)

    def held_out_loss(self) -> float:
        """The same loss as in training, on the held-out frames."""
        held_out = self._held_out
        return float(_loss(self.predict(held_out), held_out.labels, held_out.weights))

    def held_out_errors(self) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """The mean absolute errors of each axis for the drives' own instructions: the network's, the best constant's.

        In units of the network's output. The best constant is the median of these very frames.
        """
        rows, own = np.arange(len(self._held_out)), self._held_out.own
        labels = self._held_out.labels[rows, own]
        predicted = self.predict(self._held_out).numpy()[rows, own]
        return np.abs(predicted - labels).mean(0), np.abs(np.median(labels, axis=0) - labels).mean(0)


def normalised(pictures: NDArray[np.uint8], light: NDArray[np.float32] | float = 1.0) -> Tensor:
    """Pictures, (n, 112, 112, 3) RGB, as the network's halved input, (n, 3, 112, 112).

    `light`, (n, 3) or a number, is what their values are multiplied with before.
    """
    factor = np.broadcast_to(light * np.float32(IMAGE.scale) / np.array(IMAGE.std, np.float32), (len(pictures), 3))
    offset = torch.tensor([-mean / std for mean, std in zip(IMAGE.mean, IMAGE.std, strict=True)])
    values = torch.from_numpy(pictures).float()
    values.mul_(torch.from_numpy(factor.copy())[:, None, None]).add_(offset)
    return values.permute(0, 3, 1, 2)


def _loss(actions: Tensor, labels: NDArray[np.float32], weights: NDArray[np.float32]) -> Tensor:
    """Of actions, (n, 2, 3), as `Frames` labels and weighs them."""
    wanted, weight = torch.from_numpy(labels), torch.from_numpy(weights)
    each = torch.nn.functional.smooth_l1_loss(actions, wanted, reduction="none", beta=_QUADRATIC_BELOW)
    return (each.mean(2) * weight).sum() / weight.sum()


def _rate(done: float) -> float:
    """The learning rate's share at a share of a phase."""
    if done < _WARM_UP:
        return max(done, _LAST_RATE) / _WARM_UP
    falling = (done - _WARM_UP) / (1 - _WARM_UP)
    return _LAST_RATE + (1 - _LAST_RATE) * (1 + float(np.cos(np.pi * falling))) / 2
