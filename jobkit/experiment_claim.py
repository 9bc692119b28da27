"""An experiment's folder: claimed by a task instance, found again by its retry, finished by `metrics.json`."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable
from typing import Any

from pydantic import BaseModel, ConfigDict

from jobkit import paths
from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.experiment import Experiment
from nightshift_common.task_instance import TaskInstanceKey

logger = logging.getLogger("jobkit.experiment_claim")


class Claim(BaseModel):
    """What `run.json` holds: the folder, the task instance that it belongs to, and what is trained in it."""

    model_config = ConfigDict(extra="forbid")

    folder: str
    fingerprint: str
    dag_run: str | None
    task: str | None


def training_digest(*content: Any) -> str:
    """Return 16 hex digits that change with anything of `content`, which is JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:16]


def claim(
    bottle: Bottle, group: str, name: Callable[[int], str], task_instance: TaskInstanceKey | None, mark: str
) -> Experiment:
    """Return this training's folder: that of an earlier attempt of the same task instance, or a new one.

    Numbers are claimed by creating `models/<group>/numbers/<n>.json`, which succeeds once. A training without a task
    instance (started by hand) always gets a new folder.

    Args:
        bottle: where experiments are.
        group: of the model.
        name: number -> name of the folder.
        task_instance: who trains; None by hand.
        mark: `fingerprint` of all that changes the training: with another one the folder is another.
    """
    key = _attempt_key(group, task_instance, mark) if task_instance else None
    if key and bottle.exists(key):
        found = Experiment(Claim.model_validate_json(bottle.read(key)).folder)
        logger.info("going on in %s, the experiment of an earlier attempt", found.folder)
        return found
    prefix = f"{paths.experiments(group)}/numbers"
    number = 1 + max(map(_number, bottle.keys(prefix)), default=-1)
    while True:
        made = Claim(
            folder=f"{paths.experiments(group)}/{paths.checked_name(name(number), 'experiment')}",
            fingerprint=mark,
            dag_run=task_instance.run_id if task_instance else None,
            task=task_instance.task if task_instance else None,
        )
        if bottle.create(f"{prefix}/{number}.json", made.model_dump_json() + "\n"):
            break
        number += 1
    if key and not bottle.create(key, made.model_dump_json() + "\n"):
        return claim(bottle, group, name, task_instance, mark)  # another attempt of this task instance was faster
    experiment = Experiment(made.folder)
    bottle.write(experiment.run, made.model_dump_json(indent=2) + "\n")
    logger.info("experiment %s", experiment.folder)
    return experiment


def open_experiment(bottle: Bottle, folder: str, mark: str) -> Experiment:
    """Return the experiment to go on with by hand.

    Raises:
        DataValidationError: there is none in `folder`, or it trains something else.
    """
    experiment = Experiment(folder.rstrip("/"))
    if not bottle.exists(experiment.run):
        raise DataValidationError(f"{folder} is no experiment in the bottle {bottle}: there is no {experiment.run}")
    if Claim.model_validate_json(bottle.read(experiment.run)).fingerprint != mark:
        raise DataValidationError(
            f"{folder} was started with another configuration or snapshot; go on with its own {experiment.config}"
        )
    return experiment


def finished(bottle: Bottle, experiment: Experiment) -> dict[str, Any] | None:
    """Return the content of `metrics.json`, which is written last, or None while there is work left."""
    if not bottle.exists(experiment.metrics):
        return None
    content: dict[str, Any] = json.loads(bottle.read(experiment.metrics))
    return content


def last_finished(bottle: Bottle, group: str) -> Experiment:
    """Return the group's finished training with the highest number.

    Raises:
        DataValidationError: the group has none.
    """
    prefix = f"{paths.experiments(group)}/numbers"
    for key in sorted(bottle.keys(prefix), key=_number, reverse=True):
        experiment = Experiment(Claim.model_validate_json(bottle.read(key)).folder)
        if finished(bottle, experiment) is not None:
            return experiment
    groups = {key.split("/")[1] for key in bottle.keys("models")}
    raise DataValidationError(
        f"group {group} has no finished training in the bottle {bottle}; there are models of: "
        f"{', '.join(sorted(groups)) or 'no group'}"
    )


def _number(key: str) -> int:
    return int(key.rsplit("/", 1)[1].removesuffix(".json"))


def _attempt_key(group: str, task_instance: TaskInstanceKey, mark: str) -> str:
    identity = json.dumps([task_instance.dag_id, task_instance.run_id, task_instance.task, mark])
    return f"{paths.experiments(group)}/runs/{hashlib.sha256(identity.encode()).hexdigest()[:24]}.json"
