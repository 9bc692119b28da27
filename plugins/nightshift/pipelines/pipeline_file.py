"""The pipeline file: one `configs/pipelines/<name>.yaml` makes one DAG `retrain_<name>`."""

from __future__ import annotations

import hashlib
import json
import os
import re
from datetime import timedelta
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from nightshift_common.yaml_file import ConfigFile, ConfigFileError

NAME = r"^[a-z][a-z0-9_]{0,49}$"


def home() -> Path:
    """Return the checkout: `NIGHTSHIFT_HOME`, else the one that this file lies in."""
    return Path(os.environ.get("NIGHTSHIFT_HOME") or Path(__file__).resolve().parents[3])


def pipelines_folder() -> Path:
    """Return the folder of the pipeline files: `NIGHTSHIFT_PIPELINES`, else `configs/pipelines` of the checkout."""
    return Path(os.environ.get("NIGHTSHIFT_PIPELINES") or home() / "configs" / "pipelines")


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


class Data(Section):
    """Where the labeled pictures come from, and which of them are taken."""

    source: Literal["collect", "postgres"] = "collect"
    """where the labeled pictures are listed"""
    group: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$")
    """the group of pictures, as collect names it"""
    table: str | None = None
    """for postgres: [schema.]table with the columns path, label and, optionally, split_group"""
    modes: list[Literal["PREPARING", "CHECKING", "VALIDATED", "TRAINED"]] = Field(
        ["PREPARING", "CHECKING", "VALIDATED"], min_length=1
    )
    """for collect: the modes of the picsets that are taken"""
    val_part: float = Field(0.15, gt=0, lt=0.5)
    """share for validation while training"""
    golden_part: float = Field(0.15, gt=0, lt=0.5)
    """share for the golden set, which is never trained on"""
    min_side: int = Field(16, ge=1)
    """a picture with a shorter side is refused, pixels"""
    max_side: int = Field(10_000, ge=1)
    """a picture with a longer side is refused without decoding it, pixels"""
    max_bad_share: float = Field(0.05, ge=0, le=1)
    """with a larger share of bad pictures the night is refused"""

    @model_validator(mode="after")
    def _goes_together(self) -> Data:
        if (self.source == "postgres") != (self.table is not None):
            raise ValueError("table goes with source: postgres, and source: postgres needs it")
        if self.min_side > self.max_side:
            raise ValueError(f"min_side ({self.min_side}) is larger than max_side ({self.max_side})")
        return self


class Train(Section):
    """What is trained."""

    config: str
    """the training configuration, a path in the checkout: configs/classifier/<name>.yaml"""
    epochs: int = Field(15, ge=1, le=1000)
    """passes over the training pictures"""
    batch: int = Field(64, ge=1, le=4096)
    """pictures a step"""
    gpus: int = Field(1, ge=1, le=16)
    """GPUs of one host that train together and share each batch; the task takes as many slots of train_pool"""
    timeout_hours: float = Field(12, gt=0, le=168)
    """the training is ended after this long"""

    @model_validator(mode="after")
    def _can_be_shared(self) -> Train:
        if self.batch % self.gpus:
            raise ValueError(f"a batch of {self.batch} pictures has no equal shares for gpus: {self.gpus}")
        return self

    @property
    def timeout(self) -> timedelta:
        """How long the training may take."""
        return timedelta(hours=self.timeout_hours)


class Gate(Section):
    """When a candidate may replace the champion."""

    metric: Literal["accuracy", "macro_f1"] = "macro_f1"
    """what is compared on the golden set"""
    floor: float = Field(0.0, ge=0, le=1)
    """the least value that a candidate needs"""
    min_gain: float = Field(0.0, ge=-1, le=1)
    """how much better than the champion's it has to be; negative: how much worse it may be"""
    max_slice_loss: float = Field(0.05, ge=0, le=1)
    """how much F1 any class may lose against the champion"""
    min_support: int = Field(20, ge=1)
    """classes with fewer golden pictures do not veto: there one picture is more than the limit"""


class Verify(Section):
    """How closely the ONNX graph has to answer as the model does."""

    samples: int = Field(32, ge=1, le=4096)
    """golden pictures that both are asked about"""
    atol: float = Field(1e-4, gt=0)
    """absolute difference that is allowed"""
    rtol: float = Field(1e-3, ge=0)
    """relative difference that is allowed"""
    top1_agreement: float = Field(0.99, ge=0, le=1)
    """share of pictures with the same first class"""


