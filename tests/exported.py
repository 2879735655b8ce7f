"""Policies with tiny Kosmos-2 and CLIP of random weights, written as their project would, for tests of exporting."""

from __future__ import annotations

import sys
from importlib.util import find_spec
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent.parent / "scripts"))

if find_spec("torch") is not None and find_spec("transformers") is not None:
    import torch
    from seed_networks import Head, Kosmos, KosmosLstm, Sight
    from torch import Tensor, nn
    from transformers import (
        CLIPTextConfig,
        CLIPTextModel,
        CLIPVisionConfig,
        CLIPVisionModel,
        Kosmos2Config,
        Kosmos2Model,
    )

    VISION = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 1}
    VISION |= {"image_size": 224, "patch_size": 56}
    EAGER = "_attn_implementation"

    def kosmos_config() -> Any:
        text = {"vocab_size": 80, "embed_dim": 128, "layers": 2, "ffn_dim": 96, "attention_heads": 2}
        config = Kosmos2Config(text_config=text, vision_config=VISION, latent_query_num=4)
        setattr(config, EAGER, "eager")
        return config

    def sight(feature: str) -> Sight:
        return Sight((0, 70), (71, 12, 9), feature)

    def tiny_kosmos_lstm(feature: str) -> KosmosLstm:
        torch.manual_seed(4)
        return KosmosLstm(kosmos_config(), sight(feature), hidden=32).eval()

    class TinyClip(nn.Module):
        """The parts and names of transformers' CLIPModel, as its checkpoints have had them in all versions."""

        def __init__(self) -> None:
            super().__init__()
            text = {"hidden_size": 64, "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 1}
            self.logit_scale = nn.Parameter(torch.tensor(2.6))
            self.text_model = CLIPTextModel(CLIPTextConfig(vocab_size=30, max_position_embeddings=12, **text))
            self.vision_model = CLIPVisionModel(CLIPVisionConfig(**VISION))
            self.visual_projection = nn.Linear(64, 24, bias=False)
            self.text_projection = nn.Linear(64, 24, bias=False)

    class TinyRobovlms(nn.Module):
        """A small head on CLIP's picture and an instruction's numbers."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(5)
            self.clip = TinyClip()
            self.fusion = nn.Sequential(nn.Linear(64 + 512, 48), nn.ReLU(), nn.Dropout(0.2), nn.Linear(48, 32))
            self.action_head = nn.Sequential(nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 2))
            self.eval()

        def forward(self, images: Tensor, told: Tensor) -> Tensor:
            seen = self.clip.vision_model(pixel_values=images).pooler_output
            return torch.tanh(self.action_head(self.fusion(torch.cat([seen, told], dim=1))))

    class TinyHybrid(Kosmos):
        """Kosmos-2 beside CLIP, fused, through an LSTM, to two actions."""

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(6)
            self.sight = sight("mean")
            self.kosmos = Kosmos2Model(kosmos_config())
            self.clip_model = TinyClip()
            self.adapter = nn.Linear(128 + 24, 40)
            self.rnn = nn.LSTM(48, 20, 2, batch_first=True)
            self.feature_fusion = nn.Sequential(nn.Linear(40, 56), nn.LayerNorm(56), nn.ReLU(), nn.Linear(56, 48))
            self.actions = Head(20, 12, 2)
            self.eval()

        def forward(self, images: Tensor) -> Tensor:
            clip = self.clip_model.vision_model(pixel_values=images).pooler_output
            both = torch.cat([self.see(images), self.clip_model.visual_projection(clip)], dim=1)
            fused = self.feature_fusion(torch.relu(self.adapter(both)))
            steps, _ = self.rnn(torch.stack([fused] * 8, dim=1))
            return self.actions(steps[:, -1])
