"""The card of a published version: what a person wants to know who judges it or calls it, as Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ConfigDict, ValidationError

from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError

LARGEST_MATRIX = 12  # classes; of more the most frequent confusions are listed
SHOWN_CONFUSIONS = 10
SHOWN_LABELS = 50


class Scored(BaseModel):
    """Of an evaluation what a card says of one model."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    version: str
    metrics: dict[str, float]
    confusion: list[list[int]] | None = None
    """of a classifier, row: true class, column: predicted; the last column: a class not here"""


class Evaluated(BaseModel):
    """Of an evaluation what a card says."""

    model_config = ConfigDict(extra="ignore", frozen=True)

    pictures: int
    labels: list[str]
    candidate: Scored
    champion: Scored | None


class Verdict(BaseModel):
    """Why a version was published: the evaluation and what the gate said, where there were any."""

    model_config = ConfigDict(frozen=True)

    evaluated: Evaluated | None
    decision: str | None
    reasons: str | None


def read_evaluated(bottle: Bottle, key: str) -> Evaluated:
    """Return the evaluation at `key`.

    Raises:
        DataValidationError: there is none, or it is not valid.
    """
    try:
        return Evaluated.model_validate_json(bottle.read(key))
    except ValidationError as error:
        raise DataValidationError(f"{bottle}/{key} is not a valid evaluation: {error}") from error


def model_card(model: str, version: str, target: str, meta: Mapping[str, Any], verdict: Verdict) -> str:
    """Return the card; `meta` is the package's `meta.json`."""
    snapshot = f"snapshot `{meta['snapshot_id']}` of group {meta['group']}" if meta["snapshot_id"] else "no snapshot"
    lines = [
        f"# {model} {version}",
        f"{meta['architecture']}, for {target}, from `{meta['experiment']}`, trained on {snapshot}.",
        *_initial_weights(meta),
        *_verdict(verdict),
        *(_numbers(verdict.evaluated) if verdict.evaluated else []),
        *_interface(meta),
        *_calling(model),
        *(_confusion(verdict.evaluated) if verdict.evaluated else []),  # last: what is cut where room is scarce
    ]
    return "\n\n".join(lines) + "\n"


def _initial_weights(meta: Mapping[str, Any]) -> list[str]:
    if (found := meta.get("initial_weights")) is None:
        return []
    return [
        f"Its training started from `{found['name']}` ({found['source']}), license: **{found['license']}**, "
        f"SHA-256 `{found['sha256']}`."
    ]


def _verdict(verdict: Verdict) -> list[str]:
    if verdict.decision is None:
        return []
    return ["## Verdict", f"The gate said **{verdict.decision}**: {verdict.reasons or 'without a reason'}."]


def _numbers(found: Evaluated) -> list[str]:
    rivals = [found.candidate, *([found.champion] if found.champion else [])]
    heads = ["this version", *([f"the champion before it, {found.champion.version}"] if found.champion else [])]
    rows = [
        [name, *(f"{scores.metrics[name]:.4f}" if name in scores.metrics else "" for scores in rivals)]
        for name in found.candidate.metrics
    ]
    return ["## Metrics", _table([f"on {found.pictures} golden pictures", *heads], rows)]


def _interface(meta: Mapping[str, Any]) -> list[str]:
    tensors = [
        [side, entry["name"], entry["dtype"], " × ".join("n" if size == -1 else str(size) for size in entry["shape"])]
        for side, entries in (("input", meta["inputs"]), ("output", meta["outputs"]))
        for entry in entries
    ]
    labels = meta["labels"]
    more = f" and {len(labels) - SHOWN_LABELS} more" if len(labels) > SHOWN_LABELS else ""
    classes = [f"Classes, in order: {', '.join(labels[:SHOWN_LABELS])}{more}."] if labels else []
    return ["## Interface", _table(["", "name", "type", "shape"], tensors), *classes]


def _calling(model: str) -> list[str]:
    line = f"python -m conversion_jobs.predict --model_name {model} --picture picture.jpg"
    return [
        "## How to call it",
        f"```\n{line}\n```",
        f"It prepares the picture as `meta.json` says and asks the champion in Triton, whose name there is `{model}`.",
        f'Without Triton: `mlflow.pyfunc.load_model("models:/{model}@champion")`; `requirements.txt` is what it needs.',
    ]


def _confusion(found: Evaluated) -> list[str]:
    confusion = found.candidate.confusion
    if confusion is None:
        return []
    names = [*found.labels, "another class"]
    if len(found.labels) <= LARGEST_MATRIX:
        rows = [[name, *map(str, counts)] for name, counts in zip(found.labels, confusion, strict=True)]
        return ["## Confusion matrix", _table(["true class, taken for →", *names], rows)]
    wrong = [
        (count, true, taken)
        for true, counts in zip(found.labels, confusion, strict=True)
        for taken, count in zip(names, counts, strict=True)
        if count and true != taken
    ]
    worst = sorted(wrong, key=lambda entry: -entry[0])[:SHOWN_CONFUSIONS]
    rows = [[true, taken, str(count)] for count, true, taken in worst]
    return ["## The most frequent confusions", _table(["true class", "taken for", "pictures"], rows)]


def _table(heads: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [heads, ["---"] * len(heads), *rows]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines)
