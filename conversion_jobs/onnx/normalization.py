"""Normalization inside the graph, for clients that send pictures as they are."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from jobkit.model_spec import Preprocessing


class Normalized(nn.Module):
    """A model behind its normalization: float32 [N, C, H, W] with values 0..255."""

    scale: Tensor
    shift: Tensor

    def __init__(self, model: nn.Module, how: Preprocessing) -> None:
        super().__init__()
        self.model = model
        shape = (1, how.channels, 1, 1)
        self.register_buffer("scale", 1 / (255 * torch.tensor(how.std).reshape(shape)))
        self.register_buffer("shift", (torch.tensor(how.mean) / torch.tensor(how.std)).reshape(shape))

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the model's output."""
        output: Tensor = self.model(pictures * self.scale - self.shift)
        return output


def normalized(model: nn.Module, how: Preprocessing) -> nn.Module:
    """Return `model` behind `(value / 255 - mean) / std`, in evaluation mode."""
    return Normalized(model, how).eval()
