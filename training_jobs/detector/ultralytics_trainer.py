"""Training by Ultralytics, which is AGPL-3.0: it runs in the environment `detection` and nowhere else.

It fetches nothing: the architectures ship with it, and all that it would ask the network for is there or turned off.
"""

from __future__ import annotations

import logging
import math
import os
import shutil
from contextlib import ExitStack, contextmanager
from copy import copy
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import numpy as np

from jobkit.detection import ultralytics_weights
from jobkit.detection.torchscript import traced
from jobkit.errors import ConfigurationError, DataValidationError
from nightshift_common.detector import EpochEnd, PreparedDataset, TracedDetector, TrainingObserver
from nightshift_common.options.detector import DetectorTrainingOptions
from training_jobs.scoring.matching import best_threshold

if TYPE_CHECKING:
    from collections.abc import Iterator

    import torch

logger = logging.getLogger("training_jobs.train_detector")

BATCH_OF_RATE = 64  # the batch that the learning rate is meant for
OFFLINE = {"YOLO_OFFLINE": "true", "YOLO_AUTOINSTALL": "false", "YOLO_VERBOSE": "false"}
CALLS_HOME = ("sync", "clearml", "comet", "dvc", "mlflow", "raytune", "tensorboard", "wandb")  # its own trackers
FONTS = ("Arial.ttf", "Arial.Unicode.ttf")  # which it would fetch, though nothing is drawn
THREADS = os.environ.get("OMP_NUM_THREADS")  # what the user said; Ultralytics sets it to 1 when it is imported
OUT_OF_MEMORY = ("out of memory", "can't allocate memory", "CUBLAS_STATUS_ALLOC_FAILED")


class Ultralytics:
    """`nightshift_common.detector.DetectorLibrary` by Ultralytics."""

    def __init__(self, folder: Path) -> None:
        """Keep it off the network, and its settings in `folder`, before it is imported for the first time."""
        os.environ.update(OFFLINE)
        os.environ.setdefault("YOLO_CONFIG_DIR", str(folder / "ultralytics"))

    @property
    def packages(self) -> tuple[str, ...]:
        """The distribution."""
        return ("ultralytics",)

    def train(
        self, dataset: PreparedDataset, options: DetectorTrainingOptions, folder: Path, weights: Path | None,
        resume: Path | None, observer: TrainingObserver,
    ) -> None:  # fmt: skip
        """Train, or go on from `resume`."""
        with _alone(), _typed_errors(options):
            start = None if weights is None else start_of(weights, dataset, options, folder)
            trainer = _trainer(dataset, options, folder, start, resume)
            _Callbacks(dataset, observer).attach(trainer)
            _use_all_cores()
            trainer.train()

    def epoch_of(self, checkpoint: Path) -> int:
        """Return the epoch, from 0, after which a checkpoint was written."""
        return ultralytics_weights.checkpoint_epoch(checkpoint)

    def trace(self, checkpoint: Path, input_size: tuple[int, int], target: Path) -> TracedDetector:
        """Write a checkpoint's model as TorchScript."""
        detector = ultralytics_weights.load_detector(checkpoint, input_size)
        traced(detector, input_size).save(str(target))
        return TracedDetector(detector.task, detector.labels)


@contextmanager
def _alone() -> Iterator[None]:
    """Keep Ultralytics off standard output, off its own trackers, and from what it would fetch."""
    import matplotlib
    from ultralytics.utils import LOGGER, SETTINGS, USER_CONFIG_DIR, nms

    SETTINGS.update(dict.fromkeys(CALLS_HOME, False))
    for name in FONTS:
        if not (USER_CONFIG_DIR / name).exists():
            shutil.copyfile(
                Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", USER_CONFIG_DIR / name
            )
    for handler in list(LOGGER.handlers):  # its lines go where ours go
        LOGGER.removeHandler(handler)
    LOGGER.propagate = True
    LOGGER.setLevel(logging.WARNING)
    with ExitStack() as patches:
        patches.enter_context(patch("ultralytics.engine.trainer.check_amp", _takes_half_precision))
        # After some seconds it would leave the rest of a batch without boxes: on a busy machine F1 would fall by that.
        patient = partial(nms.non_max_suppression, max_time_img=math.inf)
        patches.enter_context(patch("ultralytics.utils.nms.non_max_suppression", patient))
        if not _has_compiled_suppression():
            patches.enter_context(patch("torchvision.ops.nms", nms.TorchNMS.nms))
        yield


