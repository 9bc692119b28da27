"""`kind: classification`: one label a picture, or several, from collect or PostgreSQL to a timm classifier."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from airflow.sdk import Param
from pydantic import model_validator

from nightshift.forms import form_field
from nightshift.kinds.base import EXPERIMENT, SNAPSHOT, Gate, Pipeline, Section, Tolerances, Training
from nightshift.kinds.training_config import check_training_config
from nightshift.steps import Step
from nightshift_common.options.conversion import VerifyOptions
from nightshift_common.options.data import LabeledPicturesOptions
from nightshift_common.options.gate import ClassifierMetric
from nightshift_common.options.training import BatchSize, Epochs, Gpus, InferenceOptions
from nightshift_common.yaml_file import Location


class LabeledPictures(Section, LabeledPicturesOptions):
    """Where the labeled pictures come from, and which of them are taken."""


class ClassifierTraining(Training, InferenceOptions):
    """What is trained."""

    config: str
    """the training configuration, a path in the checkout: configs/classifier/<name>.yaml"""
    epochs: Epochs = 15
    """passes over the training pictures"""
    batch: BatchSize = 64
    """pictures a training step; halve it if the GPU runs out of memory"""
    gpus: Gpus = 1
    """GPUs of one host that train together and share each batch; the task takes as many slots of train_pool"""

    @model_validator(mode="after")
    def _can_be_shared(self) -> ClassifierTraining:
        if self.batch % self.gpus:
            raise ValueError(f"a batch of {self.batch} pictures has no equal shares for gpus: {self.gpus}")
        return self


class ClassifierGate(Gate):
    """When a candidate may replace the champion."""

    metric: ClassifierMetric = "macro_f1"
    """what is compared on the golden set"""


class ClassifierTolerances(Tolerances, VerifyOptions):
    """How closely the ONNX graph has to answer as the model does."""


class ClassificationPipeline(Pipeline):
    """A classifier that is trained anew every night."""

    kind: Literal["classification"] = "classification"
    data: LabeledPictures
    train: ClassifierTraining
    gate: ClassifierGate = ClassifierGate()
    verify: ClassifierTolerances = ClassifierTolerances()

    @model_validator(mode="after")
    def _options_for_as_many_labels(self) -> ClassificationPipeline:
        if self.gate.metric == "map" and not self.data.multi_label:
            raise ValueError("gate.metric map is of pictures with several labels, and data.multi_label is not set")
        if self.train.temperature_scaling and self.data.multi_label:
            raise ValueError("train.temperature_scaling is of pictures with one label, and data.multi_label is set")
        return self

    def pull_step(self) -> Step:
        """Pull from collect or PostgreSQL."""
        source = ("collect",) if self.data.source == "collect" else ()
        return Step(
            module="training_jobs.pull_dataset",
            options=self.data.model_dump(),
            connections=("bottle", "database", "mlflow", *source),
            # What they change is the snapshot.
            not_in_fingerprint=frozenset({"near_copies", "max_dropped_share", "multi_label"}),
        )

    def train_step(self) -> Step:
        """Train what the configuration file says."""
        return Step(
            module="training_jobs.train_classifier",
            options={
                "config_filename": self.train.config,
                "cat": self.data.group,
                "snapshot_id": SNAPSHOT,
                "gpus": self.train.gpus,
                **self.train.model_dump(include=set(InferenceOptions.model_fields)),
            },
            params={"epochs": "epochs", "batch": "batch"},
            connections=("bottle", "database", "mlflow"),
            files=(self.train.config,),
            not_in_fingerprint=frozenset({"gpus"}),  # the same model comes out
            gpus=self.train.gpus,
            timeout=self.train.timeout,
        )

    def evaluate_step(self) -> Step:
        """Score by class."""
        return Step(
            module="training_jobs.evaluate",
            options={
                "group": self.data.group,
                "snapshot_id": SNAPSHOT,
                "experiment": EXPERIMENT,
                "model_name": self.publish.model_name,
            },
            connections=("bottle", "mlflow", "storage_evaluate"),
            not_in_fingerprint=frozenset({"model_name"}),
        )

    def form(self) -> dict[str, Param]:
        """Epochs and batch size."""
        return {
            "epochs": form_field(ClassifierTraining, "epochs", self.train.epochs),
            "batch": form_field(ClassifierTraining, "batch", self.train.batch),
        }

    def named_files(self) -> dict[Location, str]:
        """The training configuration."""
        return {("train", "config"): self.train.config}

    def check_file(self, key: Location, path: Path, home: Path) -> None:
        """Look at the training configuration now: a night's pull would be lost on one that is wrong."""
        check_training_config(path, home)
