"""Package a verified graph or plan for Triton: the folder `inference_model/` with its archives."""

from __future__ import annotations

import json
import logging
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field, model_validator

from conversion_jobs.onnx.graph import GraphInterface, interface, read_graph, structure_sha256
from conversion_jobs.publishing.package_archive import write_archive
from conversion_jobs.tensorrt.plan import Plan, PlanPaths
from conversion_jobs.triton.model_config import LABELS_FILE, Device, contradictions, model_config, parse, to_text
from conversion_jobs.triton.served_model import Reference
from conversion_jobs.triton.tuning import Tuning, tuned
from conversion_jobs.verification.record import passed_verification, read_model
from jobkit import job
from jobkit.bottle import Bottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment, read_spec
from jobkit.files import sha256_of
from jobkit.model_spec import SPEC_FILE, DetectorSpec, ModelSpec, Spec, described_input
from jobkit.paths import checked_name, inference_model
from jobkit.sbom import SBOM_FILE, ModelFacts, model_sbom
from nightshift_common.options.conversion import PackageOptions
from nightshift_common.options.serving import ServingOptions
from nightshift_common.verified_examples import VERIFIED_FILE, VerifiedExamples, fitting, write_examples

logger = logging.getLogger("conversion_jobs.package_model")


TUNING_FILE = "tuning.json"


class Arguments(job.Arguments, PackageOptions, ServingOptions):
    """Put a verified graph or plan, its configuration for Triton and its description into one archive."""

    experiment: str = Field(description="the experiment's folder in the bottle: models/<group>/<experiment>")
    record: str | None = Field(None, description="for tensorrt: the plan's record in the bottle, from build_plan")
    device: Device = Field("auto", description="where instances run; auto: on a GPU where Triton has one")

    @model_validator(mode="after")
    def _plan_has_a_record(self) -> Arguments:
        if (self.target == "tensorrt") != (self.record is not None):
            raise ValueError("--target tensorrt needs --record, and --target onnx has none")
        return self


class Result(job.Result):
    """The package; keys in the bottle."""

    folder: str
    archive: str
    sha256: str = Field(description="of the archive: the same graph and options give the same")


@dataclass(frozen=True)
class Artifact:
    """What is served: a verified graph, or a verified plan of it."""

    file: Path
    name: str
    archive: str
    max_batch_size: int
    device: Device
    facts: dict[str, Any]
    profiles: int = 1


def run(arguments: Arguments, context: job.Context) -> Result:
    """Check that the artifact is the verified one, generate what Triton needs, write the folder; the archive last."""
    name = checked_name(arguments.model_name, "model name")
    experiment, bottle = Experiment(arguments.experiment), context.bottle
    spec = read_spec(bottle, experiment)
    onnx = bottle.local(experiment.onnx)
    digest = sha256_of(onnx)
    verified = passed_verification(bottle, experiment.onnx, experiment.verification, digest, "verify_onnx")
    model = read_graph(onnx)
    graph = interface(model)
    if arguments.record is None:
        artifact = Artifact(onnx, "model.onnx", "model_onnx.zip", arguments.max_batch_size, arguments.device, {})
    else:
        artifact = verified_plan(bottle, arguments.record, digest, arguments.max_batch_size)
    serving = ServingOptions.model_validate(arguments.model_dump(include=set(ServingOptions.model_fields)))
    tuning = None
    if arguments.tuning is not None:
        tuning = read_model(bottle, arguments.tuning, Tuning, "run tune_model")
        refuse_foreign_tuning(tuning, arguments, structure_sha256(model), artifact)
        serving = tuned(serving, tuning)
    config = model_config(
        graph, name, target=arguments.target, max_batch_size=artifact.max_batch_size, device=artifact.device,
        profiles=artifact.profiles,
        has_labels=bool(spec.labels) and not isinstance(spec, DetectorSpec),  # Triton's labels are for one vector
        serving=serving,
    )  # fmt: skip
    if problems := contradictions(parse(to_text(config)), graph):
        raise DataValidationError(f"the configuration of {name} contradicts its graph: {'; '.join(problems)}")
    described = meta(name, spec, graph, experiment, digest)
    if verified.verified_against is not None:
        described["verified_against"] = verified.verified_against
    if tuning is not None:
        described["tuning"] = {
            **tuning.chosen.model_dump(), "clients": tuning.clients, "throughput": tuning.throughput,
            "gain": round(tuning.gain, 3), "p99_ms": tuning.p99,
        }  # fmt: skip
    texts = {
        "config.pbtxt": to_text(config),
        "meta.json": json.dumps(described | artifact.facts, indent=2) + "\n",
        SBOM_FILE: sbom(bottle, described, artifact, spec),
        SPEC_FILE: spec.model_dump_json(indent=2) + "\n",
    }
    if spec.labels:
        texts[LABELS_FILE] = "".join(f"{label}\n" for label in spec.labels)
    if tuning is not None:
        texts[TUNING_FILE] = tuning.model_dump_json(indent=2) + "\n"
    folder = inference_model(experiment.group)
    archive, digest = write_package(bottle, folder, artifact, texts, verified_examples(bottle, experiment, graph))
    logger.info("%s: %s", archive, digest)
    return Result(folder=folder, archive=archive, sha256=digest)


