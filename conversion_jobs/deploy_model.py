"""Deploy a published version: try it beside the one in production, switch, check again, or go back."""

from __future__ import annotations

import hashlib
import logging
import tempfile
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from pydantic import Field

from conversion_jobs.onnx.session import Latency
from conversion_jobs.triton.served_model import Reference, ServedModel
from conversion_jobs.triton.served_pictures import check_answers, differing_specs
from jobkit import job
from jobkit.answers import Answers, read_answers
from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError, JobError
from jobkit.model_spec import SPEC_FILE, ModelSpec, parse_spec
from jobkit.model_storage import ARCHIVE, ModelStorage, Published
from jobkit.paths import checked_name
from jobkit.unpack import open_archive
from nightshift_common.options.conversion import MaxLatency, ModelOptions

logger = logging.getLogger("conversion_jobs.deploy_model")


class Arguments(job.Arguments, ModelOptions):
    """Bring a version of the model storage into production, if what Triton serves is what was verified."""

    version: str = Field(description="semantic version in the model storage")
    reference: str = Field(description="npz in the bottle: inputs and the outputs that verify_onnx has compared")
    answers: str | None = Field(
        None,
        description="npz in the bottle, from evaluate: golden pictures are sent as they are, and answered as there; "
        "empty: none were kept",
    )
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
    answers = read_answers(context.bottle, arguments.answers) if arguments.answers else None
    if answers is None:
        logger.info("evaluation left no answers: labels and preprocessing of the package are taken as they are")
    with ModelStorage() as storage:
        return deploy(arguments, context, storage, model, Expected(reference, answers, context.bottle))


@dataclass(frozen=True)
class Expected:
    """What a version has to answer: to prepared inputs, and to pictures as they are where evaluation kept answers."""

    reference: Reference
    answers: Answers | None
    bottle: Bottle


def deploy(arguments: Arguments, context: job.Context, storage: ModelStorage, model: str, expected: Expected) -> Result:
    """Bring the version into production, unless another one is pinned.

    Raises:
        DataValidationError: Triton's answers are not those that were verified, or come too late; the message says what
            serves now.
    """
    version = storage.version(model, arguments.version)
    if (pinned := storage.pinned(model)) not in (None, version.version):
        reason = f"{model} is pinned to version {pinned}; {version.version} is published, and can be promoted by hand"
        return Result(stop_here=job.StopHere(outcome="pinned", reason=reason))
    if expected.answers is not None:
        check_spec(storage, model, version, expected.answers.spec)
    if storage.champion(model) != version.version:
        with storage.staged(model, version.version) as candidate:
            try_out(candidate, expected, version, arguments.max_latency_ms)
    note = {
        "run_id": context.task_instance.run_id if context.task_instance else None,
        "snapshot_id": arguments.snapshot_id,
        "reason": "deploy_model",
        "on_behalf_of": context.task_instance.dag_id if context.task_instance else None,
    }
    previous = storage.promote(model, version.version, note)
    try:
        latency = try_out(model, expected, version, arguments.max_latency_ms)
    except JobError as error:
        raise type(error)(f"{error}; {go_back(storage, model, previous, note)}") from error
    logger.info("%s %s serves: median %.2f ms, before it %s", model, version.version, latency.median, previous)
    if context.is_tracked:
        tracking = context.tracking
        tracking.metrics({"serving.latency_ms.median": latency.median, "serving.latency_ms.p99": latency.p99})
        tracking.tags({"model": model, "version": version.version, "experiment": arguments.experiment or ""})
    return Result(version=version.version, previous_version=previous, latency_ms=latency.median)


def check_spec(storage: ModelStorage, model: str, version: Published, evaluated: ModelSpec) -> None:
    """Compare labels and preprocessing of a package with those that were evaluated.

    Raises:
        DataValidationError: they differ, or the package tells none; the message says in what.
    """
    expected = (evaluated.model_dump_json(indent=2) + "\n").encode()
    if version.files.get(SPEC_FILE) == hashlib.sha256(expected).hexdigest():
        return
    with tempfile.TemporaryDirectory(prefix="nightshift-package-") as folder:
        archive = Path(folder) / "package.zip"
        storage.download(model, version.version, archive)
        with open_archive(archive, ARCHIVE, f"the archive of {model} {version.version}") as files:
            content = files.read(SPEC_FILE) if SPEC_FILE in files.namelist() else None
    name = f"{SPEC_FILE} of {model} {version.version}"
    packaged = None if content is None else parse_spec(content, name)
    if not isinstance(packaged, ModelSpec):
        raise DataValidationError(f"{model} {version.version} has no {SPEC_FILE} of a classifier, which was evaluated")
    if sentences := differing_specs(evaluated, packaged):
        raise DataValidationError(f"{name} is not what was evaluated: {'; '.join(sentences)}")


def try_out(name: str, expected: Expected, version: Published, limit: float | None) -> Latency:
    """Check the answers and the latency of what Triton serves as `name`.

    Raises:
        DataValidationError: they are not those that were verified, another version answers, or it is too slow.
    """
    with closing(ServedModel(name)) as served:
        for verdict in served.check(expected.reference, version.target, version.triton_version):
            logger.info("%s, %s: %s", name, verdict.name, verdict.sentence)
        latency = served.latency(list(expected.reference.inputs))
    if expected.answers is not None:
        logger.info(check_answers(name, expected.answers, expected.bottle, expected.answers.spec, version.target))
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
