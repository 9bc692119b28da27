"""What pipelines of every kind have in common, and what a kind has to say: its sections of the file and its steps.

A kind is a class below `Pipeline` in a file of this folder; `kinds/__init__.py` lists them. `dags/retrain.py` makes the
same chain of tasks of each.
"""

from __future__ import annotations

from abc import abstractmethod
from datetime import timedelta
from pathlib import Path
from typing import Annotated, Any, get_args

from airflow.sdk import Param
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from nightshift.steps import Step
from nightshift.task_templates import output_of
from nightshift_common.gpus import GPUS, GpuName
from nightshift_common.names import PIPELINE_PATTERN
from nightshift_common.options.conversion import (
    MAX_BATCH_SIZE,
    OPSET,
    SERVING_TENSORRT,
    LatencyOptions,
    MaxBatchSize,
    MaxLatency,
    Opset,
    Precision,
    Target,
    TensorRTVersion,
    ToleranceOptions,
)
from nightshift_common.options.gate import GateOptions
from nightshift_common.options.serving import TUNED, ServingOptions
from nightshift_common.yaml_file import Location

SNAPSHOT = output_of("pull_dataset", "snapshot_id")
EXPERIMENT = output_of("train", "experiment")


def _cron(text: str) -> str:
    from croniter import croniter
    from croniter.croniter import CroniterBadDateError

    if text in {"@hourly", "@daily", "@weekly", "@monthly"}:
        return text
    if len(text.split()) != 5 or not croniter.is_valid(text):
        raise ValueError(
            "not a cron expression, such as '0 2 * * *' (02:00 every day), nor @hourly, @daily, @weekly, @monthly"
        )
    try:
        croniter(text).get_next()
    except CroniterBadDateError as error:
        raise ValueError("a cron expression that no day fits") from error
    return text


class Section(BaseModel):
    """A part of the file: unknown keys are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, use_attribute_docstrings=True)


class Convert(Section, LatencyOptions):
    """What is served: the graph, or a TensorRT plan of it, which the queue of its GPU builds and verifies.

    `convert: {targets: [onnx, tensorrt], gpu: T4, precision: fp16}` publishes both and brings the plan into production;
    the graph is then what a rollback falls back to where Triton refuses the plan. A plan loads only on the GPU and in
    the very build of TensorRT that made it: `build_plan` refuses another worker before it builds, and a Triton that
    refuses the plan keeps serving the version before. The section is not in the fingerprint: trigger with **force** to
    have a plan of a model that is trained already.
    """

    targets: list[Target] = Field(["onnx"], min_length=1)
    """what is published; with tensorrt the plan comes into production, else the graph"""
    gpu: GpuName = "T4"
    """the GPU that serves, on which the plan is built"""
    precision: Precision = "fp16"
    """what is tried first; where its answers are too far off: int8, fp16, then named layers in FP32, then fp32"""
    serving_tensorrt: TensorRTVersion = SERVING_TENSORRT
    """TensorRT of the serving Triton; a worker with another build is refused"""
    opt_batch: int = Field(1, ge=1, le=1024)
    """the batch that the plan is to be fastest at: the one that is served most"""
    version_compatible: bool = False
    """from 8.6: a plan that later versions load, too, in a Triton that is started so and runs the plan's program"""
    queue: str | None = None
    """queue of the workers with this GPU and trtexec, with Celery; none: the GPU's name in lower case, say t4"""
    pool: str | None = None
    """pool of building and verifying plans; its slots are those GPUs; none: the GPU's name in lower case, say t4"""

    @model_validator(mode="after")
    def _goes_together(self) -> Convert:
        if len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets has something twice: {', '.join(self.targets)}")
        if self.goal_ms > self.limit_ms:
            raise ValueError(f"goal_ms ({self.goal_ms:g}) is above limit_ms ({self.limit_ms:g})")
        return self

    @property
    def compute_capability(self) -> str:
        """Of the GPU."""
        return GPUS[self.gpu].compute_capability

    @property
    def gpu_queue(self) -> str:
        """The queue of the GPU's workers."""
        return self.queue or GPUS[self.gpu].queue

    @property
    def gpu_pool(self) -> str:
        """The pool of the GPU."""
        return self.pool or GPUS[self.gpu].pool

    @property
    def served(self) -> Target:
        """What comes into production."""
        return "tensorrt" if "tensorrt" in self.targets else "onnx"


