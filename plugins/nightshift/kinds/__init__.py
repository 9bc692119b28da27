"""The kinds of pipelines. A new one is a file in this folder and its class in the union below."""

from __future__ import annotations

from typing import Annotated, get_args

from pydantic import Field

from nightshift.kinds.base import Pipeline, kind_of
from nightshift.kinds.classification import ClassificationPipeline
from nightshift.kinds.detection import DetectionPipeline
from nightshift.kinds.segmentation import SegmentationPipeline

AnyPipeline = Annotated[
    ClassificationPipeline | DetectionPipeline | SegmentationPipeline,
    Field(discriminator="kind"),
]
DEFAULT = "classification"  # where a file does not say its kind
KINDS: dict[str, type[Pipeline]] = {kind_of(pipeline): pipeline for pipeline in get_args(get_args(AnyPipeline)[0])}
