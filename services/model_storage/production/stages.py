"""Which stage each version is in, by what was published and what the history says."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from services.model_storage.production.history import CANARY, PRODUCTION, Promotion
from services.model_storage.repository.record import Record

Stage = Literal["candidate", "canary", "champion", "previous"]
ALL = "all"


def stages(records: Sequence[Record], rows: Sequence[Promotion]) -> dict[str, dict[Stage, str]]:
    """Return the versions in a stage by target (`onnx`, `tensorrt`) and, under `all`, whatever their target.

    champion: in production; of a target, the last of it that was, unless the model was unloaded. previous: what a
    rollback goes to. canary: answers a share of the requests. candidate: the latest that has never been in production.

    Args:
        records: all versions of a model, the oldest first.
        rows: all changes of the model, the oldest first.
    """
    found = {ALL: _of(records, rows)}
    for target in sorted({record.target for record in records}):
        of_target = [row for row in rows if row.target == target or row.version is None]
        if of := _of([record for record in records if record.target == target], of_target):
            found[target] = of
    return found


def _of(records: Sequence[Record], rows: Sequence[Promotion]) -> dict[Stage, str]:
    found: dict[Stage, str] = {}
    production = [row for row in rows if row.action in PRODUCTION]
    canary = [row for row in rows if row.action in CANARY][-1:]
    if production and production[-1].version is not None:
        found["champion"] = production[-1].version
        if back := ways_back(production):
            found["previous"] = back[-1]
    if canary and canary[0].action == "canary" and canary[0].version is not None:
        found["canary"] = canary[0].version
    tried = {row.version for row in production} | {found.get("canary")}
    if records and records[-1].version not in tried:
        found["candidate"] = records[-1].version
    return found


def ways_back(rows: list[Promotion]) -> list[str]:
    """Return the versions that a rollback can go to, the nearest last.

    A rollback leaves the version that it comes from for good: one after it goes further back, not forward again.
    """
    stack: list[str] = []
    for row in rows:
        if row.version is None:
            continue
        if row.action == "rollback" and row.version in stack:
            del stack[stack.index(row.version) + 1 :]
        elif row.action == "rollback":  # to kin of the version before
            stack[-2:] = [row.version]
        elif not stack or stack[-1] != row.version:
            stack = [version for version in stack if version != row.version] + [row.version]
    return stack[:-1]
