"""What the conversion jobs read of an experiment folder, and where they write beside it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from conversion_jobs.nms_graph import Suppression
from jobkit import job, settings
from jobkit.bottle import Bottle
from jobkit.errors import ConfigurationError, DataRefused
from jobkit.modelspec import SPEC_FILE, ModelSpec, Output, Preprocessing
from jobkit.paths import ExperimentPaths, checked_name


class HeadSpec(BaseModel):
    """The interface of a head. Input `input`: float32 [N, features]; output `<output>`: float32 [N, classes]."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: str
    architecture: str
    labels: list[str] = Field(description="class name of each output")
    output: Output = "logits"
    features: int = Field(gt=0, description="length of the embedding that it takes")
    snapshot_id: str | None = None


class DetectorSpec(BaseModel):
    """The interface of a detector. Input `input`: float32 [N, 3, H, W]; outputs: see `conversion_jobs/boxes.py`."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    group: str
    architecture: str
    labels: list[str] = Field(description="class name of each score")
    task: Literal["detect", "segment"] = Field(description="segment: with coefficients and prototypes of masks")
    preprocessing: Preprocessing
    suppression: Suppression | None = Field(None, description="non-maximum suppression inside the graph; none: raw")
    snapshot_id: str | None = None

    @property
    def output(self) -> str:
        """The first output."""
        return "raw" if self.suppression is None else "detections"


Spec = ModelSpec | HeadSpec | DetectorSpec
_SPEC: TypeAdapter[Spec] = TypeAdapter(Spec)


def input_shape(spec: Spec) -> tuple[int, ...]:
    """Return the shape of one input: [C, H, W] of a picture, or [features]."""
    if isinstance(spec, HeadSpec):
        return (spec.features,)
    how = spec.preprocessing
    return how.channels, how.height, how.width


def described_input(spec: Spec) -> dict[str, Any]:
    """Return what a client needs to know beside names: how a picture is prepared, or the length of an embedding."""
    if isinstance(spec, HeadSpec):
        return {"features": spec.features}
    described: dict[str, Any] = {"preprocessing": spec.preprocessing.model_dump()}
    if isinstance(spec, DetectorSpec):
        how = spec.suppression
        described |= {"task": spec.task, "suppression": None if how is None else how.model_dump()}
    return described


@dataclass(frozen=True)
class Experiment(ExperimentPaths):
    """An experiment folder as the conversion jobs see it; all properties are keys in the bottle."""

    def __post_init__(self) -> None:
        """Check the folder's form.

        Raises:
            ConfigurationError: it is not `models/<group>/<experiment>`.
        """
        parts = PurePosixPath(self.folder).parts
        if len(parts) != 3 or parts[0] != "models" or self.folder != "/".join(parts):
            raise ConfigurationError(
                f"--experiment {self.folder!r} is not the folder of an experiment: models/<group>/<experiment>"
            )
        checked_name(parts[1], "group")
        checked_name(parts[2], "experiment")

    @property
    def spec(self) -> str:
        """Classes and preprocessing."""
        return f"{self.folder}/{SPEC_FILE}"

    @property
    def torchscript(self) -> str:
        """The model as training left it: float32 [N, C, H, W] -> logits."""
        return f"{self.folder}/torchscripts/model.pt"

    @property
    def embeddings(self) -> str:
        """What a head is verified with: .npy, float32 [n, features]."""
        return f"{self.folder}/embeddings.npy"

    @property
    def verification(self) -> str:
        """What `verify_onnx` found; names the graph by its sha256."""
        return f"{self.folder}/onnx/verification.json"

    @property
    def reference(self) -> str:
        """Inputs and outputs that were verified: `inputs` float32 [n, C, H, W], `outputs`, `pictures`."""
        return f"{self.folder}/onnx/verified.npz"


def read_spec(bottle: Bottle, experiment: Experiment) -> Spec:
    """Return the experiment's model spec.

    Raises:
        DataRefused: there is none, or it is not valid.
    """
    return parse_spec(bottle.read(experiment.spec), f"{bottle}/{experiment.spec}")


def parse_spec(text: str | bytes, where: str) -> Spec:
    """Return a model spec from its JSON.

    Raises:
        DataRefused: it is not valid; the message begins with `where` it was.
    """
    try:
        return _SPEC.validate_json(text)
    except ValidationError as error:
        raise DataRefused(f"{where} is not valid: {error}") from error


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def is_tracked(context: job.Context) -> bool:
    """Whether the job writes to MLflow: always under Airflow; by hand where `MLFLOW_TRACKING_URI` is set."""
    return context.labels is not None or settings.optional(settings.MLFLOW_URI) is not None


@contextmanager
def named(key: str) -> Iterator[None]:
    """Put `key` before the text of a `DataRefused` that a library function raised without knowing it."""
    try:
        yield
    except DataRefused as error:
        raise DataRefused(f"{key}: {error}") from error
