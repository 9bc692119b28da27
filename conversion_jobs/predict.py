"""Ask the served champion about a picture: `python -m conversion_jobs.predict --model_name digits --picture 7.png`."""

from __future__ import annotations

import io
import json
import logging
import time
import zipfile
from pathlib import Path

import numpy as np
from pydantic import Field, model_validator

from conversion_jobs.model_storage import ModelStorage
from conversion_jobs.serving import ServedModel
from jobkit import job
from jobkit.errors import ConfigurationError
from jobkit.modelspec import SPEC_FILE, ModelSpec, prepare
from jobkit.snapshot import read_snapshot

logger = logging.getLogger(__name__)


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


class Result(job.Result):
    """What the model said."""

    picture: str
    truth: str | None = Field(description="the picture's label in the snapshot; None for a file")
    label: str
    probability: float
    version: str
    milliseconds: float = Field(description="of one HTTP request to Triton")


def run(arguments: Arguments, context: job.Context) -> Result:
    """Prepare the picture as the champion's `model.json` says, send it to Triton, return the likeliest class."""
    version, spec = champion(arguments.model_name)
    if arguments.picture is not None:
        path, name, truth = arguments.picture, arguments.picture.name, None
    else:
        snapshot = read_snapshot(context.bottle, str(arguments.group), str(arguments.snapshot_id))
        sample = snapshot.split("golden")[0]
        path, name, truth = context.bottle.local(sample.path), sample.source, sample.label
    served = ServedModel(arguments.model_name)
    started = time.perf_counter()
    logits, _ = served.ask(prepare(path, spec.preprocessing)[None])
    milliseconds = (time.perf_counter() - started) * 1000
    served.close()
    exponents = np.exp(logits[0] - logits[0].max())
    probabilities = exponents / exponents.sum()
    best = int(probabilities.argmax())
    answer = Result(
        picture=name, truth=truth, label=spec.labels[best], probability=float(probabilities[best]), version=version,
        milliseconds=milliseconds,
    )  # fmt: skip
    logger.info("%s is %r (%.1f %%), says version %s", name, answer.label, 100 * answer.probability, version)
    return answer


def champion(model_name: str) -> tuple[str, ModelSpec]:
    """Return the champion's version and its spec, from the model storage."""
    storage = ModelStorage()
    version = storage.champion(model_name)
    if version is None:
        raise ConfigurationError(f"{storage.url} has no champion of the model {model_name!r}: nothing was promoted yet")
    with zipfile.ZipFile(io.BytesIO(storage.archive(model_name, version))) as files:
        if SPEC_FILE not in files.namelist():
            raise ConfigurationError(
                f"version {version} of {model_name} has no {SPEC_FILE}; it holds {files.namelist()}"
            )
        return version, ModelSpec.model_validate(json.loads(files.read(SPEC_FILE)))


if __name__ == "__main__":
    job.main(Arguments, run)
