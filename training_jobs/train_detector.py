"""Train a detector or segmenter on a snapshot with objects, and leave an experiment that can be exported."""

from __future__ import annotations

import json
import logging
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml
from pydantic import Field

from jobkit import job, settings
from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.experiment import Experiment
from jobkit.experiment_claim import claim, finished, open_experiment, training_digest
from jobkit.local_file import local_file
from jobkit.snapshot import Snapshot, read_snapshot
from nightshift_common.detector import DetectorLibrary
from nightshift_common.names import GroupName
from nightshift_common.options.detector import DetectorEvaluationOptions, DetectorTrainingOptions

if TYPE_CHECKING:
    from jobkit.model_spec import DetectorSpec
    from jobkit.tracking import Run
    from training_jobs.scoring.detection import DetectorScores

logger = logging.getLogger("training_jobs.train_detector")
TRAINED = {"detect": "detector", "segment": "segmenter"}


class Arguments(job.Arguments, DetectorTrainingOptions):
    """Train a detector, and leave an experiment folder in the bottle.

    A training that was killed goes on from its last finished epoch when the same task runs again; one that is finished
    answers at once.
    """

    group: GroupName = Field(description="group of the snapshot")
    snapshot_id: str = Field(description="the snapshot to train on")
    resume: str | None = Field(None, description="experiment to go on with by hand: its folder in the bottle")


class Result(job.Result):
    """Where the experiment lies, and the scores of its best epoch on the validation pictures."""

    experiment: str
    checkpoint: str
    metrics: dict[str, float]
    best_epoch: int
    epochs: int


def run(arguments: Arguments, context: job.Context) -> Result:
    """Train, unless this task instance has done so already."""
    options = DetectorTrainingOptions.model_validate(
        arguments.model_dump(include=set(DetectorTrainingOptions.model_fields))
    )
    bottle = context.bottle
    mark = training_digest(options.model_dump(mode="json"), arguments.group, arguments.snapshot_id)
    if arguments.resume:
        experiment = open_experiment(bottle, arguments.resume, mark)
    else:
        mode = "finetune" if options.weights else "train"
        name = f"{mode}_{options.architecture}_{options.batch}_{options.weight_decay:g}"
        experiment = claim(bottle, arguments.group, lambda n: f"v__{n}_{name}", context.task_instance, mark)
    content = finished(bottle, experiment)
    if content is not None:
        logger.info("%s is finished already: nothing is trained again", experiment.folder)
    else:
        snapshot = read_snapshot(bottle, arguments.group, arguments.snapshot_id)
        tracking = _tracking(options, arguments, experiment, context)
        with tracking.system_metrics() if tracking else nullcontext():
            content = _train(options, snapshot, bottle, experiment, tracking)
    return Result(
        experiment=experiment.folder,
        checkpoint=experiment.best_weights,
        metrics=content["metrics"],
        best_epoch=content["best_epoch"],
        epochs=content["epochs"],
    )


def _library(folder: Path) -> DetectorLibrary:
    """Return the library; what it keeps for itself goes into `folder`."""
    from training_jobs.detector.ultralytics_trainer import Ultralytics

    return Ultralytics(folder)


def _tracking(
    options: DetectorTrainingOptions, arguments: Arguments, experiment: Experiment, context: job.Context
) -> Run | None:
    if not context.is_tracked:
        logger.warning("%s is not set: the metrics are in %s only", settings.MLFLOW_URI, experiment.history)
        return None
    context.tracking.params(options.model_dump(mode="json"))
    told_apart_by = options.model_dump(include={"architecture", "epochs", "batch"})
    context.tracking.training_of(
        experiment.folder, arguments.group, arguments.snapshot_id, str(context.bottle), told_apart_by
    )
    return context.tracking


def _train(
    options: DetectorTrainingOptions, snapshot: Snapshot, bottle: Bottle, experiment: Experiment, tracking: Run | None
) -> dict[str, Any]:
    """Train, or go on training; write the experiment; return the content of `metrics.json`."""
    from training_jobs.detector.dataset import prepare_dataset
    from training_jobs.detector.training_callback import DetectorCallback

    described = {
        "group": experiment.group,
        "snapshot_id": snapshot.summary.snapshot_id,
        **options.model_dump(mode="json"),
    }
    bottle.write(experiment.config, yaml.safe_dump(described, sort_keys=False, allow_unicode=True))
    callback = DetectorCallback(bottle, experiment, options.epochs, tracking)
    with tempfile.TemporaryDirectory(prefix="nightshift-detector-") as scratch:
        folder = Path(scratch)
        library = _library(folder)
        last = None
        if bottle.exists(experiment.last_weights):
            last = bottle.local(experiment.last_weights)
            callback.go_on_after(library.epoch_of(last))
            logger.info("going on after epoch %d of %d", len(callback.rows), options.epochs)
        if last is None or not callback.is_over:
            dataset = prepare_dataset(bottle, snapshot, options.task, folder / "dataset")
            weights = local_file(options.weights, bottle) if options.weights else None
            library.train(dataset, options, folder, weights, last, callback)
        return _finish(library, options, snapshot, bottle, experiment, callback, folder, tracking)


