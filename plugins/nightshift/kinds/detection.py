"""`kind: detection`: boxes in pictures, from a COCO file to a detector; `segmentation.py` builds on it."""

from __future__ import annotations

from typing import Literal

from airflow.sdk import Param

from nightshift.forms import form_field
from nightshift.kinds.base import EXPERIMENT, SNAPSHOT, Gate, Pipeline, Section, Tolerances, Training
from nightshift.steps import Step
from nightshift_common.options.data import AnnotatedPicturesOptions
from nightshift_common.options.detector import DetectorEvaluationOptions, DetectorRecipe
from nightshift_common.options.gate import DetectorMetric


class AnnotatedPictures(Section, AnnotatedPicturesOptions):
    """Where pictures with annotated objects come from, and which of them are taken."""


class DetectorTraining(Training, DetectorRecipe):
    """What is trained."""


class DetectorEvaluation(Section, DetectorEvaluationOptions):
    """How found objects are matched with true ones."""


class DetectorGate(Gate):
    """When a candidate may replace the champion."""

    metric: DetectorMetric = "f1"
    """what is compared on the golden set: f1, precision and recall at the confidence threshold that training froze;
    ap50, ap: average precision at IoU 0.5, and its mean over 0.5 to 0.95"""


class DetectionPipeline(Pipeline):
    """A detector that is trained anew every night."""

    kind: Literal["detection"]
    data: AnnotatedPictures
    train: DetectorTraining = DetectorTraining()
    evaluate: DetectorEvaluation = DetectorEvaluation()
    gate: DetectorGate = DetectorGate()
    verify: Tolerances = Tolerances()

    def pull_step(self) -> Step:
        """Read the COCO file."""
        return Step(
            module="training_jobs.pull_annotations",
            options=self.data.model_dump(),
            connections=("bottle", "database", "mlflow"),
        )

    def train_step(self) -> Step:
        """Train in the runtime that holds the detector library."""
        options = self.train.model_dump(include=set(DetectorRecipe.model_fields) - {"epochs", "batch"})
        return Step(
            module="training_jobs.train_detector",
            options={"group": self.data.group, "snapshot_id": SNAPSHOT, "task": self.task, **options},
            params={"epochs": "epochs", "batch": "batch"},
            runtime="detection",
            timeout=self.train.timeout,
        )

    def evaluate_step(self) -> Step:
        """Match boxes on the golden pictures."""
        return Step(
            module="training_jobs.evaluate_detector",
            options={
                "group": self.data.group,
                "snapshot_id": SNAPSHOT,
                "experiment": EXPERIMENT,
                "model_name": self.publish.model_name,
                **self.evaluate.model_dump(),
            },
            connections=("bottle", "mlflow", "storage_evaluate"),
            not_in_fingerprint=frozenset({"model_name"}),
        )

    def form(self) -> dict[str, Param]:
        """Epochs and batch size."""
        return {
            "epochs": form_field(DetectorTraining, "epochs", self.train.epochs),
            "batch": form_field(DetectorTraining, "batch", self.train.batch),
        }

    @property
    def task(self) -> Literal["detect", "segment"]:
        """What the detector library is asked for."""
        return "detect"
