"""Deploy a published version: try it beside the one in production, switch, check again, or go back."""

from __future__ import annotations

import logging
from contextlib import closing

from pydantic import Field

from conversion_jobs.onnx.session import Latency
from conversion_jobs.triton.served_model import Reference, ServedModel
from jobkit import job
from jobkit.errors import DataValidationError, JobError
from jobkit.model_storage import ModelStorage, Published
from jobkit.paths import checked_name
from nightshift_common.options.conversion import MaxLatency, ModelOptions

logger = logging.getLogger("conversion_jobs.deploy_model")


class Arguments(job.Arguments, ModelOptions):
    """Bring a version of the model storage into production, if what Triton serves is what was verified."""

    version: str = Field(description="semantic version in the model storage")
    reference: str = Field(description="npz in the bottle: inputs and the outputs that verify_onnx has compared")
    experiment: str | None = Field(None, description="what was packaged; written to the run")
    snapshot_id: str | None = Field(None, description="what it was trained on; written to the history")
    max_latency_ms: MaxLatency | None = Field(None, description="median of one picture over HTTP, at most")


class Result(job.Result):
    """What serves now."""

    version: str | None = Field(None, description="the version; None where another one is pinned")
    previous_version: str | None = Field(None, description="the version that served before; None where there was none")
    latency_ms: float | None = Field(None, description="median of requests of one picture over HTTP, after a warm-up")


def run(arguments: Arguments, context: job.Context) -> Result:
    """Stage, smoke-test, promote, test what serves; roll back where the last test fails."""
    model = checked_name(arguments.model_name, "model name")
    reference = Reference(context.bottle.local(arguments.reference))
    with ModelStorage() as storage:
        return deploy(arguments, context, storage, model, reference)


def deploy(
    arguments: Arguments, context: job.Context, storage: ModelStorage, model: str, reference: Reference
) -> Result:
    """Bring the version into production, unless another one is pinned.

    Raises:
        DataValidationError: Triton's answers are not those that were verified, or come too late; the message says what
            serves now.
    """
    version = storage.version(model, arguments.version)
    if (pinned := storage.pinned(model)) not in (None, version.version):
        reason = f"{model} is pinned to version {pinned}; {version.version} is published, and can be promoted by hand"
        return Result(stop_here=job.StopHere(outcome="pinned", reason=reason))
    if storage.champion(model) != version.version:
        with storage.staged(model, version.version) as candidate:
            try_out(candidate, reference, version, arguments.max_latency_ms)
    note = {
        "run_id": context.task_instance.run_id if context.task_instance else None,
        "snapshot_id": arguments.snapshot_id,
        "reason": "deploy_model",
        "on_behalf_of": context.task_instance.dag_id if context.task_instance else None,
    }
    previous = storage.promote(model, version.version, note)
    try:
        latency = try_out(model, reference, version, arguments.max_latency_ms)
    except JobError as error:
        raise type(error)(f"{error}; {go_back(storage, model, previous, note)}") from error
    logger.info("%s %s serves: median %.2f ms, before it %s", model, version.version, latency.median, previous)
    if context.is_tracked:
        tracking = context.tracking
        tracking.metrics({"serving.latency_ms.median": latency.median, "serving.latency_ms.p99": latency.p99})
        tracking.tags({"model": model, "version": version.version, "experiment": arguments.experiment or ""})
    return Result(version=version.version, previous_version=previous, latency_ms=latency.median)


def try_out(name: str, reference: Reference, version: Published, limit: float | None) -> Latency:
    """Check the answers and the latency of what Triton serves as `name`.

    Raises:
        DataValidationError: they are not those that were verified, another version answers, or it is too slow.
    """
    with closing(ServedModel(name)) as served:
        for verdict in served.check(reference, version.target, version.triton_version):
            logger.info("%s, %s: %s", name, verdict.name, verdict.sentence)
        latency = served.latency(list(reference.inputs))
    if limit is not None and latency.median > limit:
        raise DataValidationError(
            f"{name} takes {latency.median:.1f} ms for a picture (median); {limit:g} ms are allowed"
        )
    return latency


def go_back(storage: ModelStorage, model: str, previous: str | None, note: dict[str, str | None]) -> str:
    """Put the version before into production again; return a sentence that says what serves now."""
    why = {**note, "reason": "the answers after the switch were not those that were verified"}
    try:
        if previous is None:
            storage.unload(model)
            return f"{model} was taken out of production: there was no version before"
        return f"version {storage.roll_back(model, why)} serves again"
    except JobError as error:
        return f"rolling back failed too ({error}): roll back by hand"


if __name__ == "__main__":
    job.main(Arguments, run)
