"""Augmentations that move pixels."""

from __future__ import annotations

from typing import Literal

import cv2
import numpy as np
from pydantic import Field

from training_jobs.classifier.transforms.augmentation import Picture, RandomTransform, Range, span


class ShiftScaleRotate(RandomTransform):
    """Shift, scale and turn in one resampling, around the picture's centre."""

    type: Literal["shift_scale_rotate"]
    shift_limit: float | Range = Field(0.0625, description="part of the height and width; x means -x..x")
    scale_limit: float | Range = Field(0.1, description="change of the scale: 0.1 means 0.9..1.1")
    rotate_limit: float | Range = Field(45.0, description="degrees; x means -x..x")
    fill_value: int = Field(0, ge=0, le=255, description="grey value of what comes in from outside")

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return the moved picture, of the same size."""
        height, width = picture.shape[:2]
        matrix = cv2.getRotationMatrix2D(
            ((width - 1) / 2, (height - 1) / 2),
            rng.uniform(*span(self.rotate_limit)),
            1 + rng.uniform(*span(self.scale_limit)),
        )
        matrix[:, 2] += rng.uniform(*span(self.shift_limit), 2) * (width, height)
        return cv2.warpAffine(  # type: ignore[return-value]
            picture, matrix, (width, height), borderMode=cv2.BORDER_CONSTANT, borderValue=(self.fill_value,) * 3
        )
