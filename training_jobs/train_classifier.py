"""Train a classifier: `python -m training_jobs.train_classifier --config_filename FILE [--cat GROUP --snapshot_id ID]`."""

from __future__ import annotations

import logging
from pathlib import Path

from pydantic import Field

from jobkit import job, settings
from jobkit.errors import ConfigurationError

logger = logging.getLogger("training_jobs.train_classifier")


class Arguments(job.Arguments):
    """Train a classifier from a configuration file, and leave an experiment folder in the bottle.

    A training that was killed goes on from its last finished epoch when the same task runs again; one that is finished
    answers at once.
    """

    config_filename: Path = Field(description="the configuration file; docs/classifier.md lists its keys")
    cat: str | None = Field(None, description="group of the snapshot; default: the file's experiment_name")
    snapshot_id: str | None = Field(None, description="the snapshot to train on")
    epochs: int | None = Field(None, ge=1, description="overrides training.epochs")
    batch: int | None = Field(None, ge=1, description="overrides dataset.data_loaders.train_batch_size")
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

    config = read_config(arguments.config_filename, arguments.epochs, arguments.batch)
    group = arguments.cat or config.experiment_name
    if arguments.snapshot_id is None:
        raise ConfigurationError("--snapshot_id is missing: training needs a snapshot")
    mark = experiments.fingerprint(config, group, arguments.snapshot_id)
    bottle = context.bottle
    if arguments.resume:
        experiment = experiments.open_experiment(bottle, arguments.resume, mark)
    else:
        experiment = experiments.claim(bottle, config, group, context.labels, mark)
    content = experiments.finished(bottle, experiment)
    if content is not None:
        logger.info("%s is finished already: nothing is trained again", experiment.folder)
    else:
        from training_jobs.classifier import examples
        from training_jobs.classifier.training import train

        found = examples.from_snapshot(bottle, group, arguments.snapshot_id)
        examples.check_classes(found, config.model.n_classes)
        tracking = None
        if context.labels or settings.optional(settings.MLFLOW_URI):
            tracking = context.tracking
            tracking.params(config.model_dump(mode="json"))
            tracking.tags({"snapshot_id": arguments.snapshot_id, "experiment": experiment.folder})
        else:
            logger.warning("%s is not set: the metrics are in csv_logs only", settings.MLFLOW_URI)
        content = train(config, found, bottle, experiment, tracking)
    return Result(
        experiment=experiment.folder,
        checkpoint=experiment.best_checkpoint,
        metrics=content["metrics"],
        best_epoch=content["best_epoch"],
        epochs=content["epochs"],
    )


if __name__ == "__main__":
    job.main(Arguments, run)
