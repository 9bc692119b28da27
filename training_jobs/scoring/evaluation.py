"""What an evaluation found, whatever the kind of model: `evaluate` writes it, `gate` decides by it."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from training_jobs.scoring.golden import GoldenSet


class Slice(BaseModel):
    """How good a model is on a part of the golden set: a class, a size of objects. A kind may add fields."""

    model_config = ConfigDict(extra="allow", frozen=True)

    support: int = Field(description="golden examples in it")
    score: float = Field(description="what the gate limits the loss of; more is better")

    @model_validator(mode="before")
    @classmethod
    def _of_an_earlier_version(cls, values: Any) -> Any:
        """Take the F1 of evaluations from before there were other kinds."""
        if isinstance(values, dict) and "score" not in values and "f1" in values:
            return {**values, "score": values["f1"]}
        return values


class Scores(BaseModel):
    """Scores of one model on the golden set. A kind may add fields."""

    model_config = ConfigDict(extra="allow", frozen=True)

    version: str
    metrics: dict[str, float] = Field(description="by name")
    slices: dict[str, Slice] = Field({}, description="by name, say class/<label>")
    slice_metric: str = Field("F1", description="what the score of a slice is")
    notes: list[str] = Field([], description="what a reader has to know about these numbers")


class Gain(BaseModel):
    """How much better the candidate is than the champion, on the same pictures."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    value: float = Field(description="candidate minus champion")
    standard_error: float = Field(
        description="of the value: paired, with split groups (picsets) as what is drawn, not their pictures"
    )
    groups: int | None = Field(None, description="split groups that it rests on; none: drawn by picture, as before")
    effective: float | None = Field(
        None, description="independent pictures that it is worth: one of them moves the value by 1 / effective"
    )


class Comparison(BaseModel):
    """The candidate against the champion, picture by picture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pictures: int
    only_candidate_right: int = Field(description="pictures that the candidate alone is right on")
    only_champion_right: int = Field(description="pictures that the champion alone is right on")
    p_value: float = Field(
        description="exact McNemar test: the chance of such a difference between equally good models"
    )
    gains: dict[str, Gain] = Field(description="by metric")
    slices: dict[str, Gain] = Field({}, description="by slice, of its score; empty in evaluations of earlier versions")


class Reference(BaseModel):
    """An earlier champion, whom no slow leak of quality may fall behind."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    role: str = Field(description="founding champion: the first one in production; best so far: shown to be better")
    version: str
    metrics: dict[str, float]
    candidate: Comparison = Field(description="the candidate against it")
    champion: Comparison = Field(description="the champion against it")


class Evaluation(BaseModel):
    """Candidate and champion on the golden pictures of one snapshot. A kind may add fields."""

    model_config = ConfigDict(extra="allow")

    kind: str = Field("classification", description="of the pipeline, by which pictures become right or wrong")
    group: str
    snapshot_id: str
    experiment: str
    model_name: str
    labels: list[str]
    pictures: int = Field(description="golden pictures")
    gate_metrics: list[str] = Field(
        ["accuracy", "macro_f1"],  # what evaluations say that are older than the other kinds
        description="the metrics that a gate may decide by: more is better",
    )
    candidate: Scores
    champion: Scores | None
    comparison: Comparison | None
    references: list[Reference] = []
    golden: GoldenSet | None = Field(None, description="what it was evaluated on; none in earlier evaluations")
    look: int = Field(1, ge=1, description="the how manieth candidate it is that this golden set has scored")


def read_evaluation(bottle: Bottle, key: str) -> Evaluation:
    """Return an evaluation.

    Raises:
        DataValidationError: there is none at `key`, or it is not valid.
    """
    try:
        return Evaluation.model_validate_json(bottle.read(key))
    except ValidationError as error:
        raise DataValidationError(f"{bottle}/{key} is not a valid evaluation: {error}") from error
