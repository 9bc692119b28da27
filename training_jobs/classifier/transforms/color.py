"""Augmentations that change values where they are."""

from __future__ import annotations

from typing import Any, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from training_jobs.classifier.transforms.augmentation import Augmentation, Picture, Range, span

_VALUES = np.arange(256, dtype=np.float32)


class RandomBrightnessContrast(Augmentation):
    """`value * (1 + contrast) + 255 * brightness`."""

    type: Literal["random_brightness_contrast"]
    brightness_limit: float | Range = Field(0.2, description="part of white; x means -x..x")
    contrast_limit: float | Range = Field(0.2, description="change of the contrast; x means -x..x")

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return the changed picture."""
        contrast, brightness = rng.uniform(*span(self.contrast_limit)), rng.uniform(*span(self.brightness_limit))
        return lookup(picture, _VALUES * (1 + contrast) + 255 * brightness)


class MedianBlur(Augmentation):
    """Median filter with a random odd kernel."""

    type: Literal["median_blur"]
    blur_limit: int | tuple[int, int] = Field(
        7, description="largest kernel, or smallest and largest; odd, from 3, pixels"
    )

    @model_validator(mode="after")
    def _odd(self) -> Self:
        low, high = self._sizes
        if not 3 <= low <= high <= 255 or low % 2 == 0 or high % 2 == 0:
            raise ValueError(f"blur_limit is {self.blur_limit}; valid: odd numbers from 3 to 255")
        return self

    @property
    def _sizes(self) -> tuple[int, int]:
        return (3, self.blur_limit) if isinstance(self.blur_limit, int) else self.blur_limit

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return the blurred picture."""
        low, high = self._sizes
        return cv2.medianBlur(picture, low + 2 * int(rng.integers((high - low) // 2 + 1)))  # type: ignore[return-value]


class RgbShift(Augmentation):
    """Add a random value to each channel."""

    type: Literal["rgb_shift"]
    r_shift_limit: float | Range = Field(20, description="of red, 0..255; x means -x..x")
    g_shift_limit: float | Range = Field(20, description="of green, 0..255; x means -x..x")
    b_shift_limit: float | Range = Field(20, description="of blue, 0..255; x means -x..x")

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return the shifted picture."""
        shifts = [rng.uniform(*span(limit)) for limit in (self.r_shift_limit, self.g_shift_limit, self.b_shift_limit)]
        return lookup(picture, _VALUES[:, None] + np.asarray(shifts, np.float32))


class PlanckianJitter(Augmentation):
    """Change the light's color temperature (Zini et al. 2022): from candle light to a blue sky."""

    type: Literal["planckian_jitter"]
    temperature_limit: Range = Field(
        (3000.0, 15000.0), description="lowest and highest temperature, kelvin, in 1667..25000"
    )

    @model_validator(mode="after")
    def _range(self) -> Self:
        low, high = self.temperature_limit
        if not 1667 <= low <= high <= 25000:
            raise ValueError(
                f"temperature_limit is {list(self.temperature_limit)}; valid: low, high within 1667..25000 K"
            )
        return self

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return the picture as if lit by a black body; 6504 K (daylight, sRGB's white) leaves it as it is."""
        gains = black_body(rng.uniform(*self.temperature_limit)) / black_body(6504)
        return lookup(picture, _VALUES[:, None] * (gains / gains[1]).astype(np.float32))


def black_body(kelvin: float) -> NDArray[np.float64]:
    """Return a black body's color as linear sRGB [3].

    The chromaticity is the cubic fit of Kim et al. 2002 (US patent 7024034), valid for 1667..25000 K.
    """
    t = 1e3 / kelvin
    if kelvin <= 4000:
        x = -0.2661239 * t**3 - 0.2343589 * t**2 + 0.8776956 * t + 0.179910
    else:
        x = -3.0258469 * t**3 + 2.1070379 * t**2 + 0.2226347 * t + 0.240390
    if kelvin <= 2222:
        y = -1.1063814 * x**3 - 1.34811020 * x**2 + 2.18555832 * x - 0.20219683
    elif kelvin <= 4000:
        y = -0.9549476 * x**3 - 1.37418593 * x**2 + 2.09137015 * x - 0.16748867
    else:
        y = 3.0817580 * x**3 - 5.87338670 * x**2 + 3.75112997 * x - 0.37001483
    xyz = np.array([x / y, 1.0, (1 - x - y) / y])
    to_srgb = np.array(
        [[3.2406, -1.5372, -0.4986], [-0.9689, 1.8758, 0.0415], [0.0557, -0.2040, 1.0570]]
    )  # IEC 61966-2-1
    factors: NDArray[np.float64] = np.maximum(to_srgb @ xyz, 0.01)
    return factors


class CoarseDropout(Augmentation):
    """Fill random rectangles (DeVries and Taylor 2017). Sizes are pixels, or parts of the side where below 1."""

    type: Literal["coarse_dropout"]
    max_holes: int = Field(8, ge=1, le=1000, description="most rectangles")
    min_holes: int | None = Field(None, ge=1, description="fewest rectangles; default: max_holes")
    max_height: float = Field(8, gt=0, description="largest height")
    max_width: float = Field(8, gt=0, description="largest width")
    min_height: float | None = Field(None, gt=0, description="smallest height; default: max_height")
    min_width: float | None = Field(None, gt=0, description="smallest width; default: max_width")
    fill_value: int | list[int] = Field(0, description="gray value, or one value a channel, 0..255")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        for name in ("holes", "height", "width"):
            low, high = getattr(self, f"min_{name}"), getattr(self, f"max_{name}")
            if low is not None and low > high:
                raise ValueError(f"min_{name} is {low}, above max_{name}, which is {high}")
        values = [self.fill_value] if isinstance(self.fill_value, int) else self.fill_value
        if len(values) not in (1, 3) or not all(0 <= value <= 255 for value in values):
            raise ValueError(f"fill_value is {self.fill_value}; valid: 0..255, or three of them")
        return self

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return a copy with holes."""
        height, width = picture.shape[:2]
        result = picture.copy()
        low = self.max_holes if self.min_holes is None else self.min_holes
        for _ in range(int(rng.integers(low, self.max_holes + 1))):
            high = self._pixels(self.min_height, self.max_height, height, rng)
            wide = self._pixels(self.min_width, self.max_width, width, rng)
            top, left = int(rng.integers(height - high + 1)), int(rng.integers(width - wide + 1))
            result[top : top + high, left : left + wide] = self.fill_value
        return result

    @staticmethod
    def _pixels(low: float | None, high: float, side: int, rng: np.random.Generator) -> int:
        most = high * side if high < 1 else high
        least = most if low is None else (low * side if low < 1 else low)
        return min(side, max(1, round(rng.uniform(min(least, most), most))))


def lookup(picture: Picture, table: NDArray[Any]) -> Picture:
    """Return `picture` with every value replaced by its entry in `table`: float [256], or [256, 3], one a channel."""
    rounded = np.clip(np.rint(table), 0, 255).astype(np.uint8)
    return cv2.LUT(picture, rounded[:, None] if rounded.ndim == 2 else rounded)  # type: ignore[return-value]
