"""What MLflow gets of an evaluation of detectors: numbers, the precision-recall curve, and the worst pictures."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from jobkit import job
from jobkit.bottle import Bottle
from training_jobs.scoring.detection import DetectorEvaluation, DetectorScores, WorstPicture
from training_jobs.scoring.tracking import log_scores

COLUMNS = 3
SIDE = 640  # pixels; larger pictures are drawn smaller


def track(context: job.Context, evaluation: DetectorEvaluation) -> None:
    """Log the evaluation to the job's MLflow run."""
    log_scores(context, evaluation)
    run = context.tracking
    models = list(filter(None, (evaluation.candidate, evaluation.champion)))
    run.params({f"confidence_threshold.{scores.version}": scores.confidence_threshold for scores in models})
    curve = context.directory / "precision_recall.png"
    draw_curve(models, evaluation.iou_threshold, curve)
    run.artifact(curve)
    if evaluation.worst:
        sheet = context.directory / "worst_pictures.png"
        draw_pictures(context.bottle, evaluation.worst, sheet)
        run.artifact(sheet)
    if evaluation.negative_flips:
        flips = context.directory / "negative_flips.png"
        draw_pictures(context.bottle, evaluation.negative_flips, flips)
        run.artifact(flips)


def draw_curve(models: list[DetectorScores], iou_threshold: float, path: Path) -> None:
    """Draw precision over recall of each model, with a dot where its threshold is, as a PNG file."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 6), layout="constrained")
    axes = figure.subplots()
    for scores in models:
        recall, precision = ([getattr(p, name) for p in scores.curve] for name in ("recall", "precision"))
        (line,) = axes.plot(recall, precision, drawstyle="steps-post", label=scores.version)
        axes.plot(scores.metrics["recall"], scores.metrics["precision"], "o", color=line.get_color())
    axes.set(xlabel="recall", ylabel=f"precision at IoU {iou_threshold:g}", xlim=(0, 1.02), ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=110)


def draw_pictures(bottle: Bottle, pictures: list[WorstPicture], path: Path) -> None:
    """Draw objects in green and predictions in red, those that are wrong or missed with a full line, as a PNG file."""
    from matplotlib.figure import Figure
    from matplotlib.patches import Rectangle
    from PIL import Image, ImageOps

    rows = math.ceil(len(pictures) / COLUMNS)
    figure = Figure(figsize=(4.2 * COLUMNS, 4.2 * rows), layout="constrained")
    grid: Any = figure.subplots(rows, COLUMNS, squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, picture in zip(grid.flat, pictures, strict=False):
        with Image.open(bottle.local(picture.picture)) as image:
            turned = ImageOps.exif_transpose(image).convert("RGB")
        width, height = turned.size
        turned.thumbnail((SIDE, SIDE))
        axes.imshow(turned, extent=(0, width, height, 0))
        for color, boxes in (("lime", picture.objects), ("red", picture.predictions)):
            for box in boxes:
                x, y, right, bottom = box.box
                style = ":" if box.is_right else "-"
                axes.add_patch(Rectangle((x, y), right - x, bottom - y, fill=False, color=color, linestyle=style))
                if box.confidence is not None and not box.is_right:
                    axes.text(x, y, f"{box.label} {box.confidence:.2f}", color=color, fontsize=7, clip_on=True)
        axes.set_title(
            f"{Path(picture.source).name}: {picture.false_negatives} missed, {picture.false_positives} wrong",
            fontsize=8,
        )
    figure.savefig(path, dpi=100)
