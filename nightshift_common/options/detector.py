"""Options of `train_detector` and `evaluate_detector`, which the sections `train` and `evaluate` of a pipeline of
detection or segmentation have too."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from nightshift_common.options.base import Options
from nightshift_common.options.training import BatchSize, DetectorTask, Epochs, InputSize

ARCHITECTURE = r"^(yolov8[nsmlx]|yolov9[ce]|yolo11[nsmlx]|yolo12[nsmlx])$"
"""Those that ship with the library for both tasks: their weights start at random, so nothing is fetched."""
Architecture = Annotated[str, Field(pattern=ARCHITECTURE, title="Architecture")]
Share = Annotated[float, Field(ge=0, le=1)]


class DetectorRecipe(Options):
    """How a detector or segmenter is trained."""

    architecture: Architecture = "yolov8n"
    """yolov8n, yolov8s, ..., yolov9c, yolo11n, yolo12n and their larger sizes; for segment its segmenter"""
    weights: str | None = Field(None, pattern=r"\S", title="Weights")
    """what to start from instead of random weights: a checkpoint of this library, a key in the bottle (say
    models/<group>/<experiment>/checkpoints/best.pt), an absolute path on the worker, or s3://bucket/key"""
    epochs: Epochs = 100
    """passes over the training pictures, at most"""
    batch: BatchSize = 16
    """pictures a step"""
    input_size: InputSize = 640
    """side of the square input, pixels; a picture is letterboxed into it"""
    learning_rate: float = Field(0.002, gt=0, le=1, title="Learning rate")
    """of AdamW for a batch of 64; for another batch in proportion to it"""
    weight_decay: float = Field(0.0005, ge=0, le=1)
    """of AdamW"""
    patience: int = Field(50, ge=1, le=1000)
    """the training ends after so many epochs without a better F1 on the validation pictures"""
    mosaic: Share = 1.0
    """share of the training pictures that are put together from four, except in the last tenth of the epochs"""
    flip: Share = 0.5
    """share of the training pictures that are mirrored; 0 where left and right differ, say for texts"""
    seed: int = Field(0, ge=0, lt=2**31)
    """of weights, order and augmentation"""


class DetectorTrainingOptions(DetectorRecipe):
    """What is trained, and how."""

    task: DetectorTask = "detect"
    """detect: boxes; segment: boxes and masks, for which every object needs polygons"""


class DetectorEvaluationOptions(Options):
    """How a detector's answers on the golden pictures become scores."""

    iou_threshold: float = Field(0.5, gt=0, le=1, title="IoU threshold")
    """a prediction is right from this intersection over union with an object on; for segment that of the masks"""
    nms_iou_threshold: float = Field(0.7, gt=0, le=1, title="IoU threshold of the suppression")
    """of raw outputs, a box that overlaps a better one of its class by more goes"""
    max_detections: int = Field(300, ge=1, le=3840, title="Max detections")
    """boxes a picture that are looked at, the surest first"""
