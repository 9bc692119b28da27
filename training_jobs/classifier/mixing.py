"""MixUp and CutMix on a batch with soft targets."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from training_jobs.classifier import config as configuration


def mix(
    config: configuration.Mixing, pictures: Tensor, targets: Tensor, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Return the batch, with probability `p` mixed with a shuffled copy of itself.

    MixUp (Zhang et al. 2018) blends whole pictures with a share drawn from Beta(alpha, alpha). CutMix (Yun et al. 2019)
    pastes a box of that area; the targets follow the area that was really pasted. `pictures` is float32 [N, C, H, W],
    `targets` float32 [N, K]; both come back in these shapes.
    """
    if config.strategy is None or rng.random() >= config.p:
        return pictures, targets
    share = float(rng.beta(config.alpha, config.alpha))
    order = torch.from_numpy(rng.permutation(len(pictures))).to(pictures.device)
    if config.strategy == "mixup":
        pictures = pictures.lerp(pictures[order], 1 - share)
    else:
        height, width = pictures.shape[2:]
        top, bottom, left, right = _box(height, width, share, rng)
        pasted = pictures[order, :, top:bottom, left:right]
        pictures = pictures.clone(memory_format=torch.preserve_format)
        pictures[:, :, top:bottom, left:right] = pasted
        share = 1 - (bottom - top) * (right - left) / (height * width)
    return pictures, targets * share + targets[order] * (1 - share)


def _box(height: int, width: int, share: float, rng: np.random.Generator) -> tuple[int, int, int, int]:
    """Return top, bottom, left, right of a box of about `1 - share` of the area around a random point, clipped."""
    side = float(np.sqrt(1 - share))
    y, x = int(rng.integers(height)), int(rng.integers(width))
    half_height, half_width = int(height * side / 2), int(width * side / 2)
    return max(0, y - half_height), min(height, y + half_height), max(0, x - half_width), min(width, x + half_width)
