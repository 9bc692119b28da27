"""What the golden set of an evaluation is: its identity, how much of it people have reviewed, what is new in it."""

from __future__ import annotations

import logging
from collections import Counter
from datetime import datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.snapshot import Sample, read_snapshot, snapshot_id
from training_jobs.data.label_review import confirmed, read_reviews
from training_jobs.report_kit.blocks import Section, Text

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger("training_jobs.evaluate")

ARRIVED = "arrived/since the champion"


class GoldenSet(BaseModel):
    """The golden pictures of an evaluation and their labels."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(description="16 hex digits: the same pictures with the same labels have the same")
    pictures: int
    reviewed: int | None = Field(
        None, description="pictures whose labels a person has confirmed or given; none: they have objects"
    )
    reviewers: dict[str, int] = Field({}, description="who looked at how many of them last")
    last_review: datetime | None = None
    relabeled: int = Field(0, description="pictures whose labels are a review's and not the source's")
    outdated: int = Field(0, description="pictures that a person has relabeled or dropped since the snapshot was made")
    arrived: int | None = Field(
        None, description="pictures that neither model's snapshot had: the time-forward slice; none: not known"
    )
    notes: list[str] = Field([], description="what is not known, and why")

    @property
    def sentence(self) -> str:
        """All of it, for people."""
        said = [f"golden set {self.id}: {self.pictures} pictures"]
        if self.reviewed is not None:
            share = self.reviewed / self.pictures if self.pictures else 0.0
            who = ", ".join(f"{name} {count}" for name, count in self.reviewers.items())
            when = f"; the last one on {self.last_review:%Y-%m-%d}" if self.last_review else ""
            said.append(
                f"the labels of {self.reviewed} ({share:.0%}) are reviewed{f' ({who}{when})' if who else ''}, those of "
                f"{self.pictures - self.reviewed} are not"
            )
        if self.relabeled:
            said.append(f"{self.relabeled} have the labels of a review and not the source's")
        if self.outdated:
            said.append(f"{self.outdated} were relabeled or dropped since this snapshot was made: pull again")
        if self.arrived is not None:
            said.append(f"{self.arrived} arrived since the champion was trained")
        return "; ".join([*said, *self.notes])


def golden_section(golden: GoldenSet | None) -> Section:
    """Return the part of a report about the golden set; an empty one for an evaluation of before."""
    return Section("Golden set", [Text(f"G{golden.sentence[1:]}.")] if golden else [])


def describe(bottle: Bottle, group: str, golden: list[Sample]) -> GoldenSet:
    """Return what is known of golden pictures without any model."""
    identity = snapshot_id(golden)
    if any(sample.objects is not None for sample in golden):
        return GoldenSet(id=identity, pictures=len(golden), notes=["objects are not reviewed by pictures' labels"])
    reviews = read_reviews(bottle, group)
    held = confirmed(golden, reviews)
    known = [(sample, reviews[sample.sha256]) for sample in golden if sample.sha256 in reviews]
    return GoldenSet(
        id=identity, pictures=len(golden), reviewed=len(held),
        reviewers=dict(Counter(review.by for review in held).most_common()),
        last_review=max((review.at for review in held), default=None),
        relabeled=sum(sample.listed_as is not None for sample in golden),
        outdated=sum(
            not review.confirms(sample) and review.verdict != "keep" for sample, review in known
        ),
    )  # fmt: skip


def newcomers(
    bottle: Bottle, group: str, golden: list[Sample], snapshots: dict[str, str | None], evaluated: str
) -> tuple[NDArray[np.bool_] | None, str]:
    """Return which golden pictures stood in the snapshot of neither model, bool [N], and a note; None: not known.

    They are a slice forward in time: nobody trained on them, and no earlier gate chose the champion by them. Arrival is
    what the data tell: neither collect nor a table says when a picture was taken. A candidate's own snapshot, the one
    that is evaluated, has all of them as golden pictures, so that it says nothing and is left out.

    Args:
        bottle: where snapshots are.
        group: the group.
        golden: the golden pictures.
        snapshots: the snapshot that each model was trained on, by what it is called.
        evaluated: the snapshot that the golden pictures are of.
    """
    import numpy as np

    known: set[str] = set()
    for name, identifier in snapshots.items():
        if identifier is None:
            return None, f"{name} does not say which snapshot it was trained on: what arrived since is not known"
        if identifier == evaluated and name == "the candidate":
            continue
        try:
            known |= {sample.sha256 for sample in read_snapshot(bottle, group, identifier).samples}
        except DataValidationError as error:
            logger.warning("no slice of what arrived since the champion was trained: %s", error)
            return None, f"snapshot {identifier} of {name} cannot be read: what arrived since is not known"
    return np.array([sample.sha256 not in known for sample in golden]), ""
