"""Which versions may be deleted: those that nothing needs."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from datetime import UTC, datetime, timedelta

from pydantic import BaseModel

from services.model_storage.production.history import Change
from services.model_storage.production.stages import ways_back
from services.model_storage.repository.record import Record


class Cleaned(BaseModel):
    """Which versions were deleted, or with `dry_run` would be, and what each other one is needed for."""

    model: str
    deleted: list[str]
    freed_bytes: int
    kept: dict[str, str] = {}
    dry_run: bool = False


def needed(
    change: Change,
    records: Sequence[Record],
    older_than_days: float,
    served: Collection[int],
    configured: Record | None,
) -> dict[str, str]:
    """Return what each of `records`, versions of one model, that has to stay is needed for.

    Args:
        change: what is in production, pinned, a canary, and was before.
        older_than_days: younger ones stay.
        served: the numbers that Triton serves, under the model's name or beside it.
        configured: the version that the model's configuration names.
    """
    rows = {"in production": change.champion, "the canary": change.canary, "pinned": change.pin}
    why = {str(row.version): text for text, row in rows.items() if row is not None}
    if back := ways_back(change.rows):
        why.setdefault(back[-1], "a rollback goes to it")
    if first := next((row.version for row in change.rows if row.version is not None), None):
        why.setdefault(first, "the first in production, which each night's candidate is compared with")
    limit = datetime.now(UTC) - timedelta(days=older_than_days)
    needed = {}
    for record in records:
        found = why.get(record.version)
        if found is None and record.triton_version in served:
            found = "Triton serves it"
        if found is None and configured is not None and configured.version == record.version:
            found = "the model's configuration names it"
        if found is None and record.created_at > limit:
            found = f"it is younger than {older_than_days:g} days"
        if found is not None:
            needed[record.version] = found
    return needed


def cleaned(model: str, records: Sequence[Record]) -> Cleaned:
    """Return what the deletion of `records` comes to."""
    freed = sum(file.size for record in records for file in record.files.values())
    return Cleaned(model=model, deleted=[record.version for record in records], freed_bytes=freed)
