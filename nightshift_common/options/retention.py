"""Options of the job that deletes versions, which the form of its DAG has too."""

from __future__ import annotations

from pydantic import Field

from nightshift_common.options.base import Options


class RetentionOptions(Options):
    """Which versions of the model storage are deleted."""

    older_than_days: float | None = Field(None, ge=0, le=36500, title="Older than, days")
    """days since its publication in which a version stays; none: the model storage's MODEL_STORAGE_KEEP_DAYS"""
    dry_run: bool = Field(False, title="Dry run")
    """delete nothing, and tell what would be deleted"""