def refuse_foreign_tuning(tuning: Tuning, arguments: Arguments, structure: str, artifact: Artifact) -> None:
    """Refuse settings that were found for something else; another training of the same architecture is the same.

    Raises:
        DataValidationError: they are for another target, graph, GPU or precision; the message names what differs.
    """
    facts = {name: artifact.facts.get(name) for name in ("compute_capability", "precision")}
    wanted = {"target": arguments.target, "structure_sha256": structure, **facts}
    found = {name: getattr(tuning, name) for name in wanted}
    if wrong := [f"{name} {found[name]}, not {value}" for name, value in wanted.items() if found[name] != value]:
        raise DataValidationError(
            f"{arguments.tuning} was tuned for another model ({'; '.join(wrong)}): run tune_model for this one"
        )


def verified_examples(bottle: Bottle, experiment: Experiment, graph: GraphInterface) -> VerifiedExamples | None:
    """Return a few of the inputs that `verify_onnx` has compared, with their outputs; None where there are none."""
    if not bottle.exists(experiment.reference):
        logger.warning("%s is missing: the package has no verified examples", experiment.reference)
        return None
    reference = Reference(bottle.local(experiment.reference))
    count = fitting(reference.inputs)
    if not count or len(graph.inputs) != 1:
        logger.warning("the package has no verified examples: the inputs are too large, or there are several")
        return None
    outputs = {graph.outputs[0].name: reference.outputs, **reference.further}
    return VerifiedExamples(
        {graph.inputs[0].name: reference.inputs[:count]},
        {name: array[:count] for name, array in outputs.items()},
        reference.output,
    )


def write_package(
    bottle: Bottle, folder: str, artifact: Artifact, texts: dict[str, str], examples: VerifiedExamples | None = None
) -> tuple[str, str]:
    """Write the artifact, `meta.json` and the archive of all to `folder`; return the archive's key and sha256."""
    with tempfile.TemporaryDirectory(prefix="nightshift-package-") as scratch:
        files = {artifact.name: artifact.file}
        for file_name, text in texts.items():
            files[file_name] = Path(scratch) / file_name
            files[file_name].write_text(text, encoding="utf-8")
        if examples is not None:
            files[VERIFIED_FILE] = Path(scratch) / VERIFIED_FILE
            write_examples(files[VERIFIED_FILE], examples)
        archive = Path(scratch) / artifact.archive
        write_archive(archive, files)
        for file_name in ("meta.json", artifact.name):
            bottle.put(f"{folder}/{file_name}", files[file_name])
        key = f"{folder}/{artifact.archive}"
        bottle.put(key, archive)
        return key, sha256_of(archive)


