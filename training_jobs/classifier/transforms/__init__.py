"""The transforms of the configuration file, by the names that its users know.

A picture inside the pipeline is uint8, [H, W] (gray) or [H, W, 3] (RGB). Fixed transforms bring it to the model's
input and are the same in training, validation and serving; an augmentation changes it at random.
"""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from training_jobs.classifier.transforms.auto_augment import RandAugment, TrivialAugment
from training_jobs.classifier.transforms.color import (
    CoarseDropout,
    MedianBlur,
    PlanckianJitter,
    RandomBrightnessContrast,
    RgbShift,
)
from training_jobs.classifier.transforms.fixed import LongestMaxSize, Normalize, PadIfNeeded, Resize, ToTensor
from training_jobs.classifier.transforms.geometry import (
    ElasticTransform,
    GridDistortion,
    HorizontalFlip,
    RandomCropFromBorders,
    RandomResizedCrop,
    ShiftScaleRotate,
    VerticalFlip,
)

PreTransform = Annotated[LongestMaxSize | PadIfNeeded | Resize, Field(discriminator="type")]
PostTransform = Annotated[LongestMaxSize | PadIfNeeded | Resize | Normalize | ToTensor, Field(discriminator="type")]
AnyAugmentation = Annotated[
    RandomCropFromBorders
    | RandomResizedCrop
    | HorizontalFlip
    | VerticalFlip
    | ShiftScaleRotate
    | ElasticTransform
    | GridDistortion
    | RandomBrightnessContrast
    | MedianBlur
    | RgbShift
    | PlanckianJitter
    | CoarseDropout
    | RandAugment
    | TrivialAugment,
    Field(discriminator="type"),
]