class Publish(Section):
    """What Triton serves."""

    model_name: str = Field(pattern=PIPELINE_PATTERN)
    """name in the model storage, in Triton and in the MLflow registry"""
    max_batch_size: MaxBatchSize = MAX_BATCH_SIZE
    """the largest batch that Triton puts together"""
    max_latency_ms: MaxLatency | None = None
    """a version that answers one picture over HTTP more slowly than this, median, does not come into production"""
    opset: Opset = OPSET
    """ONNX opset"""


class Serve(Section, ServingOptions):
    """How Triton runs what comes into production: on how many instances and threads, and what waits for how long.

    `serve: {tuning: models/footwear/<experiment>/onnx/tuning.json}` takes what `tune_model` has measured; every night's
    model of the same architecture is served so. The section is not in the fingerprint.
    """

    def options(self, *, is_served: bool) -> dict[str, Any]:
        """Return the options of packaging; what is only published beside is not run as what was measured."""
        return self.model_dump(exclude=set() if is_served else {*TUNED, "tuning"})


class Retries(Section):
    """What happens after a failure that another try may mend."""

    attempts: int = Field(3, ge=0, le=20)
    """tries after the first one"""
    delay_seconds: int = Field(60, ge=1, le=3600)
    """before the first of them; doubled for each one after it"""
    max_delay_seconds: int = Field(1800, ge=1, le=86_400)
    """the delay grows no further than this"""

    @property
    def delay(self) -> timedelta:
        """The first delay."""
        return timedelta(seconds=self.delay_seconds)

    @property
    def max_delay(self) -> timedelta:
        """The longest delay."""
        return timedelta(seconds=self.max_delay_seconds)


class Training(Section):
    """What every kind's training has."""

    timeout_hours: float = Field(12, gt=0, le=168)
    """the training is ended after this long"""

    @property
    def timeout(self) -> timedelta:
        """How long the training may take."""
        return timedelta(hours=self.timeout_hours)


class Gate(Section, GateOptions):
    """When a candidate may replace the champion."""


class Tolerances(Section, ToleranceOptions):
    """How closely the ONNX graph has to answer as the model does."""


class Pipeline(Section):
    """One retraining pipeline, of whatever kind.

    A kind adds the sections `data`, `train`, `gate`, `verify` and what else it needs, and says what is run.
    """

    kind: str
    """what is trained"""
    description: str = Field(min_length=1)
    """one sentence for the list of DAGs"""
    owner: str = Field(min_length=1)
    """who is asked when it fails"""
    schedule: Annotated[str, AfterValidator(_cron)] | None = None
    """cron expression (UTC) or @daily and the like; without it the pipeline runs only when it is triggered"""
    tags: list[str] = []
    """shown in the list of DAGs"""
    convert: Convert = Convert()
    publish: Publish
    serve: Serve = Serve()
    retries: Retries = Retries()
    train_pool: str = "default_pool"
    """pool of the training; its slots are the GPUs that there are"""
    train_queue: str | None = None
    """queue of the workers that train, with Celery; none: the default queue"""
    gate: Any
    verify: Any

    @model_validator(mode="after")
    def _plan_has_no_threads(self) -> Pipeline:
        if self.convert.served == "tensorrt" and self.serve.intra_op_threads is not None:
            raise ValueError("serve.intra_op_threads are ONNX Runtime's: a TensorRT plan has none")
        return self

    @abstractmethod
    def pull_step(self) -> Step:
        """Return the job that makes the night's snapshot; its result has `snapshot_id`.

        `pipeline`, `fingerprint`, `force` and a pinned `snapshot_id` are added to its options.
        """

    def prepare_steps(self) -> dict[str, Step]:
        """Return, by task id, the jobs between pulling and training."""
        return {}

    @abstractmethod
    def train_step(self) -> Step:
        """Return the training of `SNAPSHOT`; its result has `experiment`."""

    @abstractmethod
    def evaluate_step(self) -> Step:
        """Return the job that scores `EXPERIMENT` and the champion on the golden part of `SNAPSHOT`.

        Its result has `report`, the key of a `training_jobs.scoring.evaluation.Evaluation`.
        """

    @abstractmethod
    def form(self) -> dict[str, Param]:
        """Return the fields by which a run that is started by hand may differ; their defaults are what nights use."""

    def named_files(self) -> dict[Location, str]:
        """Return the files of the checkout that the pipeline names, by the key that names each."""
        return {}

    def check_file(self, key: Location, path: Path, home: Path) -> None:
        """See that the file that `key` names holds what it should.

        Raises:
            ConfigFileError: it does not; the message has a line for every error.
        """


def kind_of(pipeline: type[Pipeline]) -> str:
    """Return the kind of a class of pipelines, as it is written in a file."""
    (kind,) = get_args(pipeline.model_fields["kind"].annotation)
    return str(kind)
