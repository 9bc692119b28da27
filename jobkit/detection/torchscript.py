"""A detector as it goes on from its library: TorchScript and a spec, which need no library."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from jobkit.model_spec import DetectorSpec, NonMaxSuppression, Preprocessing

if TYPE_CHECKING:
    from torch import nn

GRAY = 114  # what a letterboxed picture is padded with


@dataclass(frozen=True)
class Detector:
    """A detector in evaluation mode on the CPU.

    `module`: pictures float32 [N, 3, H, W] of values 0..1, RGB, letterboxed with gray 114, to
    `raw` [N, 4 + classes, anchors] (center x, center y, width, height in pixels of the input; scores in 0..1), and for
    `segment` also `coefficients` [N, 32, anchors] and `protos` [N, 32, H / 4, W / 4].
    """

    module: nn.Module
    task: Literal["detect", "segment"]
    labels: list[str]


def preprocessing(img_size: tuple[int, int]) -> Preprocessing:
    """Return how a picture is prepared for a detector of this height and width: letterboxed, RGB, values 0..1."""
    height, width = img_size
    return Preprocessing(
        height=height, width=width, channels=3, resize="letterbox", pad_value=GRAY, mean=(0, 0, 0), std=(1, 1, 1)
    )


def detector_spec(
    task: Literal["detect", "segment"], labels: list[str], group: str, img_size: tuple[int, int],
    suppression: NonMaxSuppression | None,
) -> DetectorSpec:  # fmt: skip
    """Return the interface of a detector of the classes `labels` for pictures of `img_size`, height and width."""
    return DetectorSpec(
        group=group, architecture=f"ultralytics {task}", labels=labels, task=task,
        preprocessing=preprocessing(img_size), suppression=suppression,
    )  # fmt: skip


def traced(detector: Detector, img_size: tuple[int, int]) -> Any:
    """Return the detector as TorchScript; the batch is free, the size of the pictures is not."""
    import torch

    with torch.no_grad():
        return torch.jit.trace(detector.module, torch.zeros(2, 3, *img_size), check_trace=False)
