"""`kind: segmentation`: masks of objects, by the jobs of detection."""

from __future__ import annotations

from typing import Literal

from nightshift.kinds.detection import DetectionPipeline, DetectorGate


class SegmenterGate(DetectorGate):
    """When a candidate may replace the champion; an object is found where the masks overlap."""


class SegmentationPipeline(DetectionPipeline):
    """A segmenter that is trained anew every night."""

    kind: Literal["segmentation"]  # type: ignore[assignment] # each kind has its own
    gate: SegmenterGate = SegmenterGate()

    @property
    def task(self) -> Literal["detect", "segment"]:
        """Masks too."""
        return "segment"
