"""A small encoder of volumes, such as a factory of the users' own builds: it imports nothing of this repository."""

from __future__ import annotations

import torch
from torch import Tensor, nn

SHAPE = (1, 8, 16, 16)


class VolumeEncoder(nn.Module):
    """A small vision transformer of volumes with two outputs: patches by a 3-D convolution, one attention layer."""

    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv3d(1, 12, 4, 4)
        self.place = nn.Parameter(torch.randn(1, 32, 12))
        self.layer = nn.TransformerEncoderLayer(12, 2, 24, dropout=0.0, activation="gelu", batch_first=True)
        self.classes = nn.Linear(12, 3)

    def forward(self, volumes: Tensor) -> dict[str, Tensor]:
        tokens = self.layer(self.patches(volumes).flatten(2).transpose(1, 2) + self.place)
        return {"embedding": tokens.mean(1), "logits": self.classes(tokens.amax(1))}


def volume_encoder() -> nn.Module:
    """What `--factory tests.support.volumes:volume_encoder` builds."""
    return VolumeEncoder()
