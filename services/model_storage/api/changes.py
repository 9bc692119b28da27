"""What calls that change something are told, and what they answer."""

from __future__ import annotations

from pydantic import AliasChoices, BaseModel, ConfigDict, Field

from services.model_storage.production.history import Note, Text


class Change(BaseModel):
    """Why something is changed, and for whom. Who changes it is told by the token alone."""

    model_config = ConfigDict(extra="forbid")

    reason: Text | None = None
    run_id: Text | None = None
    snapshot_id: Text | None = None
    on_behalf_of: Text | None = Field(
        None,
        validation_alias=AliasChoices("on_behalf_of", "actor"),
        description="whom the caller acts for; the history shows it as the caller's word. `actor`, which earlier "
        "clients send, is taken as the same",
    )

    def note(self, actor: str | None) -> Note:
        """Return what the history is told of a change that the holder of a token makes."""
        return Note(
            reason=self.reason,
            run_id=self.run_id,
            snapshot_id=self.snapshot_id,
            actor=actor,
            on_behalf_of=self.on_behalf_of,
        )


class Staged(BaseModel):
    """Under which name and version Triton serves the candidate."""

    model: str
    triton_version: str
