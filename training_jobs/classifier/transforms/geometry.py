"""Augmentations that move pixels."""

from __future__ import annotations

from typing import Any, Literal, Self

import cv2
import numpy as np
from numpy.typing import NDArray
from pydantic import Field, model_validator

from training_jobs.classifier.transforms.augmentation import Augmentation, Picture, Range, span


class HorizontalFlip(Augmentation):
    """Mirror left and right."""

    type: Literal["horizontal_flip"]

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return the mirrored picture."""
        return cv2.flip(picture, 1)  # type: ignore[return-value]


class VerticalFlip(Augmentation):
    """Mirror top and bottom."""

    type: Literal["vertical_flip"]

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return the mirrored picture."""
        return cv2.flip(picture, 0)  # type: ignore[return-value]


class RandomCropFromBorders(Augmentation):
    """Cut up to `crop_ratio` of the width or height off each side; the rest is brought back to the input size."""

    type: Literal["random_crop_from_borders"]
    crop_ratio: float = Field(0.1, gt=0, lt=0.5, description="largest part cut off a side")

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return the inner part, smaller than before."""
        height, width = picture.shape[:2]
        top, bottom = (int(part) for part in rng.uniform(0, self.crop_ratio, 2) * height)
        left, right = (int(part) for part in rng.uniform(0, self.crop_ratio, 2) * width)
        return picture[top : height - bottom, left : width - right]


class RandomResizedCrop(Augmentation):
    """Cut out a random part and stretch it back to the picture's size (Szegedy et al. 2015)."""

    type: Literal["random_resized_crop"]
    scale: Range = Field((0.3, 1.0), description="smallest and largest part of the area")
    ratio: Range = Field((0.75, 4 / 3), description="smallest and largest ratio of width to height")

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if not 0 < self.scale[0] <= self.scale[1] <= 1 or not 0 < self.ratio[0] <= self.ratio[1]:
            raise ValueError(
                f"scale {self.scale} and ratio {self.ratio}: valid are smallest, largest; scale within 0..1"
            )
        return self

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return a picture of the same size."""
        height, width = picture.shape[:2]
        area, ratio = rng.uniform(*self.scale) * height * width, np.exp(rng.uniform(*np.log(self.ratio)))
        cut_width = int(np.clip(np.sqrt(area * ratio), 1, width))
        cut_height = int(np.clip(np.sqrt(area / ratio), 1, height))
        top, left = int(rng.integers(height - cut_height + 1)), int(rng.integers(width - cut_width + 1))
        cut = picture[top : top + cut_height, left : left + cut_width]
        return cv2.resize(cut, (width, height), interpolation=cv2.INTER_LINEAR)  # type: ignore[return-value]


class ShiftScaleRotate(Augmentation):
    """Shift, scale and turn in one resampling, around the picture's center."""

    type: Literal["shift_scale_rotate"]
    shift_limit: float | Range = Field(0.0625, description="part of the height and width; x means -x..x")
    scale_limit: float | Range = Field(0.1, description="change of the scale: 0.1 means 0.9..1.1")
    rotate_limit: float | Range = Field(45.0, description="degrees; x means -x..x")
    fill_value: int = Field(0, ge=0, le=255, description="gray value of what comes in from outside")

    @model_validator(mode="after")
    def _positive_scale(self) -> Self:
        if span(self.scale_limit)[0] <= -1:
            raise ValueError(f"scale_limit is {self.scale_limit}; valid: above -1 (the scale is 1 + the drawn value)")
        return self

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return the moved picture, of the same size."""
        height, width = picture.shape[:2]
        angle, scale = rng.uniform(*span(self.rotate_limit)), 1 + rng.uniform(*span(self.scale_limit))
        matrix = cv2.getRotationMatrix2D(((width - 1) / 2, (height - 1) / 2), angle, scale)
        matrix[:, 2] += rng.uniform(*span(self.shift_limit), 2) * np.array([width, height])
        return warp(picture, matrix, self.fill_value)


class ElasticTransform(Augmentation):
    """Displace pixels by smoothed noise (Simard et al. 2003)."""

    type: Literal["elastic_transform"]
    alpha: float = Field(1.0, ge=0, description="strength: the smoothed noise is multiplied by it, pixels")
    sigma: float = Field(50.0, gt=0, description="smoothness: standard deviation of the Gaussian, pixels")

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return the displaced picture, of the same size."""
        height, width = picture.shape[:2]
        x, y = np.meshgrid(np.arange(width, dtype=np.float32), np.arange(height, dtype=np.float32))
        x += self._displacement(height, width, rng)
        y += self._displacement(height, width, rng)
        return remap(picture, x, y)

    def _displacement(self, height: int, width: int, rng: np.random.Generator) -> NDArray[Any]:
        """Return float32 [H, W].

        Noise that is smoothed by `sigma` has no detail finer than that, so it is made on a grid coarser by
        `step = sigma / 2` and enlarged; on that grid the smoothing averages `step` times fewer values a side, which
        leaves the noise `step` times stronger: hence the division.
        """
        step = max(1.0, self.sigma / 2)
        shape = (int(height / step) + 2, int(width / step) + 2)
        noise = rng.uniform(-1, 1, shape).astype(np.float32)
        smooth = cv2.GaussianBlur(noise, (0, 0), self.sigma / step, borderType=cv2.BORDER_REFLECT_101)
        if step > 1:
            smooth = cv2.resize(smooth, (width, height), interpolation=cv2.INTER_CUBIC)
        return smooth[:height, :width] * np.float32(self.alpha / step)


