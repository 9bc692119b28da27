"""Metadata of picsets, kept in the bottle as the collection service sends it: `meta/<group>/<picset>/picset.json`."""

from __future__ import annotations

import hashlib
import json
from collections import defaultdict
from collections.abc import Callable, Iterable
from typing import Any

from jobkit import paths
from jobkit.bottle import Bottle
from training_jobs.data.listing import Listed


def write_picsets(
    bottle: Bottle, group: str, listed: Iterable[Listed], fetch: Callable[[list[str]], dict[str, dict[str, Any]]]
) -> None:
    """Fetch and write the metadata of picsets that are new, or whose pictures or category changed since last time.

    Args:
        bottle: where to.
        group: the group.
        listed: its pictures; their split group is their picset.
        fetch: returns the metadata of picsets, given their guids.
    """
    state_key = f"meta/{paths.checked_name(group, 'group')}/picsets.json"
    known: dict[str, str] = json.loads(bottle.read(state_key)) if bottle.exists(state_key) else {}
    digests = _digests(listed)
    changed = sorted(guid for guid, digest in digests.items() if known.get(guid) != digest)
    if not changed:
        return
    fetched = fetch(changed)
    for guid, content in fetched.items():
        bottle.write(paths.picset_meta(group, guid, "picset"), json.dumps(content, indent=1, ensure_ascii=False) + "\n")
    bottle.write(
        state_key,
        json.dumps(known | {guid: digests.get(guid, "") for guid in fetched}, indent=1, sort_keys=True) + "\n",
    )


def _digests(listed: Iterable[Listed]) -> dict[str, str]:
    """Return a digest of each picset's pictures and labels, whatever the order of the listing."""
    pictures = defaultdict(list)
    for entry in listed:
        if entry.split_group is not None:
            pictures[entry.split_group].append((entry.source, entry.label or ""))
    return {guid: hashlib.sha256(json.dumps(sorted(rows)).encode()).hexdigest()[:16] for guid, rows in pictures.items()}
