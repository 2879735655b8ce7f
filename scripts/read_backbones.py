"""Kosmos-2 and CLIP inside a checkpoint: where they are, how large, and built by transformers in that size.

Sizes are read from shapes. What shapes do not show is as in all published sizes of both: 64 numbers for each head of
attention, and the configurations' own defaults for the rest.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn
from transformers import (
    CLIPTextConfig,
    CLIPTextModel,
    CLIPVisionConfig,
    CLIPVisionModel,
    Kosmos2Config,
    Kosmos2Model,
    logging,
)

if TYPE_CHECKING:
    from collections.abc import Mapping

logging.set_verbosity_error()  # of what its configurations default to
_HEAD = 64
_KOSMOS = "image_to_text_projection.latent_query"
_PICTURE, _TEXT = "embeddings.class_embedding", "embeddings.token_embedding.weight"
"""Parameters that only these have, by which they are found."""


@dataclass(frozen=True, slots=True)
class Backbones:
    """The modules by their paths in the checkpoint, what each source gives, and where CLIP's picture part is.

    `loose` is CLIP's temperature, which training needs and driving does not.
    """

    modules: dict[str, nn.Module]
    widths: dict[str, int]
    vision: str = ""
    projection: str = ""
    loose: dict[str, nn.Parameter] = field(default_factory=dict)

    def owns(self, key: str) -> bool:
        """Whether a parameter belongs to one of them."""
        return key in self.loose or any(key.startswith(f"{path}.") for path in self.modules)

    def picture(self, images: Tensor, *, projected: bool) -> Tensor:
        """What CLIP makes of pictures, before or after its projection."""
        pooled: Tensor = self.modules[self.vision](pixel_values=images).pooler_output
        return self.modules[self.projection](pooled) if projected else pooled


def read_backbones(state: Mapping[str, Tensor]) -> Backbones:
    """Those that are in a checkpoint's parameters, not yet filled with them."""
    modules: dict[str, nn.Module] = {}
    widths: dict[str, int] = {}
    for path in _paths(state, _KOSMOS):
        modules[path], widths["kosmos"] = _kosmos(_below(state, path))
    found = Backbones(modules, widths)
    outside = {key: value for key, value in state.items() if not found.owns(key)}
    vision = projection = ""
    for vision in _paths(outside, _PICTURE):
        modules[vision], widths["image"] = _vision(_below(state, vision))
    for path in _paths(outside, _TEXT):
        modules[path] = _text(_below(state, path))
    for key, weight in outside.items():
        path, _, name = key.rpartition(".")
        if path.rpartition(".")[2] in {"visual_projection", "text_projection"} and name == "weight":
            modules[path] = nn.Linear(weight.shape[1], weight.shape[0], bias=f"{path}.bias" in state)
            if path.endswith("visual_projection") and vision:
                projection, widths["projected"] = path, weight.shape[0]
    loose = {key: nn.Parameter(value.clone()) for key, value in outside.items() if key.endswith(".logit_scale")}
    return Backbones(modules, widths, vision, projection, loose)


def _paths(state: Mapping[str, Tensor], ending: str) -> list[str]:
    return [key.removesuffix(f".{ending}") for key in state if key.endswith(f".{ending}")]


def _below(state: Mapping[str, Tensor], path: str) -> dict[str, Tensor]:
    return {key.removeprefix(f"{path}."): value for key, value in state.items() if key.startswith(f"{path}.")}


def _depth(state: Mapping[str, Tensor], before: str) -> int:
    """How many layers are numbered behind `before`."""
    numbers = (re.match(rf"{re.escape(before)}(\d+)\.", key) for key in state)
    return 1 + max((int(number[1]) for number in numbers if number), default=-1)


def _vision_sizes(state: Mapping[str, Tensor]) -> dict[str, Any]:
    """A configuration of CLIP's picture part, which Kosmos-2 has as well."""
    patches = state["embeddings.patch_embedding.weight"]
    places = state["embeddings.position_embedding.weight"].shape[0] - 1
    return {
        "hidden_size": patches.shape[0],
        "patch_size": patches.shape[-1],
        "image_size": patches.shape[-1] * math.isqrt(places),
        "num_hidden_layers": _depth(state, "encoder.layers."),
        "num_attention_heads": max(1, patches.shape[0] // _HEAD),
        "intermediate_size": state["encoder.layers.0.mlp.fc1.weight"].shape[0],
    }


def _eager(config: Any) -> Any:
    """The plain attention, which every exporter understands."""
    config._attn_implementation = "eager"  # noqa: SLF001 - transformers has no public name for it on a configuration
    return config


def _vision(state: Mapping[str, Tensor]) -> tuple[nn.Module, int]:
    config = CLIPVisionConfig(**_vision_sizes(state))
    return CLIPVisionModel(_eager(config)), config.hidden_size


def _text(state: Mapping[str, Tensor]) -> nn.Module:
    rows = state[_TEXT]
    config = CLIPTextConfig(
        vocab_size=rows.shape[0],
        hidden_size=rows.shape[1],
        max_position_embeddings=state["embeddings.position_embedding.weight"].shape[0],
        num_hidden_layers=_depth(state, "encoder.layers."),
        num_attention_heads=max(1, rows.shape[1] // _HEAD),
        intermediate_size=state["encoder.layers.0.mlp.fc1.weight"].shape[0],
    )
    module: nn.Module = CLIPTextModel(_eager(config))
    return module


def _kosmos(state: Mapping[str, Tensor]) -> tuple[nn.Module, int]:
    rows = state["text_model.model.embed_tokens.weight"]
    text = {
        "vocab_size": rows.shape[0],
        "embed_dim": rows.shape[1],
        "layers": _depth(state, "text_model.model.layers."),
        "ffn_dim": state["text_model.model.layers.0.ffn.fc1.weight"].shape[0],
        "attention_heads": max(1, rows.shape[1] // _HEAD),
    }
    vision = _vision_sizes(_below(state, "vision_model.model"))
    config = Kosmos2Config(text_config=text, vision_config=vision, latent_query_num=state[_KOSMOS].shape[0])
    return Kosmos2Model(_eager(config)), rows.shape[1]
