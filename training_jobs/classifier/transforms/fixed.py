"""Transforms that bring a picture to the model's input.

They only describe: what they describe is carried out by `jobkit.model_spec`, so that training, validation and serving
cannot differ.
"""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from nightshift_common.options.weights import Border
from training_jobs.classifier.section import Section


class LongestMaxSize(Section):
    """Resize, keeping the proportions, until the longer side has `max_size` pixels."""

    type: Literal["longest_max_size"]
    max_size: int | None = Field(None, gt=0, description="pixels; default: dataset.image_size")


class PadIfNeeded(Section):
    """Pad evenly on both sides to at least this size."""

    type: Literal["pad_if_needed"]
    min_height: int | None = Field(None, gt=0, description="pixels; default: dataset.image_size")
    min_width: int | None = Field(None, gt=0, description="pixels; default: dataset.image_size")
    border: Border = Field(
        "constant",
        description="what the padding shows: constant: fill_value; wrap: the opposite side of the picture; reflect: "
        "the picture mirrored at its edge, whose pixels are not repeated; replicate: the edge's pixels",
    )
    fill_value: int = Field(0, ge=0, le=255, description="gray value of a constant border")


class Resize(Section):
    """Resize to dataset.image_size without keeping the proportions."""

    type: Literal["resize"]
    height: int | None = Field(None, gt=0, description="pixels; default: dataset.image_size")
    width: int | None = Field(None, gt=0, description="pixels; default: dataset.image_size")


class Normalize(Section):
    """Subtract `mean` and divide by `std`, per channel, of values in 0..1."""

    type: Literal["normalize"]
    mean: list[float] | None = Field(None, description="default: ImageNet's for 3 channels, 0.5 for 1")
    std: list[float] | None = Field(None, description="default: ImageNet's for 3 channels, 0.25 for 1")
    max_pixel_value: float = Field(255.0, gt=0, description="the value that counts as 1")

    @model_validator(mode="after")
    def _consistent(self) -> Normalize:
        if any(value <= 0 for value in self.std or ()):
            raise ValueError("normalize.std must be above 0")
        return self


class ToTensor(Section):
    """To a float32 tensor [C, H, W]: always the last step, whether or not it is written."""

    type: Literal["to_tensor"]
