"""`kind: constant`: a model that answers every picture alike. What a new kind takes: this file, and jobs of its own."""

from __future__ import annotations

from typing import Literal

from airflow.sdk import Param
from pydantic import Field

from nightshift.forms import form_field
from nightshift.kinds.base import EXPERIMENT, SNAPSHOT, Gate, Pipeline, Section, Tolerances, Training
from nightshift.steps import Step
from nightshift_common.options.data import LabeledPicturesOptions


class Pictures(Section, LabeledPicturesOptions):
    """The labeled pictures that it is constant about."""


class ConstantTraining(Training):
    """What there is to train."""

    smoothing: float = Field(1.0, ge=0, le=100, title="Smoothing")
    """pictures that each class is counted with beforehand"""


class MajorityGate(Gate):
    """When a candidate may replace the champion."""

    metric: Literal["majority_share"] = "majority_share"
    """share of the golden pictures whose class is the answer"""


class ConstantPipeline(Pipeline):
    """The most frequent class, counted anew every night."""

    kind: Literal["constant"]
    data: Pictures
    train: ConstantTraining = ConstantTraining()
    gate: MajorityGate = MajorityGate()
    verify: Tolerances = Tolerances()

    def pull_step(self) -> Step:
        return Step(
            "training_jobs.pull_dataset",
            options=self.data.model_dump(),
            connections=("bottle", "database", "mlflow", "collect"),
        )

    def prepare_steps(self) -> dict[str, Step]:
        return {"count_labels": Step("constant_jobs.count", {"group": self.data.group, "snapshot_id": SNAPSHOT})}

    def train_step(self) -> Step:
        options = {"group": self.data.group, "snapshot_id": SNAPSHOT}
        return Step("constant_jobs.train", options, params={"smoothing": "smoothing"}, timeout=self.train.timeout)

    def evaluate_step(self) -> Step:
        options = {"experiment": EXPERIMENT, "snapshot_id": SNAPSHOT, "model_name": self.publish.model_name}
        return Step("constant_jobs.evaluate", options, not_in_fingerprint=frozenset({"model_name"}))

    def form(self) -> dict[str, Param]:
        return {"smoothing": form_field(ConstantTraining, "smoothing", self.train.smoothing)}
