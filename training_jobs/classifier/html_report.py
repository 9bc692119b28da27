"""The report of a training: one HTML file that needs nothing beside it."""

from __future__ import annotations

import base64
from collections.abc import Mapping, Sequence
from html import escape
from typing import Any

import numpy as np
from numpy.typing import NDArray

from jobkit.model_spec import ModelSpec
from nightshift_common.picture_preparation import SHOWN
from training_jobs.classifier import charts, scores
from training_jobs.classifier.config import Config
from training_jobs.classifier.contact_sheet import jpeg, thumbnail
from training_jobs.classifier.data import Pictures
from training_jobs.scoring.metrics import CALIBRATION_BINS

SPEED = {
    "pictures_per_second": "pictures a second in training",
    "waiting_share": "share of the training time spent waiting for pictures",
    "epoch_seconds": "seconds an epoch, with validation and checkpoints",
    "gpu_memory_gib": "GPU memory, GiB",
}
WORST = 24  # mistakes shown
CONFUSION_CLASSES = 50  # beyond this the matrix is a picture that nobody reads; the table of confused pairs stays
STYLE = """body{font:14px/1.45 system-ui,sans-serif;max-width:1000px;margin:2em auto;padding:0 1em;color:#222}
h1{font-size:1.5em}h2{margin-top:1.8em;font-size:1.15em}table{border-collapse:collapse}
td,th{padding:.2em .6em;border-bottom:1px solid #ddd;text-align:right}td:first-child,th:first-child{text-align:left}
svg text{font:11px system-ui,sans-serif}
figure{display:inline-block;margin:.4em;vertical-align:top;width:132px;font-size:12px}
.matrix td{min-width:2.2em;text-align:center;border:1px solid #eee}"""


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
    sections = [
        f"<h1>{escape(folder)}</h1><p>{escape(spec.architecture)}, {len(spec.labels)} classes, "
        f"snapshot {escape(str(spec.snapshot_id))}; best epoch {content['best_epoch'] + 1} of {content['epochs']} "
        f"by {config.training.best_by}.</p>",
        _pairs({name: f"{value:.4f}" for name, value in content["metrics"].items()}),
        "<h2>Learning curves</h2>" + _curves(rows),
        "<h2>Classes</h2>" + _classes(content["per_class"]),
        *_answers(spec, content["metrics"], truth, probabilities, pictures),
        "<h2>Speed</h2>" + _pairs({SPEED[name]: f"{value:.3g}" for name, value in content["throughput"].items()}),
        "<h2>To reproduce</h2>" + _pairs(made),
        "<h2>Trained from</h2>"
        + (_pairs(spec.initial_weights.model_dump()) if spec.initial_weights else "<p>Random weights.</p>"),
    ]
    title = escape(folder)
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{STYLE}</style></head><body>{''.join(sections)}</body></html>\n"
    )


def _answers(
    spec: ModelSpec,
    metrics: Mapping[str, float],
    truth: NDArray[np.int64],
    probabilities: NDArray[np.float32],
    pictures: Pictures,
) -> list[str]:
    if spec.multi_label:  # no class is taken for another one
        return ["<h2>Worst mistakes</h2>" + _several_mistakes(spec.labels, truth, probabilities, pictures)]
    return [
        "<h2>Confusion</h2>" + _confusion(spec.labels, scores.confusion_matrix(truth, probabilities)),
        "<h2>Calibration</h2>" + _calibration(spec, truth, probabilities, metrics["val_ece"]),
        "<h2>Worst mistakes</h2>" + _mistakes(spec.labels, truth, probabilities, pictures),
    ]


def _curves(rows: Sequence[Mapping[str, float]]) -> str:
    epochs = [row["epoch"] + 1 for row in rows]

    def series(*names: str) -> dict[str, list[float]]:
        return {name: [row[name] for row in rows] for name in names}

    return (
        charts.lines("loss", epochs, series("train_loss", "val_loss"))
        + charts.lines("validation", epochs, series("val_accuracy", "val_macro_f1"))
        + charts.lines("learning rate", epochs, series(*[name for name in rows[0] if name.startswith("lr_")]))
    )


