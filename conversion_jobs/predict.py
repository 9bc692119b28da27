"""Ask the served champion about a picture: `python -m conversion_jobs.predict --model_name digits --picture 7.png`."""

from __future__ import annotations

import logging
import tempfile
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import httpx
import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, Field, model_validator

from conversion_jobs.triton.served_model import ServedModel
from conversion_jobs.triton.served_pictures import Answer, ServedPictures, ask_prepared
from jobkit import job
from jobkit.errors import ConfigurationError, DataValidationError, TransientError
from jobkit.model_spec import (
    SPEC_FILE,
    ArraySpec,
    DetectorSpec,
    HeadSpec,
    ModelSpec,
    normalize,
    parse_spec,
    picture_of,
    resized,
)
from jobkit.model_storage import ARCHIVE, READ_TIMEOUT, ModelStorage
from jobkit.snapshot import read_snapshot
from jobkit.unpack import open_archive
from nightshift_common.boxes import SCORE, in_picture, seen
from nightshift_common.picture_preparation import SHOWN, decode

logger = logging.getLogger(__name__)
MAX_BYTES = 64 << 20  # of a picture; Triton takes no more in one request
CORNERS = ("x_min", "y_min", "x_max", "y_max")


class Arguments(job.Arguments):
    """Ask the served champion of a model about one picture: a file, an address, or a golden picture of a snapshot."""

    model_name: str = Field(description="the model's name in the model storage and in Triton")
    picture: str | None = Field(None, description="a picture file, or its http:// or https:// address")
    group: str | None = Field(None, description="with --snapshot_id: the group of the snapshot")
    snapshot_id: str | None = Field(None, description="take a golden picture of this snapshot")

    @model_validator(mode="after")
    def _one_source(self) -> Arguments:
        if (self.picture is None) == (self.snapshot_id is None) or (self.snapshot_id is None) != (self.group is None):
            raise ValueError("give --picture, or --group and --snapshot_id")
        return self


class Class(BaseModel):
    """One class, and how likely it is."""

    label: str
    probability: float


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
    labels: list[str] | None = Field(
        description="those of `classes` with a probability of at least 0.5: what the picture shows, where it may have "
        "several labels; None for a detector"
    )
    label: str | None = Field(description="the likeliest class; of a detector that of the surest object, if any")
    probability: float | None
    classes: list[Class] | None = Field(
        description="of a classifier: the likeliest first, five at most, or all of `labels`"
    )
    boxes: list[Box] | None = Field(description="of a detector; None for a classifier")
    version: str
    milliseconds: float = Field(description="of one HTTP request to Triton")


@dataclass(frozen=True)
class Picture:
    """An encoded picture with the name that it is called by, and its classes where a snapshot tells them."""

    content: bytes
    name: str
    truth: str | None


def run(arguments: Arguments, context: job.Context) -> Result:
    """Send the picture to the champion's entry for pictures; prepare it here where Triton serves none."""
    picture = picture_to_ask(arguments, context)
    with closing(ServedPictures(arguments.model_name)) as entry:
        if entry.is_served():
            started = time.perf_counter()
            answer = entry.ask(picture.content)
            return said(picture, answer, str(answer.version), milliseconds_since(started))
    version, spec = champion(arguments.model_name)
    with closing(ServedModel(arguments.model_name)) as served:
        started = time.perf_counter()
        if isinstance(spec, ModelSpec):
            answer = ask_prepared(served, picture.content, spec, picture.name)
            return said(picture, answer, version, milliseconds_since(started))
        how = spec.preprocessing
        output, _ = served.ask(normalize(picture_of(picture.content, how, picture.name), how)[None])
        milliseconds = milliseconds_since(started)
    boxes = objects(output[0], picture, spec)
    label, probability = (boxes[0].label, boxes[0].score) if boxes else (None, None)
    logger.info("%s shows %s (%s), says version %s", picture.name, label or "nothing", probability, version)
    return Result(
        picture=picture.name, truth=picture.truth, labels=None, label=label, probability=probability, classes=None,
        boxes=boxes, version=version, milliseconds=milliseconds,
    )  # fmt: skip


def said(picture: Picture, answer: Answer, version: str, milliseconds: float) -> Result:
    """Return what a classifier answered."""
    label, probability = answer.labels[0], answer.probabilities[0]
    classes = [Class(label=name, probability=p) for name, p in zip(answer.labels, answer.probabilities, strict=True)]
    shown = [found for found in classes if found.probability >= SHOWN]
    said = ", ".join(f"{found.label} ({found.probability})" for found in shown or classes[:1])
    logger.info("%s shows %s, says version %s", picture.name, said, version)
    return Result(
        picture=picture.name, truth=picture.truth, labels=[found.label for found in shown], label=label,
        probability=probability, classes=classes, boxes=None, version=version, milliseconds=milliseconds,
    )  # fmt: skip


def milliseconds_since(started: float) -> float:
    """Return how long ago that was, by `time.perf_counter`."""
    return (time.perf_counter() - started) * 1000


def picture_to_ask(arguments: Arguments, context: job.Context) -> Picture:
    """Return what the arguments name.

    Raises:
        DataValidationError: there is no such file or page.
        TransientError: the address does not answer.
    """
    if arguments.picture is None:
        sample = read_snapshot(context.bottle, str(arguments.group), str(arguments.snapshot_id)).split("golden")[0]
        return Picture(context.bottle.read(sample.path), sample.source, ", ".join(sample.labels))
    if arguments.picture.startswith(("http://", "https://")):
        return Picture(downloaded(arguments.picture), arguments.picture.rpartition("/")[2], None)
    path = Path(arguments.picture).expanduser()
    try:
        return Picture(path.read_bytes(), path.name, None)
    except OSError as error:
        raise DataValidationError(f"{path} cannot be read: {error.strerror or error}") from error


def downloaded(address: str) -> bytes:
    """Return what an address answers, up to `MAX_BYTES`."""
    content = bytearray()
    try:
        with httpx.stream("GET", address, follow_redirects=True, timeout=30.0) as reply:
            if not reply.is_success:
                raise DataValidationError(f"{address} answers {reply.status_code} {reply.reason_phrase}")
            for part in reply.iter_bytes():
                content += part
                if len(content) > MAX_BYTES:
                    raise DataValidationError(f"{address} is larger than {MAX_BYTES >> 20} MiB")
    except httpx.InvalidURL as error:
        raise DataValidationError(f"{address} is no address: {error}") from error
    except httpx.HTTPError as error:
        raise TransientError(f"{address} does not answer: {str(error) or type(error).__name__}") from error
    return bytes(content)


def objects(output: NDArray[np.float32], picture: Picture, spec: DetectorSpec) -> list[Box]:
    """Return what one picture's output [4 + classes, anchors] or [K, 6] shows, in pixels of the picture."""
    decoded = decode(picture.content, spec.preprocessing.channels)
    if decoded is None:
        raise DataValidationError(f"{picture.name} is not a picture that can be decoded")
    threshold = spec.confidence_threshold
    if threshold is None:
        threshold = SCORE if spec.suppression is None else 0.0
    found, how = seen(output, threshold).boxes, spec.preprocessing
    height, width = decoded.shape[:2]
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
