"""The report of an evaluation: candidate and champion on the golden pictures, for people."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from jobkit.bottle import Bottle
from training_jobs.report_kit import charts
from training_jobs.report_kit.blocks import Block, Box, Picture, Pictures, Section, Table, Text
from training_jobs.report_kit.page import page
from training_jobs.report_kit.pictures import shown
from training_jobs.scoring.classification import ClassifierEvaluation, Mistake, MultiLabelEvaluation
from training_jobs.scoring.detection import DetectorEvaluation, DetectorScores, Drawn, WorstPicture
from training_jobs.scoring.evaluation import Evaluation, Scores
from training_jobs.scoring.golden import golden_section

THUMBNAIL, LARGE_THUMBNAIL = 160, 480  # pixels
LARGEST_MATRIX = 60  # classes; with more, nobody reads it
CHARTED_SLICES = 40  # those with the lowest scores; the table has all
FLIPS = "The champion is right here, the candidate is not"


def evaluation_page(bottle: Bottle, evaluation: Evaluation) -> str:
    """Return the report of an evaluation; pictures are read from the bottle."""
    models = [scores for scores in (evaluation.candidate, evaluation.champion) if scores is not None]
    sections = [
        Section("Scores", [*_notes(models), _metrics(evaluation), *_gains(evaluation)]),
        Section(f"{evaluation.candidate.slice_metric} by class and slice", slices(evaluation)),
    ]
    if isinstance(evaluation, ClassifierEvaluation):
        sections.append(Section("Confusion", _confusion(evaluation)))
    if isinstance(evaluation, DetectorEvaluation):
        named = {evaluation.candidate.version: evaluation.candidate}
        if evaluation.champion is not None:
            named[f"champion {evaluation.champion.version}"] = evaluation.champion
        sections += [
            Section("Thresholds", threshold_charts(named, evaluation.iou_threshold)),
            Section("Pictures with the most mistakes", _worst(bottle, evaluation.worst)),
            Section(FLIPS, _worst(bottle, evaluation.negative_flips) if evaluation.negative_flips else []),
        ]
    if isinstance(evaluation, ClassifierEvaluation | MultiLabelEvaluation):
        sections.append(Section("Surest mistakes", _mistakes(bottle, evaluation.mistakes)))
        flips = evaluation.negative_flips
        sections.append(Section(FLIPS, _mistakes(bottle, flips) if flips else []))
    sections.append(golden_section(evaluation.golden))
    made = {name: getattr(evaluation, name) for name in ("kind", "group", "snapshot_id", "experiment", "model_name")}
    sections.append(Section("What was evaluated", [Table.of_pairs(made)]))
    return page(f"Evaluation of {evaluation.candidate.version}", verdict(evaluation), sections)


def verdict(evaluation: Evaluation) -> str:
    """Return in a sentence how good the candidate is, by the first metric that a gate may decide by."""
    metric = next((name for name in evaluation.gate_metrics if name in evaluation.candidate.metrics), None)
    if metric is None:
        return f"{evaluation.candidate.version} was evaluated on {evaluation.pictures} golden pictures."
    value = evaluation.candidate.metrics[metric]
    said = f"{evaluation.candidate.version} has {metric} {value:.4f} on {evaluation.pictures} golden pictures"
    if evaluation.champion is None:
        return f"{said}; there is no champion to compare with."
    before = evaluation.champion.metrics[metric]
    return f"{said}, {value - before:+.4f} against the champion {evaluation.champion.version} ({before:.4f})."


def slices(evaluation: Evaluation) -> list[Block]:
    """Return the scores of the slices as a chart, lowest first, with all their numbers in a table."""
    ours, theirs = evaluation.candidate, evaluation.champion
    order = sorted(ours.slices, key=lambda name: (ours.slices[name].score, name))
    if not order:
        return []
    drawn = order[:CHARTED_SLICES]
    series = {ours.version: [ours.slices[name].score for name in drawn]}
    if theirs is not None:
        known = theirs.slices
        series[f"champion {theirs.version}"] = [known[n].score if n in known else float("nan") for n in drawn]
    details = [f"{ours.slices[name].support} golden examples" for name in drawn]
    title = f"{ours.slice_metric} of each class and slice"
    more = [Text(f"The {len(drawn)} lowest of {len(order)} are shown.")] if len(drawn) < len(order) else []
    return [*more, charts.bars(title, drawn, series, ours.slice_metric, details)]


def threshold_charts(models: Mapping[str, DetectorScores], iou_threshold: float) -> list[Block]:
    """Return precision over recall, and F1 over the threshold, of detectors by name that found anything."""
    curves = [
        charts.RankedCurve(
            name=name,
            confidence=[point.confidence for point in scores.curve],
            precision=[point.precision for point in scores.curve],
            recall=[point.recall for point in scores.curve],
            threshold=scores.confidence_threshold,
            threshold_precision=scores.metrics["precision"],
            threshold_recall=scores.metrics["recall"],
        )
        for name, scores in models.items()
        if scores.curve
    ]
    if not curves:
        return [Text("No predictions to draw a curve of.")]
    return [
        charts.precision_recall(f"Precision over recall at IoU {iou_threshold:g}", curves),
        charts.f1_by_threshold("F1 by confidence threshold", curves),
    ]


def _notes(models: Sequence[Scores]) -> list[Text]:
    return [Text(note) for scores in models for note in scores.notes]


def _metrics(evaluation: Evaluation) -> Table:
    ours, theirs, comparison = evaluation.candidate, evaluation.champion, evaluation.comparison
    header = ["metric", ours.version]
    if theirs is not None:
        header += [f"champion {theirs.version}", "gain", "standard error"]
    rows = []
    for name, value in ours.metrics.items():
        row = [name, f"{value:.4f}"]
        if theirs is not None:
            gain = comparison.gains.get(name) if comparison else None
            before = theirs.metrics.get(name)
            row += ["" if before is None else f"{before:.4f}"]
            row += [f"{gain.value:+.4f}", f"{gain.standard_error:.4f}"] if gain else ["", ""]
        rows.append(row)
    return Table(header, rows)


def _gains(evaluation: Evaluation) -> list[Block]:
    comparison = evaluation.comparison
    if comparison is None:
        return []
    said = (
        f"The candidate alone is right on {comparison.only_candidate_right} of {comparison.pictures} pictures, the "
        f"champion alone on {comparison.only_champion_right} (McNemar p = {comparison.p_value:.3g})."
    )
    title = "Gain over the champion, with 95 % intervals"
    rows = [charts.Interval.around(name, gain.value, gain.standard_error) for name, gain in comparison.gains.items()]
    return [charts.intervals(title, rows, "gain", margin=0, margin_name="as good"), Text(said)]


def _confusion(evaluation: ClassifierEvaluation) -> list[Block]:
    if len(evaluation.labels) > LARGEST_MATRIX:
        return [Text(f"{len(evaluation.labels)} classes are too many to draw; evaluation.json has the counts.")]
    table = np.asarray(evaluation.candidate.confusion)
    if not table[:, -1].any():  # no answer is a class that the golden set lacks
        table = table[:, :-1]
    title = "Golden pictures by class and the candidate's answer"
    return [charts.confusion_matrix(title, evaluation.labels, table.tolist())]


def _mistakes(bottle: Bottle, mistakes: Sequence[Mistake]) -> list[Block]:
    found = []
    for mistake in mistakes:
        said = f"{mistake.label or '-'} → {mistake.predicted or '-'} ({mistake.probability:.0%})"
        said += "" if mistake.champion is None else f"; champion: {mistake.champion or '-'}"
        found.append(
            Picture(read_thumbnail(bottle, mistake.picture, THUMBNAIL)[0], said, Path(mistake.source).name[-40:])
        )
    return [Pictures(found)] if found else [Text("No mistakes.")]


def _worst(bottle: Bottle, worst: Sequence[WorstPicture]) -> list[Block]:
    """Return pictures with what is right dotted in green, objects that were missed in yellow, wrong predictions red."""
    found = []
    for picture in worst:
        source, size = read_thumbnail(bottle, picture.picture, LARGE_THUMBNAIL)
        boxes = [_box(drawn) for drawn in (*picture.objects, *picture.predictions)]
        said = f"{picture.false_negatives} missed, {picture.false_positives} wrong"
        found.append(Picture(source, said, Path(picture.source).name[-40:], size, boxes))
    if not found:
        return [Text("No mistakes.")]
    legend = Text("Dotted green: right. Yellow: an object that was missed. Red: a wrong prediction. Hover for names.")
    return [legend, Pictures(found, large=True)]


def _box(drawn: Drawn) -> Box:
    x, y, right, bottom = drawn.box
    size = right - x, bottom - y
    if drawn.confidence is None:
        said = f"{drawn.label}: {'found' if drawn.is_right else 'missed'}"
        return Box("good" if drawn.is_right else "plain", x, y, *size, said)
    said = f"{drawn.label} {drawn.confidence:.2f}: {'right' if drawn.is_right else 'wrong'}"
    return Box("good" if drawn.is_right else "bad", x, y, *size, said)


def read_thumbnail(bottle: Bottle, key: str, side: int) -> tuple[str, tuple[int, int]]:
    """Return a picture of the bottle, as people see it, as a thumbnail, and its size before."""
    with Image.open(bottle.local(key)) as image:
        turned = ImageOps.exif_transpose(image).convert("RGB")
    return shown(np.asarray(turned), side), turned.size