def _has_compiled_suppression() -> bool:
    """Whether torchvision's operators are there: not beside a CPU build of torch (local/torchvision_cpu)."""
    import torch
    import torchvision

    try:
        torchvision.ops.nms(torch.zeros(1, 4), torch.zeros(1), 0.5)
    except (RuntimeError, NotImplementedError):
        return False
    return True


def _takes_half_precision(model: torch.nn.Module) -> bool:
    """Whether to train in half precision; Ultralytics would fetch weights to find out. A NaN ends the training."""
    return next(model.parameters()).device.type == "cuda"


@contextmanager
def _typed_errors(options: DetectorTrainingOptions) -> Iterator[None]:
    """Say what to change where the memory is too small, or nothing can be trained with such a batch."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if "No valid images found" in str(error):
            raise DataValidationError(f"Ultralytics takes none of the pictures: {error}") from error
        if not isinstance(error, MemoryError) and not any(sign in str(error) for sign in OUT_OF_MEMORY):
            raise
        raise ConfigurationError(
            f"out of memory with a batch of {options.batch} pictures of {options.input_size} pixels: a smaller batch, "
            f"input_size or architecture than {options.architecture} is needed ({str(error).splitlines()[0]})"
        ) from error
    except ValueError as error:
        if "BatchNorm" not in str(error):
            raise
        raise ConfigurationError(f"batch {options.batch}, input_size {options.input_size}: {error}") from error


def start_of(weights: Path, dataset: PreparedDataset, options: DetectorTrainingOptions, folder: Path) -> Path:
    """Write a checkpoint of our own with what fits of the weights of others, for Ultralytics to start from.

    Ultralytics runs what is in a checkpoint; of a stranger's only the numbers come here (`foreign_state_dict`).

    Raises:
        DataValidationError: the file is no checkpoint, holds code, or nothing of it fits the architecture.
    """
    import torch
    from ultralytics.nn.tasks import DetectionModel, SegmentationModel

    state = ultralytics_weights.foreign_state_dict(weights)
    model = (SegmentationModel if options.task == "segment" else DetectionModel)(
        _architecture(options), nc=len(dataset.labels), verbose=False
    )
    own = model.state_dict()
    fits = {name: value for name, value in state.items() if name in own and value.shape == own[name].shape}
    if not any(value.ndim > 1 for value in fits.values()):
        raise DataValidationError(f"{weights} has no weight that fits {_architecture(options)}: it is of another one")
    logger.info("%s: %d of %d tensors loaded", weights, len(fits), len(own))
    model.load_state_dict({**own, **fits})
    path = folder / "start.pt"
    torch.save({"model": model}, path)
    return path


def _architecture(options: DetectorTrainingOptions) -> str:
    """Return the name of Ultralytics' own description of an architecture."""
    return f"{options.architecture}{'-seg' if options.task == 'segment' else ''}.yaml"


def _trainer(
    dataset: PreparedDataset, options: DetectorTrainingOptions, folder: Path, weights: Path | None, resume: Path | None
) -> Any:
    import torch
    from ultralytics.models.yolo.detect import DetectionTrainer, DetectionValidator
    from ultralytics.models.yolo.segment import SegmentationTrainer, SegmentationValidator

    segment = options.task == "segment"
    base: Any = SegmentationTrainer if segment else DetectionTrainer
    validator: Any = SegmentationValidator if segment else DetectionValidator
    right = "tp_m" if segment else "tp"  # of masks, or of boxes

    class Validator(validator):  # type: ignore[misc] # no types where Ultralytics is not installed
        """Tells the best F1 at IoU 0.5 over all thresholds, by which the best epoch is chosen."""

        def get_stats(self) -> dict[str, Any]:
            stats = {name: np.concatenate(self.metrics.stats[name]) for name in (right, "conf", "target_cls")}
            _, f1 = best_threshold(stats["conf"], stats[right][:, 0].astype(bool), len(stats["target_cls"]))
            found: dict[str, Any] = super().get_stats()
            return {**found, "f1": f1, "fitness": f1}

    class Trainer(base):  # type: ignore[misc]
        """Validates by F1; `best.pt` is evaluated by the job itself."""

        def get_validator(self) -> Any:
            return Validator(self.test_loader, save_dir=self.save_dir, args=copy(self.args), _callbacks=self.callbacks)

        def final_eval(self) -> None:
            """Leave the checkpoints as they are."""

    gpu = torch.cuda.is_available()
    overrides = {
        "model": _architecture(options), "task": options.task,
        "data": str(dataset.file), "save_dir": str(folder / "run"), "exist_ok": True, "plots": False, "verbose": False,
        "pretrained": str(weights) if weights else False, "epochs": options.epochs, "batch": options.batch,
        "imgsz": options.input_size, "patience": options.patience, "seed": options.seed, "mosaic": options.mosaic,
        "close_mosaic": math.ceil(options.epochs / 10) if options.mosaic else 0, "fliplr": options.flip,
        # Each batch is a step, so the rate follows the batch; AdamW's biases need no other rate while it warms up.
        "optimizer": "AdamW", "lr0": options.learning_rate * options.batch / BATCH_OF_RATE, "nbs": options.batch,
        "weight_decay": options.weight_decay, "warmup_bias_lr": 0.0,
        "device": "0" if gpu else "cpu", "workers": min(8, _cores()) if gpu else 0,
        "amp": "bf16" if gpu and torch.cuda.is_bf16_supported(including_emulation=False) else gpu,
    }  # fmt: skip
    if resume is not None:
        ultralytics_weights.read_checkpoint(resume)
        overrides["resume"] = str(resume)
    return Trainer(overrides=overrides)


