"""What every evaluation does beside scoring: arguments, both models, where the report goes, what the next tasks get."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pydantic import BaseModel, Field

from jobkit import job, settings
from jobkit.answers import Answers
from jobkit.errors import DataValidationError
from jobkit.paths import checked_name
from jobkit.snapshot import Sample, Snapshot
from training_jobs.scoring.evaluation import Evaluation, Scores, Slice
from training_jobs.scoring.models import Model, S, load_candidate, load_champion

logger = logging.getLogger("training_jobs.evaluate")


class EvaluationArguments(job.Arguments):
    """Whom to compare, and on which pictures."""

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
    answers: str | None = Field(
        None, description="key in the bottle: the candidate's answer to each golden picture; of a classifier"
    )
    candidate: Summary
    champion: Summary | None
    notes: list[str]


@contextmanager
def contenders(
    arguments: EvaluationArguments, context: job.Context, kind: type[S]
) -> Iterator[tuple[Model[S], Model[S] | None]]:
    """Yield the candidate, and the champion where there is one.

    Raises:
        DataValidationError: the candidate is of another group; see `load_candidate` and `load_champion`.
    """
    candidate = load_candidate(context.bottle, arguments.experiment, kind)
    if candidate.spec.group != arguments.group:
        raise DataValidationError(
            f"{arguments.experiment} was trained for group {candidate.spec.group}, not {arguments.group}"
        )
    with tempfile.TemporaryDirectory(prefix="champion-") as folder:
        if context.task_instance is None and settings.optional(settings.STORAGE_URL) is None:
            logger.info("%s is not set: the candidate is scored alone", settings.STORAGE_URL)
            yield candidate, None
        else:
            yield candidate, load_champion(arguments.model_name, Path(folder), kind)


def golden_pictures(snapshot: Snapshot) -> list[Sample]:
    """Return the golden pictures.

    Raises:
        DataValidationError: there are none.
    """
    if golden := snapshot.split("golden"):
        return golden
    summary = snapshot.summary
    raise DataValidationError(f"snapshot {summary.snapshot_id} of group {summary.group} has no golden pictures")


def finish(
    arguments: EvaluationArguments, context: job.Context, evaluation: Evaluation, answers: Answers | None = None
) -> Result:
    """Write the evaluation, beside it its report for people and `answers`; tell the log and MLflow; return what the
    next tasks get."""
    from training_jobs.scoring.evaluation_report import evaluation_page
    from training_jobs.scoring.tracking import track

    name = Path(arguments.experiment).name
    place = f"evaluations/{checked_name(arguments.group, 'group')}/{arguments.snapshot_id}/{name}"
    key, page_key, answers_key = f"{place}.json", f"{place}.html", f"{place}.answers.npz"
    if answers is not None:
        answers.write(context.bottle, answers_key)
    page = evaluation_page(context.bottle, evaluation)
    context.bottle.write(page_key, page)
    context.bottle.write(key, evaluation.model_dump_json(indent=1) + "\n")
    for scores in filter(None, (evaluation.candidate, evaluation.champion)):
        shown = ", ".join(f"{metric} {value:.4f}" for metric, value in scores.metrics.items())
        logger.info("%s on %d golden pictures: %s", scores.version, evaluation.pictures, shown)
        for note in scores.notes:
            logger.warning(note)
    logger.info("report: %s/%s", context.bottle, page_key)
    if context.is_tracked:
        track(context, evaluation, page)
    return Result(
        report=key,
        answers=None if answers is None else answers_key,
        candidate=_summary(evaluation.candidate),
        champion=_summary(evaluation.champion) if evaluation.champion else None,
        notes=evaluation.candidate.notes + (evaluation.champion.notes if evaluation.champion else []),
    )


def _summary(scores: Scores) -> Summary:
    return Summary(version=scores.version, metrics=scores.metrics, slices=dict(scores.slices))
