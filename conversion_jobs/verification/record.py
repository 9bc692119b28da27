"""What verification found, kept beside the artifact: packaging takes nothing that did not pass as it is now."""

from __future__ import annotations

from typing import TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from conversion_jobs.verification.checks import Verdict
from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError


class FP16Risk(BaseModel):
    """A node whose output, on real pictures, is near or beyond what half precision can hold."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    node: str
    operator: str
    largest: float = Field(description="magnitude; 65504 is the largest that half precision holds")
    overflows: bool

    def __str__(self) -> str:
        return f"{self.node} ({self.operator}) reaches {self.largest:.3g}, FP16 ends at 65504"


class Verification(BaseModel):
    """The verdict on one graph or plan, which is named by its sha256."""

    model_config = ConfigDict(extra="forbid")

    sha256: str
    passed: bool
    snapshot_id: str | None
    pictures: int
    batch_sizes: list[int]
    verdicts: list[Verdict]
    where: str | None = Field(None, description="where source and graph part, for a graph that failed")
    latency_ms: list[dict[str, float]] = Field(description="one entry a batch size: batch, median, p90, p99")
    peak_memory_mib: float | None = Field(None, description="of the verifying process")
    fp16_risks: list[FP16Risk] = Field(default_factory=list)
    verified_against: str | None = Field(None, description="what a graph was held to, beside its own source")


V = TypeVar("V", bound=BaseModel)


def read_model(bottle: Bottle, key: str, kind: type[V], remedy: str) -> V:
    """Return the JSON file `key` as `kind`.

    Raises:
        DataValidationError: it is missing (the message ends with `remedy`) or damaged.
    """
    if not bottle.exists(key):
        raise DataValidationError(f"{key} is missing: {remedy}")
    try:
        return kind.model_validate_json(bottle.read(key))
    except ValidationError as error:
        raise DataValidationError(f"{key} is damaged: {error}; {remedy}") from error


def passed_verification(bottle: Bottle, artifact: str, verification: str, digest: str, job: str) -> Verification:
    """Return the verification of `artifact`, whose content has the sha256 `digest`, as `job` wrote it.

    Raises:
        DataValidationError: it was not verified, failed, or was changed or made again since.
    """
    found = read_model(bottle, verification, Verification, f"{artifact} was not verified: run {job}")
    if found.sha256 != digest:
        raise DataValidationError(f"{artifact} is {digest}, but {found.sha256} was verified: run {job} again")
    if not found.passed:
        raise DataValidationError(f"{artifact} failed its verification: see {verification}")
    return found