def _finish(
    library: DetectorLibrary, options: DetectorTrainingOptions, snapshot: Snapshot, bottle: Bottle,
    experiment: Experiment, callback: Any, folder: Path, tracking: Run | None,
) -> dict[str, Any]:  # fmt: skip
    """Write TorchScript, spec and scores of the best epoch; return `metrics.json`, which is written last."""
    from jobkit.provenance import provenance
    from training_jobs.detector.training_report import training_page

    best = bottle.local(experiment.best_weights)
    epoch, script = library.epoch_of(best), folder / "model.pt"
    size = (options.input_size, options.input_size)
    found = library.trace(best, size, script)
    if found.labels != snapshot.summary.labels or found.task != options.task:
        raise DataValidationError(
            f"{bottle}/{experiment.best_weights} is a {TRAINED[found.task]} of {', '.join(found.labels)}, not of the"
            " snapshot"
        )
    spec, scores = _validate(options, snapshot, bottle, experiment, script)
    val_scores = {f"val_{name}": value for name, value in scores.metrics.items()}
    bottle.put(experiment.torchscript, script)
    bottle.write(experiment.spec, spec.model_dump_json(indent=2) + "\n")
    content: dict[str, Any] = {
        "best_epoch": epoch,
        "epochs": len(callback.rows),
        "metrics": {**callback.row(epoch), **val_scores},
        "confidence_threshold": spec.confidence_threshold,
        "group": experiment.group,
        "snapshot_id": snapshot.summary.snapshot_id,
        "provenance": {
            "command": "training_jobs.train_detector",
            "seed": options.seed,
            **provenance("detection", *library.packages),
        },
    }
    iou_threshold, pictures = DetectorEvaluationOptions().iou_threshold, len(snapshot.split("val"))
    page = training_page(experiment.folder, callback.rows, content, scores, iou_threshold, pictures)
    bottle.write(f"{experiment.folder}/report.html", page)
    if tracking is not None:
        tracking.text(page, "report.html")
        tracking.metrics({f"best_{name}": value for name, value in content["metrics"].items()}, step=epoch)
        tracking.params({"confidence_threshold": spec.confidence_threshold})
        tracking.artifact(bottle.local(experiment.config))
        tracking.dictionary(content, "metrics.json")
    bottle.write(experiment.metrics, json.dumps(content, indent=2) + "\n")  # last: it makes the experiment finished
    return content


def _validate(
    options: DetectorTrainingOptions, snapshot: Snapshot, bottle: Bottle, experiment: Experiment, script: Path
) -> tuple[DetectorSpec, DetectorScores]:
    """Return the spec with the confidence threshold of the best F1 on the validation pictures, and the scores there.

    What is scored is the TorchScript model, prepared and suppressed as an evaluation does it.
    """
    import torch

    from jobkit.detection.torchscript import preprocessing
    from jobkit.model_spec import DetectorSpec
    from training_jobs.scoring.detection import Judged, frozen_threshold, score
    from training_jobs.scoring.detector_predictions import predict
    from training_jobs.scoring.models import Model, runner

    labels, how = snapshot.summary.labels, DetectorEvaluationOptions()
    spec = DetectorSpec(
        group=experiment.group, architecture=options.architecture, labels=labels, task=options.task,
        preprocessing=preprocessing((options.input_size, options.input_size)),
        snapshot_id=snapshot.summary.snapshot_id,
    )  # fmt: skip
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    module = torch.jit.load(str(script), map_location=device).eval()
    model = Model(experiment.folder.rsplit("/", 1)[-1], spec, runner(module, device))
    pictures = predict(bottle, snapshot.split("val"), model, labels, how)
    threshold, f1 = frozen_threshold(pictures, how.iou_threshold)
    scores = score(model.version, labels, Judged(pictures, len(labels), how.iou_threshold, threshold), notes=[])
    logger.info("F1 %.4f on %d validation pictures with the confidence threshold %.4f", f1, len(pictures), threshold)
    return spec.model_copy(update={"confidence_threshold": threshold}), scores


if __name__ == "__main__":
    job.main(Arguments, run)
