"""Score a detector or segmenter and the champion on the golden pictures of one snapshot, and compare them."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from jobkit import job
from jobkit.model_spec import DetectorSpec
from jobkit.snapshot import Sample, read_snapshot
from nightshift_common.boxes import SCORE
from nightshift_common.options.detector import DetectorEvaluationOptions
from training_jobs.scoring.detection import DetectorEvaluation, Drawn, Judged, WorstPicture, compare, rates, score
from training_jobs.scoring.detector_predictions import predict
from training_jobs.scoring.evaluation import Reference
from training_jobs.scoring.evaluation_job import (
    EvaluationArguments,
    Result,
    contenders,
    counted,
    finish,
    golden_pictures,
)
from training_jobs.scoring.golden import describe
from training_jobs.scoring.models import Model
from training_jobs.scoring.paired import group_numbers
from training_jobs.scoring.predict import differences

SHOWN_PICTURES = 12
KINDS = {"detect": "detection", "segment": "segmentation"}


class Arguments(EvaluationArguments, DetectorEvaluationOptions):
    """Score the candidate and the champion on the annotated golden pictures of a snapshot."""


def run(arguments: Arguments, context: job.Context) -> Result:
    """Evaluate."""
    snapshot = read_snapshot(context.bottle, arguments.group, arguments.snapshot_id)
    labels, golden = snapshot.summary.labels, golden_pictures(snapshot)
    options = DetectorEvaluationOptions.model_validate(
        arguments.model_dump(include=set(DetectorEvaluationOptions.model_fields))
    )
    support = snapshot.summary.counts["golden"]
    found = {}
    with contenders(arguments, context, DetectorSpec) as models:
        for role, model in models.by_role().items():
            pictures = predict(context.bottle, golden, model, labels, options)
            judged = Judged(pictures, len(labels), options.iou_threshold, threshold(model.spec))
            notes = _notes(model, labels, support, f"{role} {model.version}")
            found[role] = judged, score(model.version, labels, judged, notes)
        task, earlier = models.candidate.spec.task, list(models.references)
    groups = group_numbers([sample.split_group for sample in golden])
    (ours, candidate), rival = found["the candidate"], found.get("the champion")
    references = [
        Reference(
            role=role, version=scores.version, metrics=scores.metrics,
            candidate=compare(ours, answered, labels, groups), champion=compare(rival[0], answered, labels, groups),
        )
        for role, (answered, scores) in ((role, found[f"the {role}"]) for role in earlier)
        if rival is not None
    ]  # fmt: skip
    report = DetectorEvaluation(
        kind=KINDS[task], group=arguments.group, snapshot_id=arguments.snapshot_id, experiment=arguments.experiment,
        model_name=arguments.model_name, labels=labels, pictures=len(golden), candidate=candidate,
        champion=rival[1] if rival else None, comparison=compare(ours, rival[0], labels, groups) if rival else None,
        references=references, iou_threshold=options.iou_threshold, worst=worst_pictures(golden, ours, labels),
        negative_flips=worst_pictures(golden, ours, labels, rival[0].right) if rival else [],
        golden=describe(context.bottle, arguments.group, golden),
    )  # fmt: skip
    report = counted(arguments, context, report, golden)
    result = finish(arguments, context, report)
    if context.is_tracked:
        scored = [scores for _, scores in found.values()]
        context.tracking.params({f"confidence_threshold.{one.version}": one.confidence_threshold for one in scored})
    return result


def threshold(spec: DetectorSpec) -> float:
    """Return from which confidence on a prediction counts: what training froze, else what is shown by default."""
    if spec.confidence_threshold is not None:
        return spec.confidence_threshold
    return SCORE if spec.suppression is None else spec.suppression.confidence_threshold


def _notes(model: Model[DetectorSpec], labels: list[str], support: dict[str, int], name: str) -> list[str]:
    notes = differences(model.spec, labels, support, name)
    if model.spec.confidence_threshold is None:
        notes.append(
            f"{name} has no confidence threshold that was chosen on validation pictures: {threshold(model.spec):g} is "
            "taken for precision, recall and F1"
        )
    if model.spec.suppression is not None:
        least = model.spec.suppression.confidence_threshold
        notes.append(f"{name} leaves out boxes below {least:g} itself: its average precision lacks their recall")
    return notes


def worst_pictures(
    golden: list[Sample], judged: Judged, labels: list[str], among: NDArray[np.bool_] | None = None
) -> list[WorstPicture]:
    """Return the pictures with the most mistakes, for people to look at; `among`, bool [n]: only of these."""
    mistakes = judged.counts[:, 1:].sum(axis=1)
    if among is not None:
        mistakes = mistakes * among
    order = [i for i in np.argsort(-mistakes, kind="stable") if mistakes[i]][:SHOWN_PICTURES]
    found = []
    for index in order:
        picture, taken = judged.pictures[index], judged.taken[index][0]
        shown = np.flatnonzero(picture.scores >= judged.confidence)
        right, wrong, missed = judged.counts[index].tolist()
        objects = [
            Drawn(label=_name(labels, int(label)), box=box, is_right=bool(number in taken[shown]))
            for number, (label, box) in enumerate(zip(picture.true_labels, picture.true_boxes.tolist(), strict=True))
            if not picture.ignored[number]
        ]
        predictions = [
            Drawn(
                label=_name(labels, int(picture.labels[i])),
                box=picture.boxes[i].tolist(),
                confidence=round(float(picture.scores[i]), 4),
                is_right=bool(taken[i] >= 0),
            )
            for i in shown
        ]
        worst = WorstPicture(
            picture=golden[index].path, source=golden[index].source, f1=rates(right, wrong, missed)[2],
            false_positives=wrong, false_negatives=missed, objects=objects, predictions=predictions,
        )  # fmt: skip
        found.append(worst)
    return found


def _name(labels: list[str], number: int) -> str:
    return labels[number] if number >= 0 else "another class"


if __name__ == "__main__":
    job.main(Arguments, run)
