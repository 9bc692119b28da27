"""The summary of a group in the form that the older scripts read: `datasets/<group>.json`."""

from __future__ import annotations

import json
from collections import Counter

from jobkit import paths
from jobkit.bottle import Bottle
from jobkit.snapshot import Sample
from training_jobs.data.picture_inspection import Inspected


def write_dataset(bottle: Bottle, group: str, samples: list[Sample], unlabeled: list[Inspected]) -> None:
    """Write `{cat, num2label, weights, data}`.

    `data` is a JSON string of a one-hot table by column, `{"path": {"0": …}, "<label>": {"0": 1.0, …}}`; paths are
    relative to `pictures/`; a picture has a 1 for each of its labels, zeros only where it shows none of the classes.
    `weights` balance the classes: pictures / (classes * pictures of the class), as scikit-learn's
    `class_weight="balanced"`.
    """
    counts = Counter(label for s in samples for label in s.labels)
    labels = sorted(counts)
    rows: list[tuple[str, list[str]]] = [(s.path, s.labels) for s in samples]
    rows += [(paths.picture(p.sha256, p.suffix), []) for p in unlabeled]
    rows.sort(key=lambda row: row[0])
    table: dict[str, dict[str, object]] = {
        "path": {str(number): path.removeprefix("pictures/") for number, (path, _) in enumerate(rows)}
    }
    for label in labels:
        table[label] = {str(number): float(label in row[1]) for number, row in enumerate(rows)}
    content = {
        "cat": group,
        "num2label": {str(number): label for number, label in enumerate(labels)},
        "weights": [round(len(samples) / (len(labels) * counts[label]), 6) for label in labels],
        "data": json.dumps(table),
    }
    bottle.write(paths.dataset(group), json.dumps(content, ensure_ascii=False) + "\n")
