"""Train a classifier: `python -m training_jobs.train_classifier --config_filename FILE [--cat GROUP …]`."""

from __future__ import annotations

import logging
import sys
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field, model_validator

from jobkit import job, settings
from jobkit.bottle import Bottle, FolderBottle
from jobkit.errors import ConfigurationError
from jobkit.experiment_claim import finished, open_experiment
from jobkit.files import write_atomic
from jobkit.paths import checked_name
from jobkit.snapshot import last_snapshot
from nightshift_common.options.training import BatchSize, Epochs, Gpus, InferenceOptions
from training_jobs.classifier.estimate import Estimate

if TYPE_CHECKING:
    from training_jobs.classifier.config import Config
    from training_jobs.classifier.examples import Examples

CONFIGS = Path(__file__).resolve().parents[1] / "configs" / "classifier"
logger = logging.getLogger("training_jobs.train_classifier")


class Arguments(job.Arguments, InferenceOptions):
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
    check: bool = Field(
        False, description="build, train and validate a few batches, say what all of it will take, and write nothing"
    )
    find_learning_rate: bool = Field(
        False, description="train a hundred steps with growing rates and suggest one, with a table and a chart"
    )

    @model_validator(mode="after")
    def _one_thing(self) -> Arguments:
        if self.check + self.find_learning_rate + (self.resume is not None) > 1:
            raise ValueError("--check, --find_learning_rate and --resume do not go together")
        return self


class Result(job.Result):
    """Where the experiment lies, and the scores of its best epoch on the validation split."""

    experiment: str
    checkpoint: str
    metrics: dict[str, float]
    best_epoch: int
    epochs: int


class RateResult(job.Result):
    """With `--find_learning_rate`: what to write into the file, and where the table and the chart lie."""

    suggestion: dict[str, float]
    table: Path
    chart: Path


@dataclass(frozen=True)
class Task:
    """What is to be trained, on what."""

    config: Config
    group: str
    source: str
    snapshot_id: str | None
    bottle: Bottle

    def examples(self) -> Examples:
        """Return what to train on, checked."""
        return _examples(self.config, self.source, self.group, self.snapshot_id, self.bottle)


def start(arguments: Arguments, context: job.Context) -> job.Result:
    """Do what the command line asks for."""
    if arguments.check:
        return check(arguments, context)
    if arguments.find_learning_rate:
        return find_learning_rate(arguments, context)
    return run(arguments, context)


def check(arguments: Arguments, context: job.Context) -> Estimate:
    """Try the training for a few batches."""
    from training_jobs.classifier import rehearsal

    task = asked_for(arguments, context)
    return rehearsal.check(task.config, task.examples(), task.bottle, arguments.gpus)


def find_learning_rate(arguments: Arguments, context: job.Context) -> RateResult:
    """Make the range test; leave its table and its chart in the job's directory, and in MLflow where it is tracked."""
    from training_jobs.classifier import rehearsal
    from training_jobs.report_kit import charts
    from training_jobs.report_kit.blocks import Section
    from training_jobs.report_kit.page import page

    task = asked_for(arguments, context)
    found = rehearsal.find_rate(task.config, task.examples(), task.bottle)
    table, chart = context.directory / "learning_rates.csv", context.directory / "learning_rates.html"
    rows = zip(found.rates, found.losses, found.smoothed, strict=True)
    write_atomic(table, "rate,loss,smoothed\n" + "".join(f"{a:.6g},{b:.6g},{c:.6g}\n" for a, b, c in rows))
    series = {"loss": found.losses, "smoothed": found.smoothed}
    drawn = charts.lines(
        "Loss by learning rate", "learning rate", found.rates, series, "loss", log_x=True, marked=found.suggestion
    )
    verdict = f"The loss falls fastest at a learning rate of {found.suggestion:.2g}."
    write_atomic(chart, page("Learning rates that were tried", verdict, [Section("Range test", [drawn])]))
    optimizer, name = task.config.optimizer, "optimizer.lr"
    suggested = {name: float(f"{found.suggestion:.3g}")}
    if optimizer.lr_type == "two_lrs" and optimizer.backbone_lr and optimizer.fc_lr:
        share = optimizer.backbone_lr / optimizer.fc_lr
        suggested = {
            "optimizer.fc_lr": suggested[name], "optimizer.backbone_lr": float(f"{found.suggestion * share:.3g}")
        }  # fmt: skip
    if context.is_tracked:
        for path in (table, chart):
            context.tracking.artifact(path)
    logger.info("%s; table and chart: %s, %s", ", ".join(f"{k}: {v:g}" for k, v in suggested.items()), table, chart)
    return RateResult(suggestion=suggested, table=table, chart=chart)


