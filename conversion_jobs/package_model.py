"""Package a verified graph for Triton: seed_003's `inference_model/` folder with `meta.json` and `model_onnx.zip`."""

from __future__ import annotations

import json
import logging
import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field

from conversion_jobs.archive import write_archive
from conversion_jobs.experiment import Experiment, read_spec, sha256_of
from conversion_jobs.graph import GraphInterface, interface, read_graph
from conversion_jobs.triton_config import LABELS_FILE, Device, contradictions, model_config, parse, to_text
from conversion_jobs.verification import passed_verification
from jobkit import job
from jobkit.errors import DataRefused
from jobkit.modelspec import SPEC_FILE, ModelSpec
from jobkit.paths import checked_name, inference_model

logger = logging.getLogger("conversion_jobs.package_model")


class Arguments(job.Arguments):
    """Put a verified graph, its configuration for Triton and its description into one archive for model storage."""

    experiment: str = Field(description="the experiment's folder in the bottle: models/<group>/<experiment>")
    model_name: str = Field(description="name in the model storage and in Triton")
    max_batch_size: int = Field(8, ge=1, le=1024, description="largest batch that Triton puts together")
    device: Device = Field("auto", description="where instances run; auto: on a GPU where Triton has one")


class Result(job.Result):
    """The package; keys in the bottle."""

    folder: str
    archive: str
    sha256: str = Field(description="of the archive: the same graph and options give the same")


def run(arguments: Arguments, context: job.Context) -> Result:
    """Check that the graph is the verified one, generate what Triton needs, write the folder; the archive last."""
    name = checked_name(arguments.model_name, "model name")
    experiment, bottle = Experiment(arguments.experiment), context.bottle
    spec = read_spec(bottle, experiment)
    graph_file = bottle.local(experiment.onnx)
    digest = sha256_of(graph_file)
    passed_verification(bottle, experiment.onnx, experiment.verification, digest, "verify_onnx")
    graph = interface(read_graph(graph_file))
    config = to_text(model_config(graph, name, max_batch_size=arguments.max_batch_size, device=arguments.device))
    if problems := contradictions(parse(config), graph):
        raise DataRefused(f"the configuration of {name} contradicts its graph: {'; '.join(problems)}")
    folder = inference_model(experiment.group)
    with tempfile.TemporaryDirectory(prefix="nightshift-package-") as scratch:
        files = {"model.onnx": graph_file}
        texts = {
            "config.pbtxt": config,
            "meta.json": json.dumps(meta(name, spec, graph, experiment, sha256_of(graph_file)), indent=2) + "\n",
            LABELS_FILE: "".join(f"{label}\n" for label in spec.labels),
            SPEC_FILE: spec.model_dump_json(indent=2) + "\n",
        }
        for file_name, text in texts.items():
            files[file_name] = Path(scratch) / file_name
            files[file_name].write_text(text, encoding="utf-8")
        archive = Path(scratch) / "model_onnx.zip"
        write_archive(archive, files)
        for file_name in ("meta.json", "model.onnx"):
            bottle.put(f"{folder}/{file_name}", files[file_name])
        bottle.put(f"{folder}/{archive.name}", archive)
        digest = sha256_of(archive)
    logger.info("%s/model_onnx.zip: %s", folder, digest)
    if context.is_tracked:
        context.tracking.params({"model_name": name, "max_batch_size": arguments.max_batch_size})
        context.tracking.tags({"experiment": experiment.folder, "archive_sha256": digest})
    return Result(folder=folder, archive=f"{folder}/model_onnx.zip", sha256=digest)


def meta(name: str, spec: ModelSpec, graph: GraphInterface, experiment: Experiment, digest: str) -> dict[str, Any]:
    """Return what `meta.json` says; it holds no time and no version (model storage adds `model_version`)."""
    return {
        "model_name": name,
        "group": spec.group,
        "architecture": spec.architecture,
        "labels": spec.labels,
        "num2label": {str(index): label for index, label in enumerate(spec.labels)},
        "preprocessing": spec.preprocessing.model_dump(),
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
