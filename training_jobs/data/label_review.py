"""What people decided about labels: kept in the bottle, applied by each pull, told by each evaluation.

A review is of a picture's content and of the labels that its source gave it. It holds as long as the source says the
same, or what the review said; where the source has changed its mind since, the source counts, and the pull says so.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from datetime import datetime
from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from jobkit import paths
from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.snapshot import Sample

Verdict = Literal["keep", "relabel", "drop"]


class LabelReview(BaseModel):
    """What a person decided about the labels of one picture."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    sha256: str = Field(pattern="^[0-9a-f]{64}$")
    verdict: Verdict
    listed: tuple[str, ...] = Field(description="its labels at the source when it was reviewed, sorted")
    labels: tuple[str, ...] = Field(description="its labels by the review, sorted; of a dropped one those it had")
    by: str = Field(min_length=1)
    at: datetime

    @classmethod
    def of(cls, sample: Sample, verdict: Verdict, labels: Iterable[str], by: str, at: datetime) -> LabelReview:
        """Return the review of a picture of a snapshot, to which an earlier one may have given other labels."""
        listed = sample.labels if sample.listed_as is None else sample.listed_as
        return cls(
            sha256=sample.sha256, verdict=verdict, listed=tuple(sorted(listed)), labels=tuple(sorted(labels)), by=by,
            at=at,
        )  # fmt: skip

    def holds_for(self, listed: Iterable[str]) -> bool:
        """Whether it is about what the source says now."""
        return tuple(sorted(listed)) in (self.listed, self.labels)

    def confirms(self, sample: Sample) -> bool:
        """Whether it says of a picture what its snapshot says."""
        return self.verdict != "drop" and tuple(sorted(sample.labels)) == self.labels


def write_reviews(bottle: Bottle, group: str, reviews: list[LabelReview]) -> str:
    """Write down what was decided at one time; return its key. Nothing is ever changed: the latest review counts."""
    content = "".join(review.model_dump_json() + "\n" for review in reviews)
    digest = hashlib.sha256(content.encode()).hexdigest()[:16]
    key = f"{paths.label_reviews(group)}/{max(review.at for review in reviews):%Y%m%dT%H%M%S}_{digest}.jsonl"
    bottle.create(key, content)
    return key


def read_reviews(bottle: Bottle, group: str) -> dict[str, LabelReview]:
    """Return the latest review of each picture of a group, by its SHA-256.

    Raises:
        DataValidationError: a file of reviews is damaged: decisions of people are never left out silently.
    """
    found: dict[str, LabelReview] = {}
    for key in bottle.keys(paths.label_reviews(group)):
        for number, line in enumerate(bottle.read(key).splitlines(), start=1):
            try:
                review = LabelReview.model_validate_json(line)
            except ValidationError as error:
                raise DataValidationError(f"{bottle}/{key}:{number} is damaged: {error}") from error
            if review.sha256 not in found or review.at >= found[review.sha256].at:
                found[review.sha256] = review
    return found


def confirmed(samples: Iterable[Sample], reviews: Mapping[str, LabelReview]) -> list[LabelReview]:
    """Return the reviews of those pictures that have the labels which a person gave them."""
    return [
        review for sample in samples if (review := reviews.get(sample.sha256)) is not None and review.confirms(sample)
    ]
