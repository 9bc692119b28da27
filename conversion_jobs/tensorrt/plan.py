"""Plans in an experiment folder: where they lie, and what is known of each."""

from __future__ import annotations

from dataclasses import dataclass

from pydantic import BaseModel, ConfigDict, Field

from conversion_jobs.tensorrt.gpu import Gpu
from conversion_jobs.tensorrt.version import TensorRTVersion
from conversion_jobs.verification.checks import Verdict
from nightshift_common.options.conversion import Precision


class Attempt(BaseModel):
    """One precision that was tried."""

    model_config = ConfigDict(extra="forbid")

    precision: Precision
    fp32_layers: list[str] = []
    accepted: bool
    reason: str
    verdicts: list[Verdict] = []
    seconds: float


class Plan(BaseModel):
    """`plan.json`: what a plan was built from, with what, on what, and why in this precision."""

    model_config = ConfigDict(extra="forbid")

    sha256: str
    onnx_sha256: str
    tensorrt: str
    gpu: str
    compute_capability: str
    driver: str
    asked_precision: Precision
    precision: Precision
    batches: tuple[int, int, int] = Field(description="smallest, best, largest, of the first profile")
    profiles: list[tuple[int, int, int]] = Field([], description="of every optimization profile, where it has several")
    sizes: tuple[tuple[int, ...], ...] | None = Field(None, description="of free axes: smallest, best, largest")
    workspace_mib: int
    attempts: list[Attempt]
    skipped_tactics: int = Field(description="kernels that were left out for want of memory")
    calibration_snapshot_id: str | None = Field(None, description="whose pictures int8 was calibrated with")
    calibration_pictures: int = Field(0, description="how many, none of them golden")
    version_compatible: bool = Field(False, description="it loads in later versions too, by a runtime of its own in it")
    stripped_sha256: str | None = Field(None, description="of the plan without weights, where one was asked for")
    made_by_test_double: bool = Field(False, description="no TensorRT made it: it is no plan and is never published")

    @property
    def largest_batch(self) -> int:
        """The largest batch of all profiles."""
        return max(profile[2] for profile in (self.batches, *self.profiles))


@dataclass(frozen=True)
class PlanPaths:
    """Keys of one plan: one folder for each experiment, GPU and TensorRT."""

    folder: str

    @property
    def plan(self) -> str:
        """The plan."""
        return f"{self.folder}/model.plan"

    @property
    def stripped(self) -> str:
        """The same plan without weights: it loads and answers zeros until a program puts them in again."""
        return f"{self.folder}/stripped.plan"

    @property
    def record(self) -> str:
        """What is known of it; written last: a plan without it does not exist."""
        return f"{self.folder}/plan.json"

    @property
    def log(self) -> str:
        """trtexec's whole log."""
        return f"{self.folder}/build.log"

    @property
    def verification(self) -> str:
        """What `verify_plan` found."""
        return f"{self.folder}/verification.json"


def plan_paths(experiment: str, gpu: Gpu, version: TensorRTVersion) -> PlanPaths:
    """Return where the plan of an experiment for a GPU and a TensorRT lies."""
    return PlanPaths(f"{experiment}/tensorrt/{gpu.slug}-{version}")


def timing_cache_key(gpu: Gpu, version: TensorRTVersion) -> str:
    """Return the key of the measurements that later builds on the same GPU and TensorRT need not repeat."""
    return f"timing_caches/{gpu.name.replace(' ', '_').replace('/', '_')}-{version}.cache"
