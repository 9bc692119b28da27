"""Options of detectors (placeholder until the branch with the jobs is merged)."""

from __future__ import annotations

from pydantic import Field

from nightshift_common.options.base import Options


class DetectorTrainingOptions(Options):
    """How a detector is trained."""

    architecture: str = "yolov8n"
    """architecture"""


class DetectorEvaluationOptions(Options):
    """How found objects are matched with true ones."""

    iou_threshold: float = Field(0.5, gt=0, le=1)
    """overlap from which on an object is found"""
