"""What an evaluation of classifiers says beside what every evaluation says: mistakes and a confusion matrix."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from training_jobs.scoring.evaluation import Evaluation
from training_jobs.scoring.metrics import ClassifierScores
from training_jobs.scoring.multi_label import METRICS, MultiLabelScores


class Mistake(BaseModel):
    """A golden picture that the candidate takes for another class, or for one that shows other classes."""

    model_config = ConfigDict(extra="forbid")

    picture: str = Field(description="key in the bottle")
    source: str
    label: str = Field(description="its class, or classes; empty: it shows none")
    predicted: str
    probability: float = Field(description="of the predicted class; of several labels how sure the worst wrong one is")
    champion: str | None = Field(description="what the champion says")


class ClassifierEvaluation(Evaluation):
    """Two classifiers on the golden pictures of one snapshot."""

    candidate: ClassifierScores
    champion: ClassifierScores | None
    mistakes: list[Mistake] = Field(description="the candidate's, the surest first")
    negative_flips: list[Mistake] = Field([], description="those of them that the champion is right on")


class MultiLabelEvaluation(Evaluation):
    """Two classifiers on golden pictures that have several labels, or none."""

    gate_metrics: list[str] = Field(list(METRICS))
    candidate: MultiLabelScores
    champion: MultiLabelScores | None
    mistakes: list[Mistake] = Field(description="the candidate's, the surest first")
    negative_flips: list[Mistake] = Field([], description="those of them that the champion is right on")
