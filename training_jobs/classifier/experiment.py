"""The folder of a classifier's experiment, `v__{n}_{mode}_{arch}_{batch}_{decay}`: a name that users know."""

from __future__ import annotations

from jobkit import experiment_claim
from jobkit.bottle import Bottle
from jobkit.experiment import Experiment
from nightshift_common.task_instance import TaskInstanceKey
from training_jobs.classifier.config import Config


def training_digest(config: Config, group: str, snapshot_id: str | None) -> str:
    """Return 16 hex digits that change with anything that changes the training."""
    return experiment_claim.training_digest(config.model_dump(mode="json"), group, snapshot_id)


def claim(bottle: Bottle, config: Config, group: str, task_instance: TaskInstanceKey | None, mark: str) -> Experiment:
    """Return this training's folder: that of an earlier attempt of the same task instance, or a new one."""
    mode = "finetune" if config.model.load_from else "train"
    batch, decay = config.dataset.data_loaders.train_batch_size, config.optimizer.weight_decay
    name = f"{mode}_{config.model.backbone_name}_{batch}_{decay:g}"
    return experiment_claim.claim(bottle, group, lambda number: f"v__{number}_{name}", task_instance, mark)
