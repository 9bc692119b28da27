"""What every evaluation does beside scoring: arguments, both models, where the report goes, what the next tasks get."""

from __future__ import annotations

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Generic, TypeVar

from pydantic import BaseModel, Field

from jobkit import job, settings
from jobkit.answers import Answers
from jobkit.errors import DataValidationError
from jobkit.paths import checked_name
from jobkit.snapshot import Sample, Snapshot
from training_jobs.scoring.evaluation import Evaluation, Scores, Slice
from training_jobs.scoring.history import best_so_far, count_look
from training_jobs.scoring.models import Model, S, load_candidate, load_champion, load_references

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


@dataclass(frozen=True)
class Contenders(Generic[S]):
    """The models that answer about the same golden pictures; `references` are earlier champions by their role."""

    candidate: Model[S]
    champion: Model[S] | None = None
    references: dict[str, Model[S]] = field(default_factory=dict)

    def by_role(self) -> dict[str, Model[S]]:
        """Return all of them, the candidate first, by what they are called in a sentence."""
        rivals = {"the champion": self.champion} if self.champion else {}
        return {"the candidate": self.candidate, **rivals, **{f"the {r}": m for r, m in self.references.items()}}


@contextmanager
def contenders(arguments: EvaluationArguments, context: job.Context, kind: type[S]) -> Iterator[Contenders[S]]:
    """Yield the candidate; the champion where there is one; the earlier champions that it must not fall behind.

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
            yield Contenders(candidate)
        elif (champion := load_champion(arguments.model_name, Path(folder), kind)) is None:
            yield Contenders(candidate)
        else:
            best = best_so_far(context.bottle, arguments.group, arguments.model_name)
            yield Contenders(
                candidate, champion,
                load_references(arguments.model_name, champion.version, best, Path(folder), kind),
            )  # fmt: skip


def golden_pictures(snapshot: Snapshot) -> list[Sample]:
    """Return the golden pictures.

    Raises:
        DataValidationError: there are none.
    """
    if golden := snapshot.split("golden"):
        return golden
    summary = snapshot.summary
    raise DataValidationError(f"snapshot {summary.snapshot_id} of group {summary.group} has no golden pictures")


E = TypeVar("E", bound=Evaluation)


def counted(arguments: EvaluationArguments, context: job.Context, evaluation: E, golden: list[Sample]) -> E:
    """Return the evaluation with how many candidates this golden set has scored, this one included."""
    look = count_look(
        context.bottle, arguments.group, arguments.model_name, arguments.snapshot_id, arguments.experiment, golden
    )
    return evaluation.model_copy(update={"look": look})


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
    if evaluation.golden is not None:
        logger.info(evaluation.golden.sentence)
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
