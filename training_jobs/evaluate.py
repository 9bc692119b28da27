"""Score the candidate and the champion on the golden pictures of one snapshot, and compare them picture by picture."""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import BaseModel, Field

from jobkit import job, settings
from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.paths import checked_name
from jobkit.snapshot import Snapshot, read_snapshot
from training_jobs.scoring.classification import ClassifierEvaluation, Mistake
from training_jobs.scoring.evaluation import Scores, Slice
from training_jobs.scoring.metrics import compare, score
from training_jobs.scoring.models import Model, load_candidate, load_champion

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger("training_jobs.evaluate")

SHOWN_MISTAKES = 25


class Arguments(job.Arguments):
    """Score the candidate and the champion on the golden pictures of a snapshot."""

    group: str = Field(description="group of pictures")
    snapshot_id: str = Field(description="the snapshot whose golden pictures are used")
    experiment: str = Field(description="the candidate: folder of an experiment in the bottle, models/<group>/<name>")
    model_name: str = Field(description="name of the model in the model storage, whose champion is the one to beat")


class Summary(BaseModel):
    """Scores of one model as the next tasks get them."""

    version: str
    metrics: dict[str, float]
    slices: dict[str, Slice]


class Result(job.Result):
    """Where the report is, and the scores."""

    report: str = Field(description="key in the bottle")
    candidate: Summary
    champion: Summary | None
    notes: list[str]


def run(arguments: Arguments, context: job.Context) -> Result:
    """Evaluate."""
    name = Path(arguments.experiment).name
    key = f"evaluations/{checked_name(arguments.group, 'group')}/{arguments.snapshot_id}/{name}.json"
    snapshot = read_snapshot(context.bottle, arguments.group, arguments.snapshot_id)
    candidate = load_candidate(context.bottle, arguments.experiment)
    if candidate.spec.group != arguments.group:
        raise DataValidationError(
            f"{arguments.experiment} was trained for group {candidate.spec.group}, not {arguments.group}"
        )
    with tempfile.TemporaryDirectory(prefix="champion-") as folder:
        champion = _champion(arguments, context, Path(folder))
        report = _evaluate(context.bottle, arguments, snapshot, candidate, champion)
    context.bottle.write(key, report.model_dump_json(indent=1) + "\n")
    for scores in filter(None, (report.candidate, report.champion)):
        shown = ", ".join(f"{metric} {value:.4f}" for metric, value in scores.metrics.items())
        logger.info("%s on %d golden pictures: %s", scores.version, report.pictures, shown)
        for note in scores.notes:
            logger.warning(note)
    if context.is_tracked:
        from training_jobs.scoring.tracking import track

        track(context, report)
    return Result(
        report=key,
        candidate=_summary(report.candidate),
        champion=_summary(report.champion) if report.champion else None,
        notes=report.candidate.notes + (report.champion.notes if report.champion else []),
    )


def _champion(arguments: Arguments, context: job.Context, folder: Path) -> Model | None:
    if context.task_instance is None and settings.optional(settings.STORAGE_URL) is None:
        logger.info("%s is not set: the candidate is scored alone", settings.STORAGE_URL)
        return None
    return load_champion(arguments.model_name, folder)


def _evaluate(
    bottle: Bottle, arguments: Arguments, snapshot: Snapshot, candidate: Model, champion: Model | None
) -> ClassifierEvaluation:
    import numpy as np

    from training_jobs.scoring.predict import differences, predict

    labels, golden = snapshot.summary.labels, snapshot.split("golden")
    if not golden:
        raise DataValidationError(f"snapshot {arguments.snapshot_id} of group {arguments.group} has no golden pictures")
    index = snapshot.label_index()
    truth = np.array([index[sample.label] for sample in golden])
    counts = snapshot.summary.counts["golden"]
    found = {}
    for role, model in (("the candidate", candidate), ("the champion", champion)):
        if model is not None:
            probabilities = predict(bottle, golden, model, labels)
            notes = differences(model.spec, labels, counts, f"{role} {model.version}")
            scores = score(model.version, labels, truth, probabilities).model_copy(update={"notes": notes})
            found[role] = scores, probabilities
    scores, probabilities = found["the candidate"]
    rival_scores, rival = found.get("the champion", (None, None))
    comparison = compare(len(labels), truth, probabilities.argmax(1), rival.argmax(1)) if rival is not None else None
    return ClassifierEvaluation(
        kind="classification",
        group=arguments.group, snapshot_id=arguments.snapshot_id, experiment=arguments.experiment,
        model_name=arguments.model_name, labels=labels, pictures=len(golden), candidate=scores, champion=rival_scores,
        comparison=comparison, mistakes=_mistakes(snapshot, truth, probabilities, rival),
    )  # fmt: skip


def _mistakes(
    snapshot: Snapshot, truth: NDArray[np.int64], ours: NDArray[np.float64], theirs: NDArray[np.float64] | None
) -> list[Mistake]:
    """Return the candidate's surest mistakes."""
    import numpy as np

    names = [*snapshot.summary.labels, "another class"]
    golden, predicted, confidence = snapshot.split("golden"), ours.argmax(1), ours.max(1)
    wrong = np.flatnonzero(predicted != truth)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN_MISTAKES]
    return [
        Mistake(
            picture=golden[i].path, source=golden[i].source, label=golden[i].label, predicted=names[predicted[i]],
            probability=round(float(confidence[i]), 4),
            champion=None if theirs is None else names[int(theirs[i].argmax())],
        )
        for i in order
    ]  # fmt: skip


def _summary(scores: Scores) -> Summary:
    return Summary(version=scores.version, metrics=scores.metrics, slices=dict(scores.slices))


if __name__ == "__main__":
    job.main(Arguments, run)