class GridDistortion(Augmentation):
    """Stretch and squeeze the columns and rows of a grid; the borders stay where they are."""

    type: Literal["grid_destortion", "grid_distortion"]
    num_steps: int = Field(5, ge=1, le=100, description="cells a side")
    distort_limit: float | Range = Field(0.3, description="change of a cell's width: 0.3 means 0.7..1.3")

    @model_validator(mode="after")
    def _positive_cells(self) -> Self:
        if span(self.distort_limit)[0] <= -1:
            raise ValueError(
                f"distort_limit is {self.distort_limit}; valid: above -1 (a cell's width is 1 + the drawn value)"
            )
        return self

    def apply(self, picture: Picture, rng: np.random.Generator) -> Picture:
        """Return the distorted picture, of the same size."""
        height, width = picture.shape[:2]
        x, y = self._axis(width, rng), self._axis(height, rng)
        return remap(picture, np.repeat(x[None], height, 0), np.repeat(y[:, None], width, 1))

    def _axis(self, size: int, rng: np.random.Generator) -> NDArray[np.float32]:
        """Return where each of `size` pixels of an axis comes from, float32 [size]."""
        cells = 1 + rng.uniform(*span(self.distort_limit), self.num_steps)
        edges = np.concatenate([[0], np.cumsum(cells) / cells.sum()])
        even = np.linspace(0, 1, self.num_steps + 1)
        places: NDArray[np.float32] = np.interp(np.linspace(0, 1, size), even, edges).astype(np.float32)
        return places * np.float32(size - 1)


def warp(picture: Picture, matrix: NDArray[Any], fill_value: int = 0) -> Picture:
    """Return `picture` moved by an affine `matrix` (float [2, 3], source to target), of the same size."""
    height, width = picture.shape[:2]
    return cv2.warpAffine(  # type: ignore[return-value]
        picture, matrix, (width, height), borderMode=cv2.BORDER_CONSTANT, borderValue=(fill_value,) * 3
    )


def remap(picture: Picture, x: NDArray[Any], y: NDArray[Any]) -> Picture:
    """Return `picture` with each pixel taken from (x, y), float32 [H, W] each."""
    return cv2.remap(picture, x, y, cv2.INTER_LINEAR, borderMode=cv2.BORDER_REFLECT_101)  # type: ignore[return-value]
