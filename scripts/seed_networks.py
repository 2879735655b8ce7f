"""The networks of the Mobile VLA project's policies, whose shapes are fully known.

The names of their parts are those of the project's checkpoints, so that a state dict loads as it is. Convolutions and
poolings keep a picture's size up to their stride (padding of half a kernel), except where two by two are pooled.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

if TYPE_CHECKING:
    from collections.abc import Sequence

WINDOW, CHUNK = 8, 2
"""Steps that a recurrent policy looks back, and of which it answers the last ones."""
_PIXELS = 3 * 224 * 224


def chain(*widths: int) -> nn.Sequential:
    """Full layers of these widths with a ReLU between each two."""
    layers: list[nn.Module] = []
    for width, following in pairwise(widths):
        layers += [nn.Linear(width, following), nn.ReLU()]
    return nn.Sequential(*layers[:-1])


def convolutions(kernels: Sequence[tuple[int, int, int, int]], pool: nn.Module) -> list[nn.Module]:
    """(in, out, kernel, stride) of each convolution, a ReLU behind each, the pooling behind the first."""
    layers: list[nn.Module] = []
    for channels, width, kernel, stride in kernels:
        layers += [nn.Conv2d(channels, width, kernel, stride, kernel // 2), nn.ReLU()]
        if len(layers) == 2:
            layers.append(pool)
    return layers


class ClipHybridSmall(nn.Module):
    """`clip-hybrid-small`: a small convolutional network beside two layers for the instruction's numbers."""

    def __init__(self) -> None:
        super().__init__()
        first = convolutions([(3, 64, 3, 1), (64, 128, 3, 1)], nn.MaxPool2d(2))
        last = [nn.MaxPool2d(2), nn.Conv2d(128, 256, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
        self.image_encoder = nn.Sequential(*first, *last)
        self.text_encoder = chain(512, 256, 128)
        self.fusion_layer = nn.Sequential(
            nn.Linear(384, 512), nn.ReLU(), nn.Dropout(0.1), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 3)
        )

    def forward(self, images: Tensor, told: Tensor) -> Tensor:
        """The actions, (n, 3), for pictures, (n, 3, 224, 224), and the instruction's numbers, (n, 512)."""
        actions: Tensor = self.fusion_layer(torch.cat([self.image_encoder(images), self.text_encoder(told)], dim=1))
        return actions


class PictureRecurrent(nn.Module):
    """A picture to 2048 numbers, through a recurrent network of sequence length 1, to two actions."""

    def __init__(self, vision_encoder: nn.Module, hidden: int) -> None:
        super().__init__()
        self.vision_encoder = vision_encoder
        self.rnn = nn.RNN(2048, hidden, num_layers=4, batch_first=True)
        self.actions = chain(hidden, 1024, 512, 256, 2)

    def forward(self, images: Tensor) -> Tensor:
        """The actions, (n, 2), for pictures, (n, 3, 224, 224)."""
        steps, _ = self.rnn(self.vision_encoder(images).unsqueeze(1))
        actions: Tensor = self.actions(steps[:, -1])
        return actions


def gpu_simple() -> nn.Module:
    """`gpu-simple`: three convolutions and 1024 hidden numbers."""
    kernels = [(3, 64, 7, 2), (64, 128, 3, 2), (128, 256, 3, 2)]
    layers = convolutions(kernels, nn.MaxPool2d(3, 2, 1))
    return PictureRecurrent(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(256, 2048)), hidden=1024
    )


def gpu_accurate() -> nn.Module:
    """`gpu-accurate`: four convolutions and 4096 hidden numbers."""
    kernels = [(3, 64, 7, 2), (64, 128, 3, 2), (128, 256, 3, 2), (256, 512, 3, 2)]
    layers = convolutions(kernels, nn.MaxPool2d(3, 2, 1))
    return PictureRecurrent(
        nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(512, 2048)), hidden=4096
    )


def latency_surrogate() -> nn.Module:
    """`latency-surrogate`: one layer over all pixels; what the project's published latencies were measured on."""
    return PictureRecurrent(nn.Sequential(nn.Flatten(), nn.Linear(_PIXELS, 2048)), hidden=4096)


@dataclass(frozen=True, slots=True)
class Sight:
    """What Kosmos-2 is asked beside the picture, and which 2048 numbers of its answer are used.

    `before` and `after` are the token ids around the picture's own. `feature` is "mean", of all positions, or "last",
    the one that has seen everything. A checkpoint does not say which it was trained with.
    """

    before: tuple[int, ...] = (0, 64003)
    """Beginning of the text, beginning of the picture."""
    after: tuple[int, ...] = (64004,)
    """End of the picture, then the instruction if there is one."""
    feature: str = "mean"


class Kosmos(nn.Module):
    """Mixed into a policy that has `kosmos`, a transformers.Kosmos2Model: a picture to one row of numbers."""

    kosmos: Any
    sight: Sight

    def see(self, images: Tensor) -> Tensor:
        """For pictures (n, 3, 224, 224) what the language part makes of them, (n, 2048)."""
        picture = self.kosmos.get_image_features(images, return_dict=True).pooler_output
        row_of = self.kosmos.text_model.get_input_embeddings()
        before, after = (row_of(torch.tensor([ids])) for ids in (self.sight.before, self.sight.after))
        count = len(images)
        rows = torch.cat([before.expand(count, -1, -1), picture, after.expand(count, -1, -1)], dim=1)
        hidden: Tensor = self.kosmos.text_model(inputs_embeds=rows, use_cache=False).last_hidden_state
        return hidden.mean(dim=1) if self.sight.feature == "mean" else hidden[:, -1]


class Head(nn.Module):
    """Full layers under the name that the project's checkpoints give them, `mlp`."""

    def __init__(self, *widths: int) -> None:
        super().__init__()
        self.mlp = chain(*widths)

    def forward(self, steps: Tensor) -> Tensor:
        """Of each step's numbers two actions between -1 and 1."""
        return torch.tanh(self.mlp(steps))


class KosmosLstm(Kosmos):
    """`kosmos2-lstm`: Kosmos-2, an LSTM over a window of 8 steps, and full layers.

    As the project's robot runs it, the newest picture fills the whole window. Of a chunk of two steps the last counts.
    """

    def __init__(self, config: Any, sight: Sight, hidden: int = 1024) -> None:
        from transformers import Kosmos2Model  # noqa: PLC0415 - seconds, and not needed by the other policies

        super().__init__()
        self.sight = sight
        self.kosmos = Kosmos2Model(config)
        self.rnn = nn.LSTM(config.text_config.embed_dim, hidden, num_layers=4, batch_first=True)
        self.actions = Head(hidden, 1024, 512, 256, 2)

    def forward(self, images: Tensor) -> Tensor:
        """The actions, (n, 2), for pictures, (n, 3, 224, 224)."""
        steps, _ = self.rnn(self.see(images).unsqueeze(1).repeat(1, WINDOW, 1))
        actions: Tensor = self.actions(steps[:, -CHUNK:])
        return actions[:, -1]


def kosmos_lstm(sight: Sight | None = None) -> nn.Module:
    """`kosmos2-lstm` in its full size, which takes 7 GB."""
    from transformers import Kosmos2Config  # noqa: PLC0415 - seconds, and not needed by the other policies

    config = Kosmos2Config()
    config._attn_implementation = "eager"  # noqa: SLF001 - transformers has no public name for it on a configuration
    return KosmosLstm(config, sight or Sight())
