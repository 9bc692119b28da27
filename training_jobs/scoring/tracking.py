"""What MLflow gets of an evaluation of any kind: numbers, and the report for people."""

from __future__ import annotations

import re

from jobkit import job
from jobkit.paths import SnapshotPaths
from training_jobs.scoring.evaluation import Evaluation

_NOT_IN_A_NAME = re.compile(r"[^\w\-./: ]")  # what MLflow does not take in the name of a metric


def track(context: job.Context, evaluation: Evaluation, page: str) -> None:
    """Log the numbers to the job's MLflow run, the whole of them as `evaluation.json`, and `page` as `report.html`."""
    run = context.tracking
    run.params(
        {
            "snapshot_id": evaluation.snapshot_id,
            "experiment": evaluation.experiment,
            "model_name": evaluation.model_name,
        }
    )
    folder = SnapshotPaths(evaluation.group, evaluation.snapshot_id).folder
    run.dataset(evaluation.group, evaluation.snapshot_id, f"{context.bottle}/{folder}", "evaluation")
    values: dict[str, float] = {"golden_pictures": evaluation.pictures}
    for role, scores in (("candidate", evaluation.candidate), ("champion", evaluation.champion)):
        if scores is not None:
            metric = scores.slice_metric.lower()
            values |= {f"{role}/{name}": value for name, value in scores.metrics.items()}
            values |= {f"{role}/{_name(name)}/{metric}": part.score for name, part in scores.slices.items()}
    if (golden := evaluation.golden) is not None:
        run.params({"golden_set": golden.id})
        run.tags({"nightshift.golden_set": golden.sentence})
        if golden.reviewed is not None:
            values["golden_reviewed_share"] = golden.reviewed / golden.pictures
        if golden.arrived is not None:
            values["golden_arrived"] = golden.arrived
    if evaluation.comparison:
        values |= {f"gain/{name}": gain.value for name, gain in evaluation.comparison.gains.items()}
        run.tags({"nightshift.champion": evaluation.champion.version if evaluation.champion else ""})
    run.metrics(values)
    run.dictionary(evaluation.model_dump(mode="json"), "evaluation.json")
    run.text(page, "report.html")


def _name(text: str) -> str:
    return _NOT_IN_A_NAME.sub("_", text)
