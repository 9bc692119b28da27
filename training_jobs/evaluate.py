"""Score the candidate and the champion on the golden pictures of one snapshot, and compare them picture by picture."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from jobkit import job
from jobkit.answers import Answers
from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.model_spec import ModelSpec
from jobkit.snapshot import Sample, Snapshot, read_snapshot
from nightshift_common.picture_preparation import SHOWN
from training_jobs.scoring import metrics, multi_label
from training_jobs.scoring.classification import ClassifierEvaluation, Mistake, MultiLabelEvaluation
from training_jobs.scoring.evaluation import Comparison, Reference
from training_jobs.scoring.evaluation_job import (
    Contenders,
    EvaluationArguments,
    Result,
    contenders,
    counted,
    finish,
    golden_pictures,
)
from training_jobs.scoring.golden import ARRIVED, GoldenSet, describe, newcomers
from training_jobs.scoring.metrics import ClassifierScores
from training_jobs.scoring.multi_label import MultiLabelScores
from training_jobs.scoring.paired import group_numbers

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

SHOWN_MISTAKES = 25


class Arguments(EvaluationArguments):
    """Score the candidate and the champion on the golden pictures of a snapshot."""


def run(arguments: Arguments, context: job.Context) -> Result:
    """Evaluate."""
    snapshot = read_snapshot(context.bottle, arguments.group, arguments.snapshot_id)
    with contenders(arguments, context, ModelSpec) as models:
        report, answers = _evaluate(context.bottle, arguments, snapshot, models)
    report = counted(arguments, context, report, golden_pictures(snapshot))
    return finish(arguments, context, report, answers)


def _evaluate(
    bottle: Bottle,
    arguments: Arguments,
    snapshot: Snapshot,
    models: Contenders[ModelSpec],
) -> tuple[ClassifierEvaluation | MultiLabelEvaluation, Answers]:
    import numpy as np

    from training_jobs.scoring.predict import align, differences, predict

    labels, golden, several = snapshot.summary.labels, golden_pictures(snapshot), snapshot.is_multi_label
    candidate = models.candidate
    if candidate.spec.multi_label != several:
        raise DataValidationError(
            f"{arguments.experiment} was trained for {_pictures(candidate.spec.multi_label)}, and snapshot "
            f"{arguments.snapshot_id} has {_pictures(several)}"
        )
    index = snapshot.label_index()
    score: Callable[..., MultiLabelScores | ClassifierScores] = multi_label.score if several else metrics.score
    if several:
        truth = np.array([[label in sample.labels for label in labels] for sample in golden], np.int64)
    else:
        truth = np.array([index[sample.label] for sample in golden])
    counts = snapshot.summary.counts["golden"]
    found, given = {}, {}
    for role, model in models.by_role().items():
        given[role] = predict(bottle, golden, model)
        probabilities = align(given[role], model.spec.labels, labels)
        notes = differences(model.spec, labels, counts, f"{role} {model.version}")
        if model.spec.multi_label != several:
            notes.append(f"{role} {model.version} was trained for {_pictures(model.spec.multi_label)}")
        scores = score(model.version, labels, truth, probabilities).model_copy(update={"notes": notes})
        found[role] = scores, probabilities
    scores, probabilities = found["the candidate"]
    rival_scores, rival = found.get("the champion", (None, None))
    references: list[Reference] = []
    comparison, groups = None, group_numbers([sample.split_group for sample in golden])

    def compared(ours: NDArray[np.float64], theirs: NDArray[np.float64]) -> Comparison:
        if several:
            return multi_label.compare(labels, truth, ours, theirs, groups)
        return metrics.compare(labels, truth, ours.argmax(1), theirs.argmax(1), groups)

    if rival is not None:
        comparison = compared(probabilities, rival)
        for role in models.references:
            earlier, answered = found[f"the {role}"]
            references.append(
                Reference(
                    role=role,
                    version=earlier.version,
                    metrics=earlier.metrics,
                    candidate=compared(probabilities, answered),
                    champion=compared(rival, answered),
                )
            )
    found_mistakes = _several_mistakes if several else _mistakes
    golden_set = describe(bottle, arguments.group, golden)
    if comparison is not None:
        golden_set, is_new = _arrived(bottle, arguments, golden_set, golden, models)
        if is_new is not None and is_new.any():
            comparison, scores, rival_scores = _with_part(
                several, truth, is_new, groups, comparison, (scores, probabilities), (rival_scores, rival)
            )
    values = {
        "kind": "classification",
        "group": arguments.group, "snapshot_id": arguments.snapshot_id, "experiment": arguments.experiment,
        "model_name": arguments.model_name, "labels": labels, "pictures": len(golden), "candidate": scores,
        "champion": rival_scores, "comparison": comparison, "references": references, "golden": golden_set,
        "mistakes": found_mistakes(snapshot, truth, probabilities, rival),
        "negative_flips": found_mistakes(snapshot, truth, probabilities, rival, flips=True),
    }  # fmt: skip
    evaluation = MultiLabelEvaluation(**values) if several else ClassifierEvaluation(**values)
    return evaluation, Answers.of(candidate.spec, golden, given["the candidate"])


def _arrived(
    bottle: Bottle, arguments: Arguments, found: GoldenSet, golden: list[Sample], models: Contenders[ModelSpec]
) -> tuple[GoldenSet, NDArray[np.bool_] | None]:
    """Return the golden set with what has arrived since the models were trained, and which pictures that is, [N]."""
    named = {"the candidate": models.candidate, "the champion": models.champion}
    snapshots = {name: model.spec.snapshot_id for name, model in named.items() if model is not None}
    is_new, note = newcomers(bottle, arguments.group, golden, snapshots, arguments.snapshot_id)
    update = {"arrived": None if is_new is None else int(is_new.sum()), "notes": [*found.notes, note] if note else []}
    return found.model_copy(update=update), is_new


Scored = tuple[Any, Any]


def _with_part(
    several: bool, truth: NDArray[np.int64], chosen: NDArray[np.bool_], groups: NDArray[np.int64],
    comparison: Comparison, ours: Scored, theirs: Scored,
) -> tuple[Comparison, Any, Any]:  # fmt: skip
    """Return the comparison and both models' scores with the chosen pictures, bool [N], as one more slice."""
    import numpy as np

    truth = truth[chosen]
    answers = [answered[chosen] if several else answered[chosen].argmax(1) for _, answered in (ours, theirs)]
    kind: Any = multi_label if several else metrics
    numbers = np.unique(groups[chosen], return_inverse=True)[1]
    sides = [
        scores.model_copy(update={"slices": {**scores.slices, ARRIVED: kind.part(truth, answered)}})
        for (scores, _), answered in zip((ours, theirs), answers, strict=True)
    ]
    gain = kind.part_gain(truth, *answers, numbers)
    return comparison.model_copy(update={"slices": {**comparison.slices, ARRIVED: gain}}), *sides