class _Callbacks:
    """Tells the observer what Ultralytics does, and ends a training that goes wrong."""

    def __init__(self, dataset: PreparedDataset, observer: TrainingObserver) -> None:
        self.dataset, self.observer = dataset, observer

    def attach(self, trainer: Any) -> None:
        """Register."""
        for event in ("on_pretrain_routine_end", "on_train_batch_end", "on_train_epoch_end", "on_model_save"):
            trainer.add_callback(event, getattr(self, event))

    def on_pretrain_routine_end(self, trainer: Any) -> None:
        """See that all pictures are there."""
        wanted = {"train": self.dataset.train_pictures, "val": self.dataset.val_pictures}
        for side, loader in (("train", trainer.train_loader), ("val", trainer.test_loader)):
            if (found := len(loader.dataset.im_files)) != wanted[side]:
                raise DataValidationError(
                    f"Ultralytics takes {found} of {wanted[side]} pictures in {side}: it leaves out those with a side "
                    "below 10 pixels; set min_side where they are pulled"
                )
        self.observer.started(trainer.start_epoch, len(trainer.train_loader))

    def on_train_batch_end(self, trainer: Any) -> None:
        """Count."""
        self.observer.stepped(lambda: sum(float(value) for value in trainer.tloss.values()))

    def on_train_epoch_end(self, trainer: Any) -> None:
        """End the training where the loss is no number: Ultralytics would go back and try the same again."""
        losses = {name: float(value) for name, value in trainer.tloss.items()}
        if not all(map(math.isfinite, losses.values())):
            shown = ", ".join(f"{name} {value}" for name, value in losses.items())
            raise ConfigurationError(
                f"the loss became {shown} in epoch {trainer.epoch + 1}: try a lower learning_rate or other weights"
            )

    def on_model_save(self, trainer: Any) -> None:
        """Hand over the epoch."""
        metrics = {f"train_{name}": float(value) for name, value in trainer.tloss.items()}
        metrics |= {
            f"val_{n.removeprefix('val/')}": float(v) for n, v in trainer.metrics.items() if n.startswith("val/")
        }
        metrics |= {
            "val_f1": float(trainer.metrics["f1"]),
            "learning_rate": float(trainer.optimizer.param_groups[0]["lr"]),
        }
        best = None
        if trainer.best_fitness == trainer.fitness:
            best = trainer.wdir / "slim.pt"
            _write_slim(trainer.best, best)
        self.observer.ended(EpochEnd(trainer.epoch, metrics, trainer.last, best, bool(trainer.stop)))


def _write_slim(checkpoint: Path, target: Path) -> None:
    """Write a checkpoint of ours without what only training needs: a third of its size."""
    import torch

    content = torch.load(checkpoint, map_location="cpu", weights_only=False)
    torch.save({**content, **dict.fromkeys(("optimizer", "scaler", "stopper", "updates"))}, target)


def _cores() -> int:
    return len(os.sched_getaffinity(0))


def _use_all_cores() -> None:
    """Use all cores that this process may use: Ultralytics leaves out one of the host's."""
    import torch

    torch.set_num_threads(int(THREADS or _cores()))
