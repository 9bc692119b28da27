"""Train a classifier: `python -m training_jobs.train_classifier --config_filename FILE [--cat GROUP …]`."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from jobkit import job, settings
from jobkit.bottle import Bottle, FolderBottle
from jobkit.errors import ConfigurationError
from jobkit.experiment_claim import finished, open_experiment
from jobkit.paths import checked_name
from jobkit.snapshot import last_snapshot
from nightshift_common.options.training import BatchSize, Epochs, Gpus

if TYPE_CHECKING:
    from training_jobs.classifier.config import Config
    from training_jobs.classifier.examples import Examples

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "classifier"
logger = logging.getLogger("training_jobs.train_classifier")


class Arguments(job.Arguments):
    """Train a classifier from a configuration file, and leave an experiment folder in the bottle.

    A training that was killed goes on from its last finished epoch when the same task runs again; one that is finished
    answers at once.
    """

    config_filename: Path | None = Field(
        None, description="the configuration file; default: configs/classifier/<cat>.yaml, else default.yaml beside it"
    )
    cat: str | None = Field(None, description="group of the snapshot; default: the file's experiment_name")
    snapshot_id: str | None = Field(None, description="the snapshot to train on; default: the one that was pulled last")
    epochs: Epochs | None = Field(None, description="overrides training.epochs")
    batch: BatchSize | None = Field(None, description="overrides dataset.data_loaders.train_batch_size")
    gpus: Gpus = Field(1, description="GPUs of this host that train together; they share each batch")
    resume: str | None = Field(None, description="experiment to go on with: its folder in the bottle")


class Result(job.Result):
    """Where the experiment lies, and the scores of its best epoch on the validation split."""

    experiment: str
    checkpoint: str
    metrics: dict[str, float]
    best_epoch: int
    epochs: int


def run(arguments: Arguments, context: job.Context) -> Result:
    """Train, unless this task instance has done so already."""
    from training_jobs.classifier import experiment as experiments
    from training_jobs.classifier.config import read_config

    config = read_config(_config_file(arguments), arguments.epochs, arguments.batch)
    group = arguments.cat or config.experiment_name
    source = config.dataset.label_source or ("snapshot" if arguments.cat or arguments.snapshot_id else "rotation")
    snapshot_id = _snapshot_id(arguments, source, group, context)
    mark = experiments.training_digest(config, group, snapshot_id)
    bottle = _bottle(config, context)
    if arguments.resume:
        experiment = open_experiment(bottle, arguments.resume, mark)
    else:
        experiment = experiments.claim(bottle, config, group, context.task_instance, mark)
    content = finished(bottle, experiment)
    if content is not None:
        logger.info("%s is finished already: nothing is trained again", experiment.folder)
    else:
        found = _examples(config, source, group, snapshot_id, bottle)
        tracking = None
        if context.is_tracked:
            tracking = context.tracking
            tracking.params(config.model_dump(mode="json"))
            tracking.tags({"gpus": arguments.gpus})
            told_apart_by = {
                "architecture": config.model.backbone_name,
                "epochs": config.training.epochs,
                "batch": config.dataset.data_loaders.train_batch_size,
            }
            tracking.training_of(experiment.folder, group, snapshot_id, str(bottle), told_apart_by)
        else:
            logger.warning("%s is not set: the metrics are in csv_logs only", settings.MLFLOW_URI)
        from training_jobs.classifier.training import train

        with tracking.system_metrics() if tracking else nullcontext():
            content = train(config, found, bottle, experiment, tracking, arguments.gpus)
    return Result(
        experiment=experiment.folder,
        checkpoint=experiment.best_checkpoint,
        metrics=content["metrics"],
        best_epoch=content["best_epoch"],
        epochs=content["epochs"],
    )


def _config_file(arguments: Arguments) -> Path:
    """Return the named file, else the group's, else the default one."""
    if arguments.config_filename is not None:
        return arguments.config_filename
    if arguments.cat is None:
        raise ConfigurationError("--config_filename or --cat is missing")
    named = CONFIGS / f"{checked_name(arguments.cat, 'group')}.yaml"
    return named if named.is_file() else CONFIGS / "default.yaml"


def _examples(config: Config, source: str, group: str, snapshot_id: str | None, bottle: Bottle) -> Examples:
    """Return what to train on, checked."""
    from training_jobs.classifier import examples, person_crops

    if source == "snapshot" and snapshot_id is not None:
        found = examples.from_snapshot(bottle, group, snapshot_id)
    else:
        if config.directories.images is None:
            raise ConfigurationError(f"directories.images is not set, and the labels come from {source}")
        make = examples.from_folders if source == "folders" else examples.from_rotation
        found = make(Path(config.directories.images), group, config.dataset.val_part, config.dataset.max_side)
    if config.dataset.people_crops:
        found = person_crops.one_example_per_person(found)
    found = examples.reduced(found, config.dataset.data_fraction, config.seed)
    examples.check(found, config.model.n_classes)
    return found


def _snapshot_id(arguments: Arguments, source: str, group: str, context: job.Context) -> str | None:
    """Return the snapshot to train on: the one that is named, else the one pulled last; None for other sources."""
    if source != "snapshot":
        if arguments.snapshot_id:
            raise ConfigurationError(f"--snapshot_id: the configuration takes its labels from {source}")
        return None
    if arguments.snapshot_id:
        return arguments.snapshot_id
    return last_snapshot(context.bottle, group)


def _bottle(config: Config, context: job.Context) -> Bottle:
    """Return the bottle; by hand without one, the folder that holds directories.models takes its place."""
    if settings.optional(settings.BOTTLE) is None and config.directories.models is not None:
        models = Path(config.directories.models)
        return FolderBottle(models.parent if models.name == "models" else models)
    return context.bottle


if __name__ == "__main__":
    if {"-h", "--help"} & set(sys.argv):
        from training_jobs.classifier import config_reference

        Arguments.__doc__ = f"{Arguments.__doc__}\nKeys of the configuration file:\n{config_reference.text()}"
    job.main(Arguments, run)
