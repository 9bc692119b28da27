"""Lets torchvision's wheel from the package index work with a CPU build of torch.

That wheel's compiled operators need CUDA's libraries; beside a CPU torch they do not load, and torchvision then
fails at import because it describes operators (`torchvision::nms`) that nobody defined. This module defines them,
with a CPU kernel in torch, just before torchvision is imported. It is installed only where it is needed (see
`local/bootstrap.py`); pictures are decoded and transformed without compiled operators.
"""

import importlib.abc
import importlib.machinery
import sys


def nms(boxes, scores, iou_threshold):
    """Greedy non-maximum suppression: boxes [N, 4] xyxy, scores [N] -> int64 indices kept, by falling score."""
    import torch

    order = scores.argsort(descending=True, stable=True)
    area = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    kept = []
    while order.numel():
        best, rest = order[0], order[1:]
        kept.append(best)
        width = (torch.minimum(boxes[best, 2], boxes[rest, 2]) - torch.maximum(boxes[best, 0], boxes[rest, 0])).clamp(min=0)
        height = (torch.minimum(boxes[best, 3], boxes[rest, 3]) - torch.maximum(boxes[best, 1], boxes[rest, 1])).clamp(min=0)
        overlap = width * height
        order = rest[overlap / (area[best] + area[rest] - overlap) <= iou_threshold]
    return torch.stack(kept) if kept else order.new_empty(0, dtype=torch.int64)


class _Finder(importlib.abc.MetaPathFinder):
    """Defines the operator when torchvision is first looked for, then steps aside."""

    def find_spec(self, name, path=None, target=None):
        if name != "torchvision":
            return None
        sys.meta_path.remove(self)
        import torch

        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):  # qnms (quantised) is described only: nothing here calls it
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.impl("nms", nms, "CPU")
        sys._nightshift_torchvision_library = library  # the operator lives as long as this object
        return None


sys.meta_path.insert(0, _Finder())
