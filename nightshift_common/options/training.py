"""Options of training jobs."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from nightshift_common.options.base import Options

Epochs = Annotated[int, Field(ge=1, le=1000, title="Epochs")]
BatchSize = Annotated[int, Field(ge=1, le=4096, title="Batch size")]
Gpus = Annotated[int, Field(ge=1, le=16, title="GPUs")]
InputSize = Annotated[int, Field(ge=32, le=4096, multiple_of=32, title="Input size")]
DetectorTask = Literal["detect", "segment"]
FlipTta = Literal["off", "horizontal", "vertical", "both"]


class InferenceOptions(Options):
    """What a classifier's graph does beside the model itself."""

    flip_tta: FlipTta | None = Field(None, title="Flip TTA")
    """the graph gives the mean over the picture and its mirror image (both: its three); an answer takes twice (both:
    four times) as long; none: as the training configuration says"""
    temperature_scaling: bool | None = Field(None, title="Temperature scaling")
    """the graph divides the logits by what makes the labels of the validation pictures likeliest, so that a confidence
    is the share that is right; none: as the training configuration says"""
