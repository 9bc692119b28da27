"""RandAugment and TrivialAugment: a random operation of a fixed list, at a set or a random strength.

Operations and ranges are those of the papers (Cubuk et al. 2020; Müller and Hutter 2021, "wide"), on uint8.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import cv2
import numpy as np
from pydantic import Field

from training_jobs.classifier.transforms.augmentation import Augmentation, Picture
from training_jobs.classifier.transforms.color import _VALUES, lookup
from training_jobs.classifier.transforms.geometry import warp

Operation = Callable[[Picture, float], Picture]


class RandAugment(Augmentation):
    """`num_transforms` random operations, one after another, all at strength `magnitude`."""

    type: Literal["randaugment"]
    num_transforms: int = Field(2, ge=1, le=15, description="operations a picture")
    magnitude: float = Field(9.0, ge=0, le=10, description="0: none; 10: the strongest")

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return the changed picture."""
        for name in rng.choice(list(OPERATIONS), self.num_transforms):
            operation, most, _, signed = OPERATIONS[name]
            sign = -1 if signed and rng.random() < 0.5 else 1
            picture = operation(picture, sign * most * self.magnitude / 10)
        return picture


class TrivialAugment(Augmentation):
    """One random operation at a random strength."""

    type: Literal["trivialaugment"]

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return the changed picture."""
        operation, _, most, signed = OPERATIONS[str(rng.choice(list(OPERATIONS)))]
        return operation(picture, rng.uniform(-most if signed else 0.0, most))


def _shear(picture: Picture, x: float, y: float) -> Picture:
    height, width = picture.shape[:2]
    return warp(picture, np.array([[1, x, -x * (height - 1) / 2], [y, 1, -y * (width - 1) / 2]], np.float32))


def _translate(picture: Picture, x: float, y: float) -> Picture:
    height, width = picture.shape[:2]
    return warp(picture, np.array([[1, 0, x * width], [0, 1, y * height]], np.float32))


def _rotate(picture: Picture, degrees: float) -> Picture:
    height, width = picture.shape[:2]
    return warp(picture, cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), degrees, 1.0))


def _blend(picture: Picture, base: Any, strength: float) -> Picture:
    """Return `base + (1 + strength) * (picture - base)`."""
    return cv2.addWeighted(picture, 1 + strength, base, -strength, 0)  # type: ignore[return-value]


def _saturation(picture: Picture, strength: float) -> Picture:
    if picture.ndim == 2:
        return picture
    return _blend(picture, cv2.cvtColor(cv2.cvtColor(picture, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB), strength)


def _contrast(picture: Picture, strength: float) -> Picture:
    mean = float(picture.mean())
    return lookup(picture, mean + (1 + strength) * (_VALUES - mean))


def _autocontrast(picture: Picture, _: float) -> Picture:
    """Stretch each channel to 0..255."""
    axes = (0, 1)
    low, high = picture.min(axes).astype(np.float32), picture.max(axes).astype(np.float32)
    scale = np.where(high > low, 255 / np.maximum(high - low, 1), 1).astype(np.float32)
    offset = np.where(high > low, low, 0).astype(np.float32)
    return lookup(picture, (_VALUES[:, None] - offset) * scale if picture.ndim == 3 else (_VALUES - offset) * scale)


def _equalize(picture: Picture, _: float) -> Picture:
    if picture.ndim == 2:
        return cv2.equalizeHist(picture)  # type: ignore[return-value]
    return cv2.merge([cv2.equalizeHist(channel) for channel in cv2.split(picture)])  # type: ignore[return-value]


def _posterize(picture: Picture, bits: float) -> Picture:
    """Clear the `bits` lowest bits."""
    return picture & np.uint8(0xFF << round(bits) & 0xFF)


def _solarize(picture: Picture, part: float) -> Picture:
    """Invert the brightest `part` of the range."""
    return lookup(picture, np.where(256 - 256 * part <= _VALUES, 255 - _VALUES, _VALUES))


# name -> operation, greatest strength in RandAugment, in TrivialAugment (wide), whether the strength has a random sign
OPERATIONS: dict[str, tuple[Operation, float, float, bool]] = {
    "identity": (lambda picture, _: picture, 0, 0, False),
    "shear_x": (lambda picture, value: _shear(picture, value, 0), 0.3, 0.99, True),
    "shear_y": (lambda picture, value: _shear(picture, 0, value), 0.3, 0.99, True),
    "translate_x": (lambda picture, value: _translate(picture, value, 0), 0.45, 0.145, True),  # 32 of 224 pixels
    "translate_y": (lambda picture, value: _translate(picture, 0, value), 0.45, 0.145, True),
    "rotate": (_rotate, 30, 135, True),
    "brightness": (lambda picture, value: lookup(picture, _VALUES * (1 + value)), 0.9, 0.99, True),
    "saturation": (_saturation, 0.9, 0.99, True),
    "contrast": (_contrast, 0.9, 0.99, True),
    "sharpness": (lambda picture, value: _blend(picture, cv2.blur(picture, (3, 3)), value), 0.9, 0.99, True),
    "posterize": (_posterize, 4, 6, False),
    "solarize": (_solarize, 1, 1, False),
    "autocontrast": (_autocontrast, 0, 0, False),
    "equalize": (_equalize, 0, 0, False),
}
