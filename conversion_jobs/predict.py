"""Ask the served champion about a picture: `python -m conversion_jobs.predict --model_name digits --picture 7.png`."""

from __future__ import annotations

import logging
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

from conversion_jobs.triton.served_model import ServedModel
from jobkit import job
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.model_spec import SPEC_FILE, ArraySpec, DetectorSpec, HeadSpec, ModelSpec, parse_spec, prepare, resized
from jobkit.model_storage import ARCHIVE, READ_TIMEOUT, ModelStorage
from jobkit.snapshot import read_snapshot
from jobkit.unpack import open_archive
from nightshift_common.boxes import SCORE, in_picture, seen

logger = logging.getLogger(__name__)
CORNERS = ("x_min", "y_min", "x_max", "y_max")


class Arguments(job.Arguments):
    """Ask the served champion of a model about one picture: a file, or the first golden picture of a snapshot."""

    model_name: str = Field(description="the model's name in the model storage and in Triton")
    picture: Path | None = Field(None, description="a picture file")
    group: str | None = Field(None, description="with --snapshot_id: the group of the snapshot")
    snapshot_id: str | None = Field(None, description="take a golden picture of this snapshot")

    @model_validator(mode="after")
    def _one_source(self) -> Arguments:
        if (self.picture is None) == (self.snapshot_id is None) or (self.snapshot_id is None) != (self.group is None):
            raise ValueError("give --picture, or --group and --snapshot_id")
        return self


class Box(BaseModel):
    """One object, in whole pixels of the picture."""

    label: str
    score: float
    x_min: int
    y_min: int
    x_max: int
    y_max: int


class Result(job.Result):
    """What the model said: the likeliest class, or of a detector the objects, the surest first."""

    picture: str
    truth: str | None = Field(description="the picture's classes in the snapshot; None for a file")
    label: str | None = Field(description="the likeliest class; of a detector that of the surest object, if any")
    probability: float | None
    boxes: list[Box] | None = Field(description="of a detector; None for a classifier")
    version: str
    milliseconds: float = Field(description="of one HTTP request to Triton")


def run(arguments: Arguments, context: job.Context) -> Result:
    """Prepare the picture as the champion's `model.json` says, send it to Triton, return what it shows."""
    version, spec = champion(arguments.model_name)
    if arguments.picture is not None:
        path, name, truth = arguments.picture, arguments.picture.name, None
    else:
        snapshot = read_snapshot(context.bottle, str(arguments.group), str(arguments.snapshot_id))
        sample = snapshot.split("golden")[0]
        path, name, truth = context.bottle.local(sample.path), sample.source, ", ".join(sample.labels)
    with closing(ServedModel(arguments.model_name)) as served:
        prepared = prepare(path, spec.preprocessing)[None]
        started = time.perf_counter()
        output, _ = served.ask(prepared)
        milliseconds = (time.perf_counter() - started) * 1000
    boxes = None
    if isinstance(spec, DetectorSpec):
        boxes = objects(output[0], path, spec)
        label, probability = (boxes[0].label, boxes[0].score) if boxes else (None, None)
    else:
        label, probability = likeliest(output[0], spec)
    logger.info("%s shows %s (%s), says version %s", name, label or "nothing", probability, version)
    return Result(
        picture=name, truth=truth, label=label, probability=probability, boxes=boxes, version=version,
        milliseconds=milliseconds,
    )  # fmt: skip


def likeliest(output: NDArray[np.float32], spec: ModelSpec) -> tuple[str, float]:
    """Return the likeliest class of one picture's outputs [classes], and its probability."""
    probabilities = output
    if spec.output == "logits":
        exponents = np.exp(output - output.max())
        probabilities = exponents / exponents.sum()
    best = int(probabilities.argmax())
    return spec.labels[best], float(probabilities[best])


def objects(output: NDArray[np.float32], path: Path, spec: DetectorSpec) -> list[Box]:
    """Return what one picture's output [4 + classes, anchors] or [K, 6] shows, in pixels of the picture at `path`."""
    import cv2

    picture = cv2.imread(str(path), cv2.IMREAD_COLOR)
    if picture is None:
        raise DataValidationError(f"{path} is no picture that can be read")
    threshold = spec.confidence_threshold
    if threshold is None:
        threshold = SCORE if spec.suppression is None else 0.0
    found, how = seen(output, threshold).boxes, spec.preprocessing
    height, width = picture.shape[:2]
    room = (how.height, how.width)
    corners = np.rint(in_picture(found[:, :4], (height, width), resized(height, width, how), room)).astype(int)
    return [
        Box(label=spec.labels[int(row[5])], score=float(row[4]), **dict(zip(CORNERS, map(int, place), strict=True)))
        for row, place in zip(found, corners, strict=True)
    ]


def champion(model_name: str) -> tuple[str, ModelSpec | DetectorSpec]:
    """Return the champion's version and its spec, from the model storage.

    Raises:
        ConfigurationError: nothing was promoted, or the model tells no classes of a picture.
    """
    with ModelStorage(READ_TIMEOUT) as storage, tempfile.TemporaryDirectory(prefix="champion-") as folder:
        version = storage.champion(model_name)
        if version is None:
            raise ConfigurationError(
                f"{storage.url} has no champion of the model {model_name!r}: nothing was promoted yet"
            )
        archive = Path(folder) / "champion.zip"
        storage.download(model_name, version, archive)
        with open_archive(archive, ARCHIVE, f"the archive of {model_name} {version}") as files:
            if SPEC_FILE not in files.namelist():
                raise ConfigurationError(
                    f"version {version} of {model_name} has no {SPEC_FILE}; it holds {files.namelist()}"
                )
            spec = parse_spec(files.read(SPEC_FILE), f"{SPEC_FILE} of {model_name} {version}")
    if isinstance(spec, HeadSpec | ArraySpec) or not spec.labels:
        raise ConfigurationError(
            f"{model_name} is no model that tells what a picture shows: it gives its {spec.output}"
        )
    return version, spec


if __name__ == "__main__":
    job.main(Arguments, run)
