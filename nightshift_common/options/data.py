"""Options of `pull_dataset`, which the section `data` of a pipeline file has too."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from nightshift_common.names import GroupName
from nightshift_common.options.base import Options

Mode = Literal["PREPARING", "CHECKING", "VALIDATED", "TRAINED"]
NearCopyRule = Literal["group", "drop", "off"]
MaxSide = Annotated[int, Field(ge=1)]
MAX_SIDE = 10_000


class SplitOptions(Options):
    """How the pictures of a group are split, and which are refused."""

    group: GroupName
    """the group of pictures"""
    val_part: float = Field(0.15, gt=0, lt=0.5)
    """share for validation while training"""
    golden_part: float = Field(0.15, gt=0, lt=0.5)
    """share for the golden set, which is never trained on"""
    min_side: int = Field(16, ge=1)
    """a picture with a shorter side is refused, pixels"""
    max_side: MaxSide = MAX_SIDE
    """a picture with a longer side is refused without decoding it, pixels"""
    max_bad_share: float = Field(0.05, ge=0, le=1)
    """with a larger share of bad pictures, or of bad objects, the night is refused"""

    @model_validator(mode="after")
    def _sides_in_order(self) -> Self:
        if self.min_side > self.max_side:
            raise ValueError(f"min_side ({self.min_side}) is larger than max_side ({self.max_side})")
        return self


class LabeledPicturesOptions(SplitOptions):
    """Where labeled pictures are listed, and which of them are taken."""

    source: Literal["collect", "postgres"] = "collect"
    """where the labeled pictures are listed"""
    table: str | None = None
    """for postgres: [schema.]table with the columns path, label and, optionally, split_group or picset"""
    multi_label: bool = False
    """a picture may have several labels, or none: what is listed more than once has the labels of all its entries, and
    collect's trash shows none of the classes; no: one label each, and a picture with two is refused"""
    modes: list[Mode] = Field(["PREPARING", "CHECKING", "VALIDATED"], min_length=1)
    """for collect: the modes of the picsets that are taken"""
    near_copies: NearCopyRule = "group"
    """pictures of one label that are nearly the same (a fixed camera, one form filled in again): group keeps them all,
    on one side of the split; drop keeps one of them; off splits them as any others"""
    max_dropped_share: float = Field(0.2, ge=0, le=1)
    """with a larger share of pictures left out as near copies of others, the night is refused"""

    @model_validator(mode="after")
    def _table_goes_with_postgres(self) -> Self:
        if (self.source == "postgres") != (self.table is not None):
            raise ValueError("table goes with source postgres, and source postgres needs it")
        return self


class AnnotatedPicturesOptions(SplitOptions):
    """Where pictures with annotated objects are listed, and which of them are taken."""

    annotations: str = Field(min_length=1)
    """a COCO JSON file: a key in the bottle, an absolute path on the worker, or s3://bucket/key"""
    images: str | None = None
    """the folder of its pictures, in the same forms; none: the folder of the file"""
