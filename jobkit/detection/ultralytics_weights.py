"""Ultralytics' detectors and segmenters, from their `.pt` files: runs in the environment `detection` and nowhere else.

Ultralytics is AGPL-3.0. This file and training_jobs/detector/ultralytics_trainer.py are the ones that import it; what
it gives is traced to TorchScript once, and every later step works on that.
"""

from __future__ import annotations

import importlib
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np

from jobkit.detection.torchscript import Detector
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.sandbox import runner

if TYPE_CHECKING:
    from torch import Tensor, nn

os.environ.setdefault("YOLO_OFFLINE", "true")
os.environ.setdefault("YOLO_AUTOINSTALL", "false")

STATE_FILE = "state.npz"
OTHER_TASKS = {
    "Pose": "a pose model",
    "OBB": "a detector of rotated boxes",
    "Classify": "a classifier",
    "RTDETRDecoder": "an RT-DETR",
}
"""Heads of Ultralytics' models that do not convert here, in words."""
# Beside torch's modules and Ultralytics' own: what its checkpoints hold that runs no code when it is read.
HARMLESS = {
    "collections.OrderedDict", "numpy.dtype", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
    "numpy.dtypes.Float32DType", "numpy.dtypes.Float64DType", "numpy.dtypes.Int64DType",
    "ultralytics.utils.IterableSimpleNamespace", "pathlib.PosixPath", "pathlib._local.PosixPath",
}  # fmt: skip


def load_detector(weights: Path, img_size: tuple[int, int]) -> Detector:
    """Return the model of an Ultralytics checkpoint; its averaged weights (`ema`) where it has them.

    Raises:
        DataValidationError: the file is no such checkpoint, or holds code.
        ConfigurationError: it is of another task than detect and segment, the sides of the input are no multiples of
            the model's stride, or Ultralytics is not here.
    """
    model = _model_of(read_checkpoint(weights), weights)
    from ultralytics.nn.modules.head import OBB, Detect, Pose, Segment

    head = model.model[-1]
    if not isinstance(head, Detect) or isinstance(head, Pose | OBB):
        raise ConfigurationError(_other_task(weights, type(head).__name__))
    stride = int(max(head.stride))
    if any(side % stride for side in img_size):
        raise ConfigurationError(
            f"--img_size {img_size[0]} {img_size[1]}: the model takes multiples of {stride} pixels"
        )
    model = model.float().eval().requires_grad_(False)
    model.fuse(verbose=False)
    head.end2end = False
    head.export, head.dynamic, head.format, head.shape = True, False, "onnx", None
    names = model.names
    labels = [str(names[index]) for index in range(len(names))] if isinstance(names, dict) else [str(n) for n in names]
    if head.end2end:
        raise DataValidationError(f"{weights} has a head without one-to-many outputs: only those convert")
    task: Literal["detect", "segment"] = "segment" if isinstance(head, Segment) else "detect"
    return Detector(_raw_outputs(model, head.nc), task, labels)


def _other_task(weights: Path, head: str) -> str:
    """Say what to do with a model whose outputs are not those of a detector or segmenter."""
    what = OTHER_TASKS.get(head, "a model of another kind")
    return (
        f"{weights} is {what} (it ends in {head}): of Ultralytics' models detectors (Detect) and segmenters (Segment) "
        f"convert. Make a graph of it, `yolo export model={weights.name} format=onnx dynamic=True`, and bring that "
        "with --family onnx; it is served as it is, with Ultralytics' own outputs"
    )


def foreign_state_dict(weights: Path) -> dict[str, Tensor]:
    """Return names and tensors of a checkpoint of unknown origin, float32 on the CPU: the sandbox alone opens it.

    Raises:
        DataValidationError: the file is no Ultralytics checkpoint, or holds code.
        ConfigurationError: Ultralytics is not here; or the kernel has no sandbox, and NIGHTSHIFT_SANDBOX asks for it.
    """
    import torch

    with (
        runner.run(write_state_dict, {"weights": weights}, reads=[weights]) as done,
        np.load(done.file(STATE_FILE), allow_pickle=False) as arrays,
    ):
        return {name: torch.from_numpy(arrays[name]) for name in arrays.files}


