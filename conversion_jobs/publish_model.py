"""Publish a packaged model: the next version in the model storage and in MLflow's registry."""

from __future__ import annotations

import hashlib
import json
import logging
import tempfile
from pathlib import Path
from typing import Literal
from zipfile import ZipFile

from pydantic import Field

from conversion_jobs.publishing.loaded_classifier import GRAPH_FILE
from conversion_jobs.publishing.mlflow_model import CARD_FILE, META_FILE, PublishedModel, model_files
from conversion_jobs.publishing.mlflow_registry import RegisteredVersion, register
from conversion_jobs.publishing.model_card import Verdict, model_card, read_evaluated
from conversion_jobs.publishing.release_provenance import Release, statement
from conversion_jobs.publishing.signature import Signer, sign_archive, signer_of_settings
from conversion_jobs.tensorrt.version import TEST_DOUBLE
from jobkit import job, settings
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment
from jobkit.files import sha256_of
from jobkit.model_spec import SPEC_FILE, parse_spec
from jobkit.model_storage import ARCHIVE, ModelStorage, Published
from jobkit.paths import checked_name
from jobkit.tracking import server_errors, training_run
from jobkit.unpack import open_archive
from nightshift_common.archive import CHUNK, copy_entry
from nightshift_common.options.conversion import ModelOptions, Target
from nightshift_common.verified_examples import VERIFIED_FILE, read_examples

logger = logging.getLogger("conversion_jobs.publish_model")


class Arguments(job.Arguments, ModelOptions):
    """Upload a package to the model storage, which gives it the next semantic version.

    With a key in `NIGHTSHIFT_SIGNING_KEY`, or a token in `NIGHTSHIFT_SIGNING_TOKEN_FILE`, the package is signed, and
    in it `provenance.json`: where it comes from.
    """

    archive: str = Field(description="the package's key in the bottle")
    sha256: str = Field(pattern="^[0-9a-f]{64}$", description="of the package")
    target: Target = Field("onnx", description="what the package holds")
    experiment: str = Field(description="what was packaged: models/<group>/<experiment>")
    snapshot_id: str | None = Field(None, description="what it was trained on or verified with; none for a head")
    record: str | None = Field(None, description="for tensorrt: the plan's record in the bottle, from build_plan")
    evaluation: str | None = Field(None, description="the evaluation that the gate judged: key in the bottle")
    decision: Literal["promote", "reject"] | None = Field(None, description="the gate's")
    reasons: str | None = Field(None, description="the gate's, a sentence a rule")


class Result(job.Result):
    """The version that the package has; published again, it is the same."""

    version: str
    triton_version: int
    already_published: bool
    signed: bool = Field(description="whether the package was signed")