def _classes(table: Mapping[str, Mapping[str, float]]) -> str:
    names = ("precision", "recall", "f1", "support")
    body = "".join(
        f"<tr><td>{escape(label)}</td>" + "".join(f"<td>{row[name]:.4g}</td>" for name in names) + "</tr>"
        for label, row in table.items()
    )
    return f"<table><tr><th>class</th>{''.join(f'<th>{name}</th>' for name in names)}</tr>{body}</table>"


def _confusion(labels: Sequence[str], confusion: NDArray[np.int64]) -> str:
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(wrong, axis=None)[::-1][:10]
    pairs = [
        f"<li>{escape(labels[t])} taken for {escape(labels[p])}: {wrong[t, p]} of {confusion[t].sum()}</li>"
        for t, p in (divmod(int(cell), len(labels)) for cell in order)
        if wrong[t, p]
    ]
    listed = f"<p>Most confused:</p><ul>{''.join(pairs)}</ul>" if pairs else "<p>No mistakes.</p>"
    if len(labels) > CONFUSION_CLASSES:
        return listed
    share = confusion / np.maximum(confusion.sum(1, keepdims=True), 1)
    head = "".join(f"<th>{escape(label)}</th>" for label in labels)

    def cell(t: int, p: int) -> str:
        color = "46,139,87" if t == p else "192,57,43"
        return f'<td style="background:rgba({color},{share[t, p]:.2f})">{confusion[t, p]}</td>'

    body = "".join(
        f"<tr><td>{escape(label)}</td>{''.join(cell(t, p) for p in range(len(labels)))}</tr>"
        for t, label in enumerate(labels)
    )
    return f'<table class="matrix"><tr><th>true \\ answered</th>{head}</tr>{body}</table>{listed}'


def _calibration(spec: ModelSpec, truth: NDArray[np.int64], probabilities: NDArray[np.float32], ece: float) -> str:
    confidence, right = probabilities.max(1), probabilities.argmax(1) == truth
    place = np.minimum((confidence * CALIBRATION_BINS).astype(int), CALIBRATION_BINS - 1)
    bins = [
        (float(confidence[place == b].mean()), float(right[place == b].mean()), int((place == b).sum()))
        for b in range(CALIBRATION_BINS)
        if (place == b).any()
    ]
    return f"<p>Expected calibration error {ece:.4f}.{_temperature(spec)}</p>" + charts.reliability(
        "share right by confidence", bins
    )


def _temperature(spec: ModelSpec) -> str:
    found = spec.calibration
    if found is None:
        return ""
    if found.not_fitted:
        return f" No temperature was fitted: {escape(found.not_fitted)}."
    return (
        f" Logits are divided by the temperature {found.temperature:.4f}; without it the error would be "
        f"{found.ece_before:.4f} and the loss {found.nll_before:.4f} instead of {found.nll_after:.4f}."
    )


def _mistakes(
    labels: Sequence[str], truth: NDArray[np.int64], probabilities: NDArray[np.float32], pictures: Pictures
) -> str:
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
) -> str:
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


def _figures(captions: Mapping[int, str], pictures: Pictures) -> str:
    figures = []
    for index, caption in captions.items():
        shown = base64.b64encode(jpeg(thumbnail(pictures.picture(0, index)[0], 128))).decode()
        figures.append(
            f'<figure><img alt="" src="data:image/jpeg;base64,{shown}"><figcaption>{escape(caption)}<br>'
            f"<small>{escape(pictures.examples[index].key[-40:])}</small></figcaption></figure>"
        )
    return "".join(figures) or "<p>No mistakes.</p>"


def _pairs(values: Mapping[str, Any]) -> str:
    body = "".join(f"<tr><td>{escape(str(k))}</td><td>{escape(str(v))}</td></tr>" for k, v in values.items())
    return f"<table>{body}</table>"