def write_state_dict(work: Path, weights: Path) -> int:
    """Write names and tensors of a checkpoint to `work` as arrays, which are numbers alone; return how many."""
    state = _model_of(read_checkpoint(weights), weights).float().state_dict()
    arrays: dict[str, Any] = {name: value.numpy() for name, value in state.items()}
    np.savez(work / STATE_FILE, **arrays)
    return len(state)


def _model_of(checkpoint: Any, weights: Path) -> Any:
    """Return the model in a checkpoint; with its averaged weights (`ema`) where it has them."""
    model = checkpoint.get("ema") or checkpoint.get("model") if isinstance(checkpoint, dict) else None
    if model is None or not hasattr(model, "names"):
        raise DataValidationError(f"{weights} is no Ultralytics checkpoint: it has no model with class names")
    return model


def checkpoint_epoch(weights: Path) -> int:
    """Return the epoch, from 0, after which a checkpoint was written.

    Raises:
        DataValidationError: the checkpoint does not tell, or is none.
    """
    checkpoint = read_checkpoint(weights)
    epoch = checkpoint.get("epoch") if isinstance(checkpoint, dict) else None
    if not isinstance(epoch, int) or epoch < 0:
        raise DataValidationError(
            f"{weights} does not tell after which epoch it was written: no training goes on from it"
        )
    return epoch


def _raw_outputs(model: nn.Module, classes: int) -> nn.Module:
    """Return a module that gives boxes and scores, mask coefficients and prototypes as outputs of their own."""
    import torch

    class RawOutputs(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = model

        def forward(self, pictures: torch.Tensor) -> Any:
            found = self.model(pictures)
            if isinstance(found, torch.Tensor):
                return found
            both, protos = found
            return both[:, : 4 + classes], both[:, 4 + classes :], protos

    return RawOutputs().eval()


def read_checkpoint(weights: Path) -> Any:
    """Return what the checkpoint holds, read with `weights_only`: torch's and Ultralytics' modules, nothing else.

    Raises:
        DataValidationError: the file is no checkpoint, or holds code.
        ConfigurationError: Ultralytics is not here.
    """
    import torch

    try:
        importlib.import_module("ultralytics")
    except ImportError as error:
        raise ConfigurationError(
            "weights of Ultralytics are read in the environment detection, where it is installed; here it is not: "
            ".venv/detection/bin/python -m …"
        ) from error
    try:
        wanted = torch.serialization.get_unsafe_globals_in_checkpoint(str(weights))
    except Exception as error:  # whatever a file that is no checkpoint makes torch raise
        raise DataValidationError(
            f"{weights} is not a file of weights: {str(error).strip().splitlines()[0]}"
        ) from error
    found: list[Any] = []
    strange: list[Any] = []
    for name in wanted:
        known = _module_class(name)
        (found if known is not None else strange).append(known or name)
    if strange:
        raise DataValidationError(
            f"{weights} holds more than a model, and could run code: {', '.join(sorted(map(str, strange)))}"
        )
    try:
        with torch.serialization.safe_globals(found):
            return torch.load(weights, map_location="cpu", weights_only=True)
    except Exception as error:
        raise DataValidationError(f"{weights} cannot be read: {str(error).strip().splitlines()[0]}") from error


def _module_class(name: str) -> Any:
    """Return the class called `name` if reading an object of it runs no code of a stranger; else None."""
    module_name, _, class_name = name.rpartition(".")
    if name not in HARMLESS and not module_name.startswith(("torch.nn.modules.", "ultralytics.nn.")):
        return None
    try:
        found = getattr(importlib.import_module(module_name), class_name)
    except (ImportError, AttributeError):
        return None
    from torch import nn

    is_module = isinstance(found, type) and issubclass(found, nn.Module)
    return found if is_module or name in HARMLESS else None