def asked_for(arguments: Arguments, context: job.Context) -> Task:
    """Return what a command line asks for."""
    from training_jobs.classifier.config import inferring, read_config

    config = read_config(_config_file(arguments), arguments.epochs, arguments.batch)
    return task_of(inferring(config, arguments), arguments, context)


def task_of(config: Config, arguments: Arguments, context: job.Context) -> Task:
    """Return what the command line and a configuration that was read ask for."""
    from training_jobs.classifier.config_checks import NO_TEMPERATURE

    group = arguments.cat or config.experiment_name
    source = config.dataset.label_source or ("snapshot" if arguments.cat or arguments.snapshot_id else "rotation")
    if source == "rotation" and config.inference.flip_tta != "off":
        raise ConfigurationError(
            f"inference.flip_tta is {config.inference.flip_tta}, but the labels come from rotation: the mirror image "
            "of a page that is turned by 90 degrees is one that is turned by 270; valid: off"
        )
    if config.criterion.type == "binary_cross_entropy" and config.inference.temperature_scaling:
        raise ConfigurationError(f"inference.temperature_scaling: {NO_TEMPERATURE}")
    snapshot_id = _snapshot_id(arguments, source, group, context)
    return Task(config, group, source, snapshot_id, _bottle(config, context))


def run(arguments: Arguments, context: job.Context) -> Result:
    """Train, unless this task instance has done so already."""
    from training_jobs.classifier import experiment as experiments

    task = asked_for(arguments, context)
    config, group, snapshot_id, bottle = task.config, task.group, task.snapshot_id, task.bottle
    mark = experiments.training_digest(config, group, snapshot_id)
    if arguments.resume:
        experiment = open_experiment(bottle, arguments.resume, mark)
    else:
        experiment = experiments.claim(bottle, config, group, context.task_instance, mark)
    content = finished(bottle, experiment)
    if content is not None:
        logger.info("%s is finished already: nothing is trained again", experiment.folder)
    else:
        found = task.examples()
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
    _refuse_other_loss(config, found)
    if config.dataset.people_crops:
        found = person_crops.one_example_per_person(found)
    found = examples.reduced(found, config.dataset.data_fraction, config.seed)
    examples.check(found, config.model.n_classes)
    return found


def _refuse_other_loss(config: Config, found: Examples) -> None:
    """See that the loss is one for as many labels as a picture has."""
    if found.multi_label == (config.criterion.type == "binary_cross_entropy"):
        return
    if found.multi_label:
        raise ConfigurationError(
            f"snapshot {found.snapshot_id} of group {found.group} is multi-label, and criterion.type is "
            f"{config.criterion.type}; valid: binary_cross_entropy (or pull without multi_label)"
        )
    where = f"snapshot {found.snapshot_id} of group {found.group}" if found.snapshot_id else "a folder"
    raise ConfigurationError(
        f"criterion.type is binary_cross_entropy, and pictures of {where} have one label each; valid: cross_entropy, "
        "focal (or pull with multi_label)"
    )


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
    job.main(Arguments, start)