def run(arguments: Arguments, context: job.Context) -> Result:
    """Check the package, sign it where there is a key or an identity, upload it, register the version."""
    model = checked_name(arguments.model_name, "model name")
    experiment = Experiment(arguments.experiment)
    archive = context.bottle.local(arguments.archive)
    if (actual := sha256_of(archive)) != arguments.sha256:
        raise DataValidationError(
            f"{arguments.archive} is {actual}, not {arguments.sha256}: another run has packaged over it; package again"
        )
    refuse_test_double(archive)
    signer = signer_of_settings()
    if signer is None:
        logger.warning("the package is not signed: there is no %s", settings.SIGNING_KEY)
    with tempfile.TemporaryDirectory(prefix="nightshift-publish-") as scratch, ModelStorage() as storage:
        upload = archive if signer is None else signed(archive, Path(scratch), signer, model, context, arguments)
        sha256 = sha256_of(upload)
        published = storage.upload(model, upload, sha256)
        if published.target != arguments.target:
            raise DataValidationError(
                f"{arguments.archive} holds a model for {published.target}, not for {arguments.target}"
            )
        known = " already" if published.already_published else ""
        logger.info("%s is%s version %s of %s", arguments.archive, known, published.version, model)
        if context.is_tracked:
            track(context, storage, model, published, experiment, arguments, sha256)
    return Result(
        version=published.version,
        triton_version=published.triton_version,
        already_published=published.already_published,
        signed=signer is not None,
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


def signed(archive: Path, folder: Path, signer: Signer, model: str, context: job.Context, arguments: Arguments) -> Path:
    """Return the package in `folder`, signed, with where it comes from."""
    runs = {}
    if context.is_tracked:
        tracking = context.tracking
        runs = {"publish": tracking.run_id} | ({"night": tracking.parent_id} if tracking.parent_id else {})
    name, digest = model_file(archive)
    known = arguments.model_dump(include=set(Release.model_fields) - {"sha256"})
    release = Release(model=model, model_file=name, sha256=digest, **known)
    target = folder / "signed.zip"
    sign_archive(archive, target, model, signer, statement(context.bottle, release, context.task_instance, runs))
    return target


def model_file(archive: Path) -> tuple[str, str]:
    """Return name and SHA-256 of the model in a package."""
    with open_archive(archive, ARCHIVE, archive.name) as found:
        names = [name for name in found.namelist() if name in ("model.onnx", "model.plan")]
        if len(names) != 1:
            raise DataValidationError(f"{archive.name} must hold one model.onnx or model.plan, not {names}")
        digest = hashlib.sha256()
        with found.open(names[0]) as source:
            while chunk := source.read(CHUNK):
                digest.update(chunk)
        return names[0], digest.hexdigest()


def track(
    context: job.Context,
    storage: ModelStorage,
    model: str,
    published: Published,
    experiment: Experiment,
    arguments: Arguments,
    sha256: str,
) -> None:
    """Register the version in MLflow, as one of the run that trained it, with its card and what MLflow loads it from.

    Its source is a folder of the run's artifacts (`mlflow_model.py`), since MLflow takes no address of another server.
    What came without a training of ours (imported weights) is a version of this job's run. A retry writes the same
    files again, the graph only where it is not whole, and registers nothing twice.
    """
    made_from = {
        "snapshot_id": arguments.snapshot_id or "",
        "experiment": experiment.folder,
        "target": arguments.target,
        "sha256": sha256,
        "archive": storage.address(model, published.version),
    }
    tracking, folder = context.tracking, f"versions/{published.version}"
    found = training_run(tracking.client, str(context.bottle), experiment.folder)
    home = tracking.another(found.run_id, found.experiment_id) if found else tracking
    said = read_published(context.bottle.local(arguments.archive), model, published.version, arguments.target)
    evaluated = read_evaluated(context.bottle, arguments.evaluation) if arguments.evaluation else None
    verdict = Verdict(evaluated=evaluated, decision=arguments.decision, reasons=arguments.reasons)
    card = model_card(model, published.version, arguments.target, said.meta, verdict)
    with tempfile.TemporaryDirectory(prefix="nightshift-graph-") as scratch:
        graph = loadable_graph(context, said, experiment, arguments.archive, Path(scratch))
        if graph is not None:
            home.large_artifact(graph, folder, GRAPH_FILE)
    texts = {META_FILE: json.dumps(said.meta, indent=2) + "\n", CARD_FILE: card}
    for name, text in (texts | model_files(said, folder, home.run_id, has_graph=graph is not None)).items():
        home.text(text, f"{folder}/{name}")
    with server_errors("finding the run's artifacts"):
        source = f"{tracking.client.get_run(home.run_id).info.artifact_uri}/{folder}"
    registered = RegisteredVersion(model, published.version, source, home.run_id, card, made_from)
    number = register(tracking.client, registered)
    tracking.tags({"model": model, "version": published.version, "registry_version": number, **made_from})


def read_published(archive: Path, model: str, version: str, target: str) -> PublishedModel:
    """Return what a package says of the version that it became."""
    with open_archive(archive, ARCHIVE, archive.name) as files:
        names = set(files.namelist())
        meta = json.loads(files.read(META_FILE))
        spec = parse_spec(files.read(SPEC_FILE), f"{SPEC_FILE} in {archive.name}") if SPEC_FILE in names else None
        examples = read_examples(files.read(VERIFIED_FILE)) if VERIFIED_FILE in names else None
    return PublishedModel(model, version, target, meta, spec, examples)


def loadable_graph(
    context: job.Context, said: PublishedModel, experiment: Experiment, archive: str, scratch: Path
) -> Path | None:
    """Return the graph that MLflow will load: the package's, or the one that its plan was built from.

    None where that one is no longer there: the version is then registered with its signature alone.
    """
    if said.target == "onnx":
        with open_archive(context.bottle.local(archive), ARCHIVE, archive) as files, files.open(GRAPH_FILE) as source:
            copy_entry(source, files.getinfo(GRAPH_FILE), scratch / GRAPH_FILE, len)
        return scratch / GRAPH_FILE
    graph = context.bottle.local(experiment.onnx) if context.bottle.exists(experiment.onnx) else None
    if graph is None or sha256_of(graph) != said.meta["onnx_sha256"]:
        logger.warning("%s is not what the plan was built from: MLflow cannot load this version", experiment.onnx)
        return None
    return graph


if __name__ == "__main__":
    job.main(Arguments, run)
