"""seed_003's experiment folder: claimed by a task instance, found again by its retry, finished by `metrics.json`."""

from __future__ import annotations

import hashlib
import json
import logging
from typing import Any

from pydantic import BaseModel, ConfigDict

from jobkit import paths
from jobkit.bottle import Bottle
from jobkit.errors import DataRefused
from jobkit.paths import ExperimentPaths
from jobkit.tracking import Labels
from training_jobs.classifier.config import Config

logger = logging.getLogger("training_jobs.train_classifier")


class Claim(BaseModel):
    """What `run.json` holds: the folder, the task instance that it belongs to, and what is trained in it."""

    model_config = ConfigDict(extra="forbid")

    folder: str
    fingerprint: str
    dag_run: str | None
    task: str | None


def fingerprint(config: Config, group: str, snapshot_id: str | None) -> str:
    """Return 16 hex digits that change with anything that changes the training."""
    content = json.dumps([config.model_dump(mode="json"), group, snapshot_id], sort_keys=True)
    return hashlib.sha256(content.encode()).hexdigest()[:16]


def claim(bottle: Bottle, config: Config, group: str, labels: Labels | None, mark: str) -> ExperimentPaths:
    """Return this training's folder: that of an earlier attempt of the same task instance, or a new one.

    Numbers are claimed by creating `models/<group>/numbers/<n>.json`, which succeeds once. A training without labels
    (started by hand) always gets a new folder.
    """
    key = _attempt_key(group, labels, mark) if labels else None
    if key and bottle.exists(key):
        found = ExperimentPaths(Claim.model_validate_json(bottle.read(key)).folder)
        logger.info("going on in %s, the experiment of an earlier attempt", found.folder)
        return found
    prefix = f"{paths.experiments(group)}/numbers"
    number = 1 + max((int(k.rsplit("/", 1)[1].removesuffix(".json")) for k in bottle.keys(prefix)), default=-1)
    while True:
        made = Claim(
            folder=f"{paths.experiments(group)}/{_name(number, config)}",
            fingerprint=mark,
            dag_run=labels.run_id if labels else None,
            task=labels.task if labels else None,
        )
        if bottle.create(f"{prefix}/{number}.json", made.model_dump_json() + "\n"):
            break
        number += 1
    if key and not bottle.create(key, made.model_dump_json() + "\n"):
        return claim(bottle, config, group, labels, mark)  # another attempt of this task instance was faster
    experiment = ExperimentPaths(made.folder)
    bottle.write(experiment.run, made.model_dump_json(indent=2) + "\n")
    logger.info("experiment %s", experiment.folder)
    return experiment


def open_experiment(bottle: Bottle, folder: str, mark: str) -> ExperimentPaths:
    """Return the experiment to go on with by hand.

    Raises:
        DataRefused: there is none in `folder`, or it trains something else.
    """
    experiment = ExperimentPaths(folder.rstrip("/"))
    if not bottle.exists(experiment.run):
        raise DataRefused(f"{folder} is no experiment in the bottle {bottle}: there is no {experiment.run}")
    if Claim.model_validate_json(bottle.read(experiment.run)).fingerprint != mark:
        raise DataRefused(
            f"{folder} was started with another configuration or snapshot; go on with its own {experiment.config}"
        )
    return experiment


def finished(bottle: Bottle, experiment: ExperimentPaths) -> dict[str, Any] | None:
    """Return the content of `metrics.json`, which is written last, or None while there is work left."""
    if not bottle.exists(experiment.metrics):
        return None
    content: dict[str, Any] = json.loads(bottle.read(experiment.metrics))
    return content


def _attempt_key(group: str, labels: Labels, mark: str) -> str:
    identity = json.dumps([labels.dag_id, labels.run_id, labels.task, mark])
    return f"{paths.experiments(group)}/runs/{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"


def _name(number: int, config: Config) -> str:
    """Return `v__{n}_{mode}_{arch}_{batch}_{decay}`."""
    mode = "finetune" if config.model.load_from else "train"
    batch, decay = config.dataset.data_loaders.train_batch_size, config.optimizer.weight_decay
    return paths.checked_name(f"v__{number}_{mode}_{config.model.backbone_name}_{batch}_{decay:g}", "experiment")
