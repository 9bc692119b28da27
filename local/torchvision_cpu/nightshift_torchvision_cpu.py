"""Lets torchvision's wheel from the package index be imported beside a CPU build of torch.

That wheel's compiled operators need CUDA's libraries; beside a CPU torch they do not load, and torchvision then fails
at import because it describes operators (`torchvision::nms`) that nobody defined. This module declares them just
before torchvision is imported. Transforms and models work; calling one of the compiled operators says that it is
missing. Installed only where it is needed (see `local/bootstrap.py`).
"""

import importlib.abc
import sys


class _Finder(importlib.abc.MetaPathFinder):
    """Declares the operators when torchvision is first looked for, then steps aside."""

    def find_spec(self, name: str, path: object = None, target: object = None) -> None:
        if name != "torchvision":
            return
        sys.meta_path.remove(self)
        import torch  # type: ignore[import-not-found, unused-ignore]  # not in the environment of `local`

        library = torch.library.Library("torchvision", "DEF")
        for operator in ("nms", "qnms"):
            library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _declared.append(library)


_declared: list[object] = []  # the declarations live as long as the objects in it


sys.meta_path.insert(0, _Finder())
