"""What an evaluation of classifiers says beside what every evaluation says: mistakes and a confusion matrix."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from training_jobs.scoring.evaluation import Evaluation
from training_jobs.scoring.metrics import ClassifierScores


class Mistake(BaseModel):
    """A golden picture that the candidate takes for another class."""

    model_config = ConfigDict(extra="forbid")

    picture: str = Field(description="key in the bottle")
    source: str
    label: str
    predicted: str
    probability: float = Field(description="of the predicted class")
    champion: str | None = Field(description="what the champion says")


class ClassifierEvaluation(Evaluation):
    """Two classifiers on the golden pictures of one snapshot."""

    candidate: ClassifierScores
    champion: ClassifierScores | None
    mistakes: list[Mistake] = Field(description="the candidate's, the surest first")
