"""What a source says about a picture, before anyone has looked at the file."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Listed(BaseModel):
    """One picture as its source lists it."""

    model_config = ConfigDict(frozen=True)

    source: str
    """The source's own, unchanging name for the file: collect's filepath, a table's path."""
    label: str | None
    """The class; None where the source says that the picture shows none of the group's classes (collect's trash)."""
    split_group: str | None = None
    """What has to stay on one side of the split; None: the picture alone."""
