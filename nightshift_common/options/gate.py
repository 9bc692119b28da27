"""Options of `gate`, which the section `gate` of a pipeline file has too."""

from __future__ import annotations

from typing import Literal

from pydantic import Field

from nightshift_common.options.base import Options

SingleLabelMetric = Literal["accuracy", "macro_f1"]
MultiLabelMetric = Literal["accuracy", "macro_f1", "map"]
ClassifierMetric = MultiLabelMetric
DetectorMetric = Literal["f1", "precision", "recall", "ap50", "ap"]
"""What a gate may decide by, of each kind of model: more is better."""
Undecided = Literal["keep", "promote", "reject"]


class GateOptions(Options):
    """When a candidate may replace the champion."""

    metric: str
    """what is compared on the golden set: a metric of the evaluation, of which more is better"""
    floor: float = Field(0.0, ge=0, le=1)
    """the least value that a candidate needs"""
    min_gain: float = Field(-0.01, ge=-1, le=1)
    """how much better than the champion's an interval has to show it to be; negative: how much worse it may be"""
    max_slice_loss: float = Field(0.05, ge=0, le=1)
    """how much the score of any slice (a class, or a size of objects) may lose against the champion's"""
    min_support: int = Field(20, ge=1)
    """slices with fewer golden examples do not veto: one example of 20 is a loss of 0.05 already"""
    max_negative_flips: float | None = Field(None, ge=0, le=1)
    """the largest share of the golden pictures that the champion is right on and the candidate is wrong on"""
    error_budget: float = Field(0.05, gt=0, lt=0.5)
    """the chance that, of all candidates that are ever judged on one golden set, one passes that misses min_gain"""
    undecided: Undecided = "keep"
    """what is done where the golden pictures are too few to tell: keep the champion; promote where the plain numbers
    meet the rules, as if they were exact; or reject"""
