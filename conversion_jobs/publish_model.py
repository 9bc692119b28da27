"""Publish a packaged model: the next version in the model storage and in MLflow's registry."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from zipfile import ZipFile

from pydantic import Field

from conversion_jobs.publishing.mlflow_registry import register
from conversion_jobs.tensorrt.version import TEST_DOUBLE
from jobkit import job
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment
from jobkit.files import sha256_of
from jobkit.model_storage import ModelStorage, Published
from jobkit.paths import checked_name
from jobkit.tracking import server_errors
from nightshift_common.options.conversion import ModelOptions, Target

logger = logging.getLogger("conversion_jobs.publish_model")


class Arguments(job.Arguments, ModelOptions):
    """Upload a package to the model storage, which gives it the next semantic version."""

    archive: str = Field(description="the package's key in the bottle")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the package")
    target: Target = Field("onnx", description="what the package holds")
    experiment: str = Field(description="what was packaged: models/<group>/<experiment>")
    snapshot_id: str | None = Field(None, description="what it was trained on or verified with; none for a head")


class Result(job.Result):
    """The version that the package has; published again, it is the same."""

    version: str
    triton_version: int
    already_published: bool


def run(arguments: Arguments, context: job.Context) -> Result:
    """Check the package, upload it, register the version."""
    model = checked_name(arguments.model_name, "model name")
    experiment = Experiment(arguments.experiment)
    archive = context.bottle.local(arguments.archive)
    if (actual := sha256_of(archive)) != arguments.sha256:
        raise DataValidationError(
            f"{arguments.archive} is {actual}, not {arguments.sha256}: another run has packaged over it; package again"
        )
    refuse_test_double(archive)
    with ModelStorage() as storage:
        published = storage.upload(model, archive, arguments.sha256)
        if published.target != arguments.target:
            raise DataValidationError(
                f"{arguments.archive} holds a model for {published.target}, not for {arguments.target}"
            )
        known = " already" if published.already_published else ""
        logger.info("%s is%s version %s of %s", arguments.archive, known, published.version, model)
        if context.is_tracked:
            track(context, storage, model, published, experiment, arguments)
    return Result(
        version=published.version,
        triton_version=published.triton_version,
        already_published=published.already_published,
    )


def refuse_test_double(archive: Path) -> None:
    """Refuse a package whose plan no TensorRT has made.

    Raises:
        ConfigurationError: trtexec was a test double.
    """
    with ZipFile(archive) as opened:
        if json.loads(opened.read("meta.json")).get("made_by_test_double"):
            raise ConfigurationError(
                f"the plan in {archive.name} was made by a {TEST_DOUBLE}, so it is none: build it in the TensorRT image"
            )


def track(
    context: job.Context,
    storage: ModelStorage,
    model: str,
    published: Published,
    experiment: Experiment,
    arguments: Arguments,
) -> None:
    """Register the version in MLflow, with what it was made from and where its archive is.

    MLflow takes no address of another server as the source of a version, and weights need not be kept twice: the
    source is the folder `package` of the run's artifacts, with the package's `meta.json`.
    """
    made_from = {
        "snapshot_id": arguments.snapshot_id or "",
        "experiment": experiment.folder,
        "target": arguments.target,
        "sha256": arguments.sha256,
        "archive": storage.address(model, published.version),
    }
    tracking = context.tracking
    with ZipFile(context.bottle.local(arguments.archive)) as archive, tempfile.TemporaryDirectory() as folder:
        tracking.artifact(Path(archive.extract("meta.json", folder)), "package")
    with server_errors("finding the run's artifacts"):
        source = f"{tracking.client.get_run(tracking.run_id).info.artifact_uri}/package"
    number = register(tracking.client, model, published.version, source, tracking.run_id, made_from)
    tracking.tags({"model": model, "version": published.version, "registry_version": number, **made_from})


if __name__ == "__main__":
    job.main(Arguments, run)