def sbom(bottle: Bottle, described: dict[str, Any], artifact: Artifact, spec: Spec) -> str:
    """Return the package's `sbom.cdx.json`, with what the training left about itself, if it was one of ours."""
    metrics = Experiment(described["experiment"]).metrics
    trained = json.loads(bottle.read(metrics)) if bottle.exists(metrics) else {}
    started_from = spec.initial_weights if isinstance(spec, ModelSpec) else None
    facts = ModelFacts(
        name=described["model_name"],
        experiment=described["experiment"],
        architecture=spec.architecture,
        task=spec.task if isinstance(spec, DetectorSpec) else "classification",
        files={artifact.name: artifact.facts.get("plan_sha256", described["onnx_sha256"])}
        | {"model.onnx": described["onnx_sha256"]},
        inputs=[f"{entry['dtype']} {entry['shape']}" for entry in described["inputs"]],
        outputs=[f"{entry['dtype']} {entry['shape']}" for entry in described["outputs"]],
        snapshot_id=spec.snapshot_id,
        provenance=trained.get("provenance", {}),
        initial_weights=started_from.model_dump() if started_from else {},
    )
    return model_sbom(facts)


def verified_plan(bottle: Bottle, record_key: str, onnx_sha256: str, max_batch_size: int) -> Artifact:
    """Return a plan that `verify_plan` passed and that was built from the present graph.

    Raises:
        DataValidationError: it was not verified, failed, or is of another graph.
        ConfigurationError: Triton would put larger batches together than the plan takes.
    """
    record = read_model(bottle, record_key, Plan, "run build_plan")
    paths = PlanPaths(record_key.rpartition("/")[0])
    plan = bottle.local(paths.plan)
    passed_verification(bottle, paths.plan, paths.verification, sha256_of(plan), "verify_plan")
    if record.onnx_sha256 != onnx_sha256:
        raise DataValidationError(
            f"{paths.plan} was built from another graph ({record.onnx_sha256}): run build_plan again"
        )
    if max_batch_size > record.largest_batch:
        raise ConfigurationError(f"--max_batch_size {max_batch_size} is above the plan's {record.largest_batch}")
    facts = {
        "tensorrt": record.tensorrt,
        "gpu": record.gpu,
        "compute_capability": record.compute_capability,
        "precision": record.precision,
        "plan_sha256": record.sha256,
        **({"version_compatible": True} if record.version_compatible else {}),
        **({"made_by_test_double": True} if record.made_by_test_double else {}),
    }
    return Artifact(plan, "model.plan", "model_trt.zip", max_batch_size, "gpu", facts, max(1, len(record.profiles)))


def meta(name: str, spec: Spec, graph: GraphInterface, experiment: Experiment, digest: str) -> dict[str, Any]:
    """Return what `meta.json` says; it holds no time and no version (model storage adds `model_version`)."""
    started = spec.initial_weights if isinstance(spec, ModelSpec) else None
    return {
        "model_name": name,
        "group": spec.group,
        "architecture": spec.architecture,
        "labels": spec.labels,
        "num2label": {str(index): label for index, label in enumerate(spec.labels)},
        "output": spec.output,
        **described_input(spec),
        **({"initial_weights": started.model_dump()} if started else {}),
        "inputs": [_described(tensor.name, tensor.dtype, tensor.shape) for tensor in graph.inputs],
        "outputs": [_described(tensor.name, tensor.dtype, tensor.shape) for tensor in graph.outputs],
        "opset": graph.opset,
        "snapshot_id": spec.snapshot_id,
        "experiment": experiment.folder,
        "onnx_sha256": digest,
    }


def _described(name: str, dtype: str, shape: tuple[int | None, ...]) -> dict[str, Any]:
    return {"name": name, "dtype": dtype, "shape": [-1 if size is None else size for size in shape]}


if __name__ == "__main__":
    job.main(Arguments, run)
