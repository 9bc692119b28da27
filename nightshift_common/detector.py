"""What a library that trains detectors has to do: nothing outside its own file knows which one it is."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from nightshift_common.options.detector import DetectorTrainingOptions
from nightshift_common.options.training import DetectorTask


@dataclass(frozen=True)
class PreparedDataset:
    """Pictures and objects on this host, in YOLO's layout.

    `file`: data.yaml with `path`, `train`, `val` and `names`. Beside each `images/<split>/<name>.<suffix>` stands a
    `labels/<split>/<name>.txt` with a line for each object: the class, then center x, center y, width and height, for
    `segment` the points of its outline, as shares of the picture's sides; it is empty for a background.
    """

    file: Path
    labels: list[str]
    train_pictures: int
    val_pictures: int


@dataclass(frozen=True)
class EpochEnd:
    """What an epoch came to. The files lie in the library's own folder, and may change after the call."""

    epoch: int
    """from 0"""
    metrics: Mapping[str, float]
    """train_<loss>, val_<loss>; val_f1: the best F1 at IoU 0.5 of all thresholds, by which the best epoch is chosen"""
    last: Path
    """what training goes on from"""
    best: Path | None
    """a checkpoint of this epoch for `trace`, where it is the best so far"""
    is_last: bool


class TrainingObserver(Protocol):
    """What a training tells as it goes."""

    def started(self, epoch: int, batches: int) -> None:
        """Training begins at `epoch`, from 0; `batches` make an epoch."""

    def stepped(self, loss: Callable[[], float]) -> None:
        """A batch is done; `loss` answers the epoch's mean so far, the sum of its parts."""

    def ended(self, epoch: EpochEnd) -> None:
        """An epoch is done."""


@dataclass(frozen=True)
class TracedDetector:
    """What a checkpoint holds: the task, and the class of each score."""

    task: DetectorTask
    labels: list[str]


class DetectorLibrary(Protocol):
    """A library of detectors, installed in an environment of its own."""

    @property
    def packages(self) -> tuple[str, ...]:
        """The distributions whose versions make a training reproducible."""

    def train(
        self, dataset: PreparedDataset, options: DetectorTrainingOptions, folder: Path, weights: Path | None,
        resume: Path | None, observer: TrainingObserver,
    ) -> None:  # fmt: skip
        """Train offline, from random weights or `weights`, or go on from `resume`; `folder` is for what it writes.

        Raises (jobkit.errors):
            ConfigurationError: the loss became NaN or infinite, or a batch does not fit into memory.
            DataValidationError: a checkpoint is none of this library, or a picture is left out by it.
        """

    def epoch_of(self, checkpoint: Path) -> int:
        """Return the epoch, from 0, after which a checkpoint was written."""

    def trace(self, checkpoint: Path, input_size: tuple[int, int], target: Path) -> TracedDetector:
        """Write a checkpoint's model to `target` as TorchScript with raw outputs (`nightshift_common/boxes.py`).

        Args:
            checkpoint: what `EpochEnd.best` was.
            input_size: height and width, pixels.
            target: the file.
        """
