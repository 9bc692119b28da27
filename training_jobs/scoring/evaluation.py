"""What an evaluation found; `evaluate` writes it, `gate` reads it."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from training_jobs.scoring.metrics import Comparison, Scores


class Mistake(BaseModel):
    """A golden picture that the candidate takes for another class."""

    model_config = ConfigDict(extra="forbid")

    picture: str = Field(description="key in the bottle")
    source: str
    label: str
    predicted: str
    probability: float = Field(description="of the predicted class")
    champion: str | None = Field(description="what the champion says")


class Evaluation(BaseModel):
    """Candidate and champion on the golden pictures of one snapshot."""

    model_config = ConfigDict(extra="forbid")

    group: str
    snapshot_id: str
    experiment: str
    model_name: str
    labels: list[str]
    pictures: int = Field(description="golden pictures")
    candidate: Scores
    champion: Scores | None
    comparison: Comparison | None
    mistakes: list[Mistake] = Field(description="the candidate's, the surest first")
