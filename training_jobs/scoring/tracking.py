"""What MLflow gets of an evaluation: numbers, the confusion matrix, and the candidate's worst mistakes as pictures."""

from __future__ import annotations

import math
import re
from pathlib import Path
from typing import Any

from jobkit import job
from jobkit.bottle import Bottle
from jobkit.paths import SnapshotPaths
from training_jobs.scoring.classification import ClassifierEvaluation, Mistake, MultiLabelEvaluation
from training_jobs.scoring.evaluation import Evaluation

_NOT_IN_A_NAME = re.compile(r"[^\w\-./: ]")  # what MLflow does not take in the name of a metric
COLUMNS = 5  # of the sheet of mistakes
LARGEST_MATRIX = 60  # classes; with more, numbers and names are not readable


def track(context: job.Context, evaluation: ClassifierEvaluation | MultiLabelEvaluation) -> None:
    """Log the evaluation to the job's MLflow run."""
    log_scores(context, evaluation)
    run = context.tracking
    if isinstance(evaluation, ClassifierEvaluation):
        matrix = context.directory / "confusion_matrix.png"
        draw_confusion(evaluation.candidate.confusion, evaluation.labels, matrix)
        run.artifact(matrix)
    if evaluation.mistakes:
        sheet = context.directory / "worst_mistakes.png"
        draw_mistakes(context.bottle, evaluation.mistakes, sheet)
        run.artifact(sheet)
    if evaluation.negative_flips:
        flips = context.directory / "negative_flips.png"
        draw_mistakes(context.bottle, evaluation.negative_flips, flips)
        run.artifact(flips)


def log_scores(context: job.Context, evaluation: Evaluation) -> None:
    """Log the numbers of an evaluation of any kind, and the whole of it as `evaluation.json`."""
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
    if evaluation.comparison:
        values |= {f"gain/{name}": gain.value for name, gain in evaluation.comparison.gains.items()}
        run.tags({"nightshift.champion": evaluation.champion.version if evaluation.champion else ""})
    run.metrics(values)
    run.dictionary(evaluation.model_dump(mode="json"), "evaluation.json")


def _name(text: str) -> str:
    return _NOT_IN_A_NAME.sub("_", text)


def draw_confusion(confusion: list[list[int]], labels: list[str], path: Path) -> None:
    """Draw the confusion matrix, [K][K + 1] with true classes as rows, as a PNG file."""
    import numpy as np
    from matplotlib.figure import Figure

    table = np.asarray(confusion)
    names = [*labels, "other"]
    if not table[:, -1].any():
        table, names = table[:, :-1], labels
    side = min(4 + 0.35 * len(labels), 20)
    figure = Figure(figsize=(side + 1, side), layout="constrained")
    axes = figure.subplots()
    shares = table / np.maximum(table.sum(axis=1, keepdims=True), 1)
    drawn = axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
    axes.set(xlabel="predicted", ylabel="true")
    if len(labels) <= LARGEST_MATRIX:
        axes.set_xticks(range(len(names)), names, rotation=90)
        axes.set_yticks(range(len(labels)), labels)
        for (row, column), count in np.ndenumerate(table):
            if count:
                color = "white" if shares[row, column] > 0.5 else "black"
                axes.text(column, row, str(count), ha="center", va="center", color=color, fontsize=8)
    figure.colorbar(drawn, label="share of the true class")
    figure.savefig(path, dpi=110)


def draw_mistakes(bottle: Bottle, mistakes: list[Mistake], path: Path) -> None:
    """Draw the pictures that the candidate is wrong about, with both labels, as a PNG file."""
    from matplotlib.figure import Figure
    from PIL import Image

    rows = math.ceil(len(mistakes) / COLUMNS)
    figure = Figure(figsize=(2.2 * COLUMNS, 2.6 * rows), layout="constrained")
    grid: Any = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, mistake in zip(grid.flat, mistakes, strict=False):
        with Image.open(bottle.local(mistake.picture)) as image:
            image.thumbnail((256, 256))
            axes.imshow(image.convert("RGB"))
        said = f"{mistake.label or '-'} → {mistake.predicted or '-'} ({mistake.probability:.0%})"
        axes.set_title(said if mistake.champion is None else f"{said}\nchampion: {mistake.champion}", fontsize=8)
    figure.savefig(path, dpi=110)
