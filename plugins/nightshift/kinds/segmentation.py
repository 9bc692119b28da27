"""`kind: segmentation`: masks of objects, by the jobs of detection."""

from __future__ import annotations

from typing import Literal

from nightshift.kinds.detection import DetectionPipeline


class SegmentationPipeline(DetectionPipeline):
    """A segmenter that is trained anew every night; an object is found where the masks overlap."""

    kind: Literal["segmentation"]  # type: ignore[assignment] # each kind has its own

    @property
    def task(self) -> Literal["detect", "segment"]:
        """Masks too."""
        return "segment"
