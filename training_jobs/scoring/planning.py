"""How many golden pictures a margin needs, before any are collected: `python -m training_jobs.gate plan`."""

from __future__ import annotations

import logging
import math

from pydantic import BaseModel, Field

from jobkit import job
from jobkit.snapshot import last_snapshot, read_snapshot
from nightshift_common.names import GroupName
from training_jobs.scoring.evaluation import Gain
from training_jobs.scoring.evidence import HALF_SPENT, quantile, spent_at, variance_if
from training_jobs.scoring.golden import GoldenSet, describe

logger = logging.getLogger("training_jobs.gate")

RIVALS = 3  # the champion, the founding champion, the best so far
DEFAULT_CLASSES = 10
MARGINS = (0.005, 0.01, 0.02, 0.05)


class PlanArguments(job.Arguments):
    """Say how many golden pictures are needed for a candidate that is as good as the champion to be promoted."""

    margin: float = Field(0.01, gt=0, lt=1, description="how much worse a candidate may be: -gate.min_gain")
    classes: int | None = Field(
        None, ge=1, description="slices that are judged, with as many pictures each; default: those of --group, else 10"
    )
    group: GroupName | None = Field(
        None, description="also say how many golden pictures its last snapshot has, and how many of them are reviewed"
    )
    max_slice_loss: float = Field(0.05, gt=0, le=1, description="as in gate")
    min_support: int = Field(20, ge=1, description="as in gate")
    error_budget: float = Field(0.05, gt=0, lt=0.5, description="as in gate")
    disagreement: float = Field(
        0.04, gt=0, le=1, description="share of the pictures that just one of two nights' models is right on"
    )
    pictures_a_group: float = Field(
        1.0, ge=1, description="pictures of a split group that are worth one: 1 where they are independent"
    )
    candidates: int = Field(HALF_SPENT, ge=1, description="candidates after which the promise still holds")
    power: float = Field(0.8, gt=0.5, lt=1, description="the chance that an equal candidate is promoted")


class Needed(BaseModel):
    """Golden pictures for one margin."""

    margin: float
    pictures: int
    pictures_a_class: int
    decided_by: str = Field(description="what needs the most: the margin, or the classes")


class PlanResult(job.Result):
    """The plan, and how it changes with the margin."""

    needed: Needed
    others: list[Needed]
    golden: GoldenSet | None = Field(None, description="what --group has")


def needed(arguments: PlanArguments, margin: float) -> Needed:
    """Return the golden pictures that one margin needs.

    Of the chance to fail, `1 - power`, the three rivals and the classes together get a quarter each. A rival is passed
    where the score interval of two equal models lies above the margin; the classes where none of equal models seems to
    lose more than it may. A picture that flips moves the F1 of its class and of the one it is taken for by half a
    picture each, which makes the variance of a class's gain half the disagreement over its pictures.
    """
    each = (1 - arguments.power) / (RIVALS + 1)
    equal = Gain(value=0.0, standard_error=arguments.disagreement**0.5, effective=1.0)
    asked = quantile(spent_at(arguments.candidates, arguments.error_budget), None)
    root = asked * variance_if(equal, -margin) ** 0.5 + quantile(each, None) * arguments.disagreement**0.5
    for_margin = root * root / margin**2
    classes = arguments.classes or DEFAULT_CLASSES
    reach = quantile(each / classes, None) / arguments.max_slice_loss
    a_class = max(reach * reach * arguments.disagreement / 2, arguments.min_support)
    pictures = arguments.pictures_a_group * max(for_margin, a_class * classes)
    return Needed(
        margin=margin, pictures=math.ceil(pictures), pictures_a_class=math.ceil(pictures / classes),
        decided_by="the margin" if for_margin >= a_class * classes else "the classes",
    )  # fmt: skip


def plan(arguments: PlanArguments, context: job.Context) -> PlanResult:
    """Say it in sentences."""
    golden = None
    if arguments.group is not None:
        snapshot = read_snapshot(context.bottle, arguments.group, last_snapshot(context.bottle, arguments.group))
        golden = describe(context.bottle, arguments.group, snapshot.split("golden"))
        arguments = arguments.model_copy(update={"classes": arguments.classes or len(snapshot.summary.labels)})
    found = needed(arguments, arguments.margin)
    logger.info(
        "%s golden pictures, %s a class: then one as good as the champion is promoted with a chance of "
        "%.0f %%, up to candidate %d of this golden set, and of all that are worse by %g one ever passes with a "
        "chance of at most %g. What asks for so many is %s.",
        f"{found.pictures:,}", f"{found.pictures_a_class:,}", 100 * arguments.power, arguments.candidates,
        arguments.margin, arguments.error_budget, found.decided_by,
    )  # fmt: skip
    others = [needed(arguments, margin) for margin in MARGINS if margin != arguments.margin]
    for other in others:
        logger.info("a margin of %g: %s golden pictures", other.margin, f"{other.pictures:,}")
    logger.info(
        "this is for models that differ on %.3g of the pictures, each worth 1/%g of an independent one; evaluate "
        "says what yours are: only_candidate_right and only_champion_right over pictures",
        arguments.disagreement, arguments.pictures_a_group,
    )  # fmt: skip
    if golden is not None:
        lacking = max(found.pictures - golden.pictures, 0)
        missing = f"{lacking:,} pictures are missing" if lacking else "it is large enough"
        logger.info("group %s has %s; %s", arguments.group, golden.sentence, missing)
    return PlanResult(needed=found, others=others, golden=golden)