class Convert(Section):
    """What is served: the graph, or a TensorRT plan of it, which the queue of its GPU builds and verifies.

    `convert: {targets: [onnx, tensorrt], gpu: T4, precision: fp16}` publishes both and brings the plan into production;
    the graph is then what a rollback falls back to where Triton refuses the plan. A plan loads only on the GPU and in
    the very build of TensorRT that made it: `build_plan` refuses another worker before it builds, and a Triton that
    refuses the plan keeps serving the version before. The section is not in the fingerprint: trigger with **force** to
    have a plan of a model that is trained already.
    """

    targets: list[Literal["onnx", "tensorrt"]] = Field(["onnx"], min_length=1)
    """what is published; with tensorrt the plan comes into production, else the graph"""
    gpu: Literal["T4", "A100", "A10", "L4", "L40S", "H100"] = "T4"
    """the GPU that serves, on which the plan is built"""
    precision: Literal["fp16", "mixed", "fp32"] = "fp16"
    """what is tried first; where its answers are too far off: fp16, then named layers in FP32, then fp32"""
    serving_tensorrt: str = Field("11.1.0.106", pattern=r"^\d+\.\d+\.\d+(\.\d+)?$")
    """TensorRT of the serving Triton; a worker with another build is refused"""
    goal_ms: float = Field(1000, gt=0)
    """a plan whose 99th percentile of one picture is above this gets a warning"""
    limit_ms: float = Field(10_000, gt=0)
    """a plan whose 99th percentile of one picture is above this is refused"""
    queue: str = "t4"
    """queue of the workers with this GPU and trtexec, with Celery"""
    pool: str = "default_pool"
    """pool of building and verifying plans; its slots are those GPUs"""

    @model_validator(mode="after")
    def _goes_together(self) -> Convert:
        if len(set(self.targets)) != len(self.targets):
            raise ValueError(f"targets has something twice: {', '.join(self.targets)}")
        if self.goal_ms > self.limit_ms:
            raise ValueError(f"goal_ms ({self.goal_ms:g}) is above limit_ms ({self.limit_ms:g})")
        return self

    @property
    def compute_capability(self) -> str:
        """Of the GPU, by NVIDIA's table."""
        return {"T4": "7.5", "A100": "8.0", "A10": "8.6", "L4": "8.9", "L40S": "8.9", "H100": "9.0"}[self.gpu]

    @property
    def served(self) -> Literal["onnx", "tensorrt"]:
        """What comes into production."""
        return "tensorrt" if "tensorrt" in self.targets else "onnx"


class Publish(Section):
    """What Triton serves."""

    model_name: str = Field(pattern=NAME)
    """name in the model storage, in Triton and in the MLflow registry"""
    max_batch_size: int = Field(8, ge=1, le=1024)
    """the largest batch that Triton puts together"""
    max_latency_ms: float | None = Field(None, gt=0)
    """a version that answers one picture over HTTP more slowly than this, median, does not come into production"""
    opset: int = Field(17, ge=13, le=20)
    """ONNX opset"""


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


class Pipeline(Section):
    """One retraining pipeline."""

    description: str = Field(min_length=1)
    """one sentence for the list of DAGs"""
    owner: str = Field(min_length=1)
    """who is asked when it fails"""
    schedule: Annotated[str, AfterValidator(_cron)] | None = None
    """cron expression (UTC) or @daily and the like; without it the pipeline runs only when it is triggered"""
    tags: list[str] = []
    """shown in the list of DAGs"""
    data: Data
    train: Train
    gate: Gate = Gate()
    verify: Verify = Verify()
    convert: Convert = Convert()
    publish: Publish
    retries: Retries = Retries()
    train_pool: str = "default_pool"
    """pool of the training; its slots are the GPUs that there are"""
    train_queue: str | None = None
    """queue of the workers that train, with Celery; none: the default queue"""

    @cached_property
    def fingerprint(self) -> str:
        """Stands for everything but the data that makes the trained model; with another one the same data is new."""
        config = (home() / self.train.config).read_bytes()
        settings = json.dumps(
            [self.data.model_dump(), self.train.model_dump(exclude={"timeout_hours", "gpus"}), self.gate.model_dump()]
        )
        return hashlib.sha256(settings.encode() + config).hexdigest()[:16]


def load_pipeline(path: Path) -> Pipeline:
    """Return the pipeline in a file.

    Raises:
        ConfigFileError: the file is wrong; the message has a line `file:line: key: what is valid` for every error.
    """
    if not path.exists() and path.with_suffix(".yml").exists():
        path = path.with_suffix(".yml")
    shown = path.relative_to(home()) if path.is_relative_to(home()) else path
    if path.suffix != ".yaml" or not re.match(NAME, path.stem):
        raise ConfigFileError(
            f"{shown}:1: the file's name: the DAG is named after it, so it has to be <name>.yaml with a name of"
            " lower-case letters, digits and _, that starts with a letter and has at most 50 characters"
        )
    file = ConfigFile.read(path, relative_to=home())
    pipeline = file.validate(Pipeline)
    if not (home() / pipeline.train.config).is_file():
        file.fail(("train", "config"), f"there is no file {pipeline.train.config} in {home()}")
    return pipeline