def _pictures(several: bool) -> str:
    return "pictures of several labels" if several else "pictures of one label each"


def _mistakes(
    snapshot: Snapshot,
    truth: NDArray[np.int64],
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64] | None,
    *,
    flips: bool = False,
) -> list[Mistake]:
    """Return the candidate's surest mistakes; with `flips` only those that the champion does not make."""
    import numpy as np

    names = [*snapshot.summary.labels, "another class"]
    golden, predicted, confidence = snapshot.split("golden"), ours.argmax(1), ours.max(1)
    missed = predicted != truth
    if flips:
        missed &= np.zeros(len(truth), bool) if theirs is None else theirs.argmax(1) == truth
    wrong = np.flatnonzero(missed)
    order = wrong[np.argsort(-confidence[wrong], kind="stable")][:SHOWN_MISTAKES]
    return [
        Mistake(
            picture=golden[i].path, source=golden[i].source, label=golden[i].label, predicted=names[predicted[i]],
            probability=round(float(confidence[i]), 4),
            champion=None if theirs is None else names[int(theirs[i].argmax())],
        )
        for i in order
    ]  # fmt: skip


def _several_mistakes(
    snapshot: Snapshot,
    truth: NDArray[np.int64],
    ours: NDArray[np.float64],
    theirs: NDArray[np.float64] | None,
    *,
    flips: bool = False,
) -> list[Mistake]:
    """Return the candidate's surest mistakes about pictures of several labels: those with the worst single class.

    With `flips` only those that the champion does not make.
    """
    import numpy as np

    names, golden = [*snapshot.summary.labels, "another class"], snapshot.split("golden")
    wanted = np.pad(truth, ((0, 0), (0, 1)))  # another class is never right
    missed = ~multi_label.all_right(truth, ours)
    if flips:
        missed &= np.zeros(len(truth), bool) if theirs is None else multi_label.all_right(truth, theirs)
    wrong = np.flatnonzero(missed)
    off = np.abs(ours - wanted).max(1)
    order = wrong[np.argsort(-off[wrong], kind="stable")][:SHOWN_MISTAKES]

    def said(probabilities: NDArray[np.float64]) -> str:
        return ", ".join(name for name, value in zip(names, probabilities, strict=True) if value >= SHOWN)

    return [
        Mistake(
            picture=golden[i].path, source=golden[i].source, label=", ".join(golden[i].labels), predicted=said(ours[i]),
            probability=round(float(off[i]), 4), champion=None if theirs is None else said(theirs[i]),
        )
        for i in order
    ]  # fmt: skip


if __name__ == "__main__":
    job.main(Arguments, run)
