"""The report of a detector's training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from training_jobs.report_kit import charts
from training_jobs.report_kit.blocks import Block, Section, Table, Text
from training_jobs.report_kit.page import page
from training_jobs.scoring.detection import DetectorScores
from training_jobs.scoring.evaluation_report import threshold_charts


def training_page(
    folder: str,
    rows: Sequence[Mapping[str, Any]],
    content: Mapping[str, Any],
    scores: DetectorScores,
    iou_threshold: float,
    pictures: int,
) -> str:
    """Return the report; `rows`: an epoch each, `scores`: the best epoch's on `pictures` validation pictures."""
    best = content["best_epoch"] + 1
    verdict = (
        f"F1 {scores.metrics['f1']:.4f} on {pictures} validation pictures with the confidence threshold "
        f"{scores.confidence_threshold:.4f}, by epoch {best} of {content['epochs']}."
    )
    classes = [
        [name, *(f"{value:.4f}" for value in (part.precision, part.recall, part.f1)), str(part.support)]
        for name, part in scores.slices.items()
    ]
    made = {name: value for name, value in content["provenance"].items() if name != "packages"}  # a hundred rows
    sections = [
        Section("Scores", [Table.of_pairs({name: f"{value:.4f}" for name, value in content["metrics"].items()})]),
        Section("Learning curves", _curves(rows, best)),
        Section("Thresholds", threshold_charts({scores.version: scores}, iou_threshold)),
        Section("Classes and sizes", [Table(["", "precision", "recall", "f1", "support"], classes)]),
        Section("To reproduce", [Table.of_pairs(made)]),
    ]
    return page(folder, verdict, sections)


def _curves(rows: Sequence[Mapping[str, Any]], best: int) -> list[Block]:
    """Return a chart of the losses, one of the validation score, one of the learning rate."""
    if not rows:  # an experiment whose history was not kept
        return []
    epochs = [row["epoch"] + 1 for row in rows]
    losses = [name for name in rows[0] if "loss" in name]
    named = {"Losses": losses, "Validation F1": ["val_f1"], "Learning rate": ["learning_rate"]}
    drawn: list[Block] = [
        charts.lines(title, "epoch", epochs, {n: [row[n] for row in rows] for n in names}, marked=best)
        for title, names in named.items()
        if names and all(name in row for row in rows for name in names)
    ]
    return [Text(f"The line marks epoch {best}, whose weights were kept."), *drawn]
