"""Which side of the split pictures stand on, and that they stay there: by the name that each side is a hash of."""

from __future__ import annotations

import json
import logging

from jobkit import paths
from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.snapshot import read_snapshot

logger = logging.getLogger("training_jobs.split_groups")


def split_groups_key(group: str) -> str:
    """Return where it stands, for each picset and single picture of the group that was ever taken."""
    return f"meta/{paths.checked_name(group, 'group')}/split_groups.json"


def read_split_groups(bottle: Bottle, group: str) -> dict[str, str]:
    """Return the name whose hash is the side, by picset or, for a single picture, by SHA-256.

    Snapshots that were made before there was such a file say it, too: there each name was its own.

    Raises:
        DataValidationError: the file is damaged.
    """
    key = split_groups_key(group)
    if not bottle.exists(key):
        return _of_snapshots(bottle, group)
    try:
        return {str(unit): str(name) for unit, name in json.loads(bottle.read(key)).items()}
    except (ValueError, AttributeError) as error:
        raise DataValidationError(
            f"{bottle}/{key} is damaged: {error}. Put back an earlier copy; without one, delete it: the "
            "snapshots of the group then say on which side pictures stand"
        ) from error


def write_split_groups(bottle: Bottle, group: str, names: dict[str, str]) -> None:
    """Write what `read_split_groups` returns, if it changed."""
    key, content = split_groups_key(group), json.dumps(names, sort_keys=True, indent=0, ensure_ascii=False)
    if not bottle.exists(key) or bottle.read(key) != content.encode():
        bottle.write(key, content)


def _of_snapshots(bottle: Bottle, group: str) -> dict[str, str]:
    keys = bottle.keys(f"snapshots/{group}")
    identifiers = sorted(key.split("/")[2] for key in keys if key.endswith("/summary.json"))
    names: dict[str, str] = {}
    for identifier in identifiers:
        try:
            samples = read_snapshot(bottle, group, identifier).samples
        except DataValidationError as error:
            logger.warning("what snapshot %s says about the split is left out: %s", identifier, error)
        else:
            names |= {sample.split_group: sample.split_group for sample in samples}
    return names
