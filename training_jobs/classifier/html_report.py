"""The report of a training: one HTML file that needs nothing beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobkit.model_spec import ModelSpec
from nightshift_common.picture_preparation import SHOWN
from training_jobs.classifier import scores
from training_jobs.classifier.config import Config
from training_jobs.classifier.data import Pictures
from training_jobs.report_kit import charts
from training_jobs.report_kit import page as report_page
from training_jobs.report_kit.blocks import Block, Listing, Picture, Section, Table, Text
from training_jobs.report_kit.blocks import Pictures as Thumbnails
from training_jobs.report_kit.pictures import shown
from training_jobs.scoring.metrics import CALIBRATION_BINS

SPEED = {
    "pictures_per_second": "pictures a second in training",
    "waiting_share": "share of the training time spent waiting for pictures",
    "epoch_seconds": "seconds an epoch, with validation and checkpoints",
    "gpu_memory_gib": "GPU memory, GiB",
}
WORST = 24  # mistakes shown
CONFUSION_CLASSES = 50  # beyond this the matrix is a picture that nobody reads; the table of confused pairs stays
THUMBNAIL = 160  # pixels


def page(
    config: Config,
    spec: ModelSpec,
    folder: str,
    rows: Sequence[Mapping[str, float]],
    content: Mapping[str, Any],
    truth: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    pictures: Pictures,
) -> str:
    """Return the report. `truth` is int64 [N] and `probabilities` float32 [N, K], of `pictures` in order.

    Of several labels `truth` is 0 or 1, [N, K].
    """
    made = {name: value for name, value in content["provenance"].items() if name != "packages"}  # a hundred rows
    source = f" of snapshot {spec.snapshot_id}" if spec.snapshot_id else ""
    metrics, best = content["metrics"], content["best_epoch"] + 1
    verdict = (
        f"{spec.architecture} on {len(spec.labels)} classes{source}: accuracy "
        f"{metrics['val_accuracy']:.4f} and macro F1 {metrics['val_macro_f1']:.4f} on {len(truth)} validation "
        f"pictures, by epoch {best} of {content['epochs']}, the best by {config.training.best_by}."
    )
    sections = [
        Section("Scores", [Table.of_pairs({name: f"{value:.4f}" for name, value in metrics.items()})]),
        Section("Learning curves", _curves(rows, best)),
        Section("Classes", _classes(content["per_class"])),
        *_answers(spec, metrics, truth, probabilities, pictures),
        Section(
            "Speed", [Table.of_pairs({SPEED[name]: f"{value:.3g}" for name, value in content["throughput"].items()})]
        ),
        Section("To reproduce", [Table.of_pairs(made)]),
        Section(
            "Trained from",
            [Table.of_pairs(spec.initial_weights.model_dump()) if spec.initial_weights else Text("Random weights.")],
        ),
    ]
    return report_page.page(folder, verdict, sections)


def _answers(
    spec: ModelSpec,
    metrics: Mapping[str, float],
    truth: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    pictures: Pictures,
) -> list[Section]:
    if spec.multi_label:  # no class is taken for another one
        return [Section("Worst mistakes", [_several_mistakes(spec.labels, truth, probabilities, pictures)])]
    return [
        Section("Confusion", _confusion(spec.labels, scores.confusion_matrix(truth, probabilities))),
        Section("Calibration", _calibration(spec, truth, probabilities, metrics["val_ece"])),
        Section("Worst mistakes", [_mistakes(spec.labels, truth, probabilities, pictures)]),
    ]


def _curves(rows: Sequence[Mapping[str, float]], best: int) -> list[Block]:
    epochs = [row["epoch"] + 1 for row in rows]

    def chart(title: str, *names: str) -> Block:
        series = {name: [row[name] for row in rows] for name in names}
        return charts.lines(title, "epoch", epochs, series, marked=best)

    rates = [name for name in rows[0] if name.startswith("lr_")]
    return [
        Text(f"The line marks epoch {best}, whose weights were kept."),
        chart("Loss", "train_loss", "val_loss"),
        chart("Validation scores", "val_accuracy", "val_macro_f1"),
        chart("Learning rate", *rates),
    ]


def _classes(table: Mapping[str, Mapping[str, float]]) -> list[Block]:
    names = ("precision", "recall", "f1", "support")
    rows = [[label, *(f"{row[name]:.4g}" for name in names)] for label, row in table.items()]
    return [Table(["class", *names], rows)]


def _confusion(labels: Sequence[str], confusion: NDArray[np.int64]) -> list[Block]:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(wrong, axis=None)[::-1][:10]
    pairs = [
        f"{labels[t]} taken for {labels[p]}: {wrong[t, p]} of {confusion[t].sum()}"
        for t, p in (divmod(int(cell), len(labels)) for cell in order)
        if wrong[t, p]
    ]
    listed: list[Block] = [Text("Most confused:"), Listing(pairs)] if pairs else [Text("No mistakes.")]
    if len(labels) > CONFUSION_CLASSES:
        return listed
    return [charts.confusion_matrix("Validation pictures by class and answer", labels, confusion.tolist()), *listed]


def _calibration(
    spec: ModelSpec, truth: NDArray[np.int64], probabilities: NDArray[np.float32], ece: float
) -> list[Block]:
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    place = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins = [
        (float(confidence[place == b].mean()), float(right[place == b].mean()), int((place == b).sum()))
        for b in range(CALIBRATION_BINS)
        if (place == b).any()
    ]
    said = Text(f"Expected calibration error {ece:.4f}.{_temperature(spec)}")
    return [said, charts.reliability("Share right by confidence", bins)]


def _temperature(spec: ModelSpec) -> str:
    found = spec.calibration
    if found is None:
        return ""
    if found.not_fitted:
        return f" No temperature was fitted: {found.not_fitted}."
    return (
        f" Logits are divided by the temperature {found.temperature:.4f}; without it the error would be "
        f"{found.ece_before:.4f} and the loss {found.nll_before:.4f} instead of {found.nll_after:.4f}."
    )


def _mistakes(
    labels: Sequence[str], truth: NDArray[np.int64], probabilities: NDArray[np.float32], pictures: Pictures
) -> Block:
    """Return the pictures whose right class got the least probability, worst first."""
    answered = probabilities.argmax(1)
    wrong = np.flatnonzero(answered != truth)
    worst = wrong[np.argsort(probabilities[wrong, truth[wrong]])][:WORST]
    captions = {
        int(index): f"{labels[truth[index]]} taken for {labels[answered[index]]} "
        f"({probabilities[index, answered[index]]:.0%})"
        for index in worst
    }
    return _figures(captions, pictures)


def _several_mistakes(
    labels: Sequence[str], truth: NDArray[np.int64], probabilities: NDArray[np.float32], pictures: Pictures
) -> Block:
    """Return the pictures of which a class got the probability that is farthest off, worst first."""
    off = np.abs(probabilities - truth)
    wrong = np.flatnonzero(((probabilities >= SHOWN) != truth).any(1))
    captions = {}
    for index in wrong[np.argsort(-off[wrong].max(1))][:WORST]:
        said = [f"{'no ' if truth[index, k] else ''}{labels[int(k)]} ({probabilities[index, k]:.0%})"
                for k in np.flatnonzero((probabilities[index] >= SHOWN) != truth[index])]  # fmt: skip
        shows = ", ".join(labels[int(k)] for k in np.flatnonzero(truth[index])) or "none"
        captions[int(index)] = f"{shows}; answered: {', '.join(said)}"
    return _figures(captions, pictures)


def _figures(captions: Mapping[int, str], pictures: Pictures) -> Block:
    found = [
        Picture(shown(pictures.picture(0, index)[0], THUMBNAIL), caption, pictures.examples[index].key[-40:])
        for index, caption in captions.items()
    ]
    return Thumbnails(found) if found else Text("No mistakes.")
