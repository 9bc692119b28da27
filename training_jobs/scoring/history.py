"""What has been asked of a golden set before: how many candidates it has judged, and the best model that it has seen.

All of it lies in the bottle beside the evaluations. A look is written once, before its evaluation, and never changed:
a task that is tried again finds its own and spends nothing twice.
"""

from __future__ import annotations

import json
import re
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime
from pathlib import Path

from pydantic import BaseModel, ConfigDict, ValidationError

from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.paths import checked_name
from jobkit.snapshot import Sample

SKETCH = 64
"""Pictures by which golden sets are told apart: those with the smallest hashes, a fair sample of each set."""
_READERS = 16
_BEST = re.compile(r"evaluations/[^/]+/best/(?P<model>[^/]+)\.json")


class Look(BaseModel):
    """A candidate that was scored on a golden set."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    experiment: str
    snapshot_id: str
    at: datetime
    sketch: list[str]
    """of the golden pictures: the smallest hashes; sets that share one of them are taken for the same"""


def count_look(
    bottle: Bottle, group: str, model_name: str, snapshot_id: str, experiment: str, golden: list[Sample]
) -> int:
    """Write down that `experiment` is scored on these golden pictures; return the how manieth it is on this golden set.

    Golden pictures that are added, taken out or labeled anew leave it the same set; one without any of
    its pictures starts from 1 again.
    """
    folder = _folder(group, model_name)
    name = f"{folder}/{checked_name(snapshot_id, 'snapshot')}__{Path(experiment).name}.json"
    sketch = sorted(sample.sha256 for sample in golden)[:SKETCH]
    mine = Look(experiment=experiment, snapshot_id=snapshot_id, at=datetime.now(UTC), sketch=sketch)
    if not bottle.create(name, mine.model_dump_json() + "\n"):
        mine = _read(bottle, name)
    keys = list(bottle.keys(folder))
    with ThreadPoolExecutor(_READERS) as pool:  # a bucket answers slowly, and many at once
        looks = zip(keys, pool.map(lambda key: _read(bottle, key), keys), strict=True)
    alike = {sample.sha256 for sample in golden}  # all of them: of a large set a small one's sketch is no sample
    return sum((look.at, key) <= (mine.at, name) and bool(alike & set(look.sketch)) for key, look in looks)


def best_so_far(bottle: Bottle, group: str, model_name: str) -> str | None:
    """Return the version that was the last one to be shown to be better than the best before it; None: none was."""
    key = _best(group, model_name)
    return _read_best(bottle, key) if bottle.exists(key) else None


def best_of_models(bottle: Bottle) -> dict[str, set[str]]:
    """Return by model the versions that are the best so far, one a group that it was trained on."""
    found: dict[str, set[str]] = {}
    for key in bottle.keys("evaluations"):
        if match := _BEST.fullmatch(key):
            found.setdefault(match["model"], set()).add(_read_best(bottle, key))
    return found


def write_best(bottle: Bottle, group: str, model_name: str, version: str) -> None:
    """Write down the best version so far."""
    bottle.write(_best(group, model_name), json.dumps({"version": version}) + "\n")


def _folder(group: str, model_name: str) -> str:
    return f"evaluations/{checked_name(group, 'group')}/looks/{checked_name(model_name, 'model name')}"


def _best(group: str, model_name: str) -> str:
    return f"evaluations/{checked_name(group, 'group')}/best/{checked_name(model_name, 'model name')}.json"


def _read_best(bottle: Bottle, key: str) -> str:
    try:
        return str(json.loads(bottle.read(key))["version"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataValidationError(f"{bottle}/{key} is damaged: {error!r}; delete it to start anew") from error


def _read(bottle: Bottle, key: str) -> Look:
    try:
        return Look.model_validate_json(bottle.read(key))
    except ValidationError as error:
        raise DataValidationError(f"{bottle}/{key} is damaged: {error}") from error
