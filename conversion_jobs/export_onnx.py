"""Export a trained or imported model: `python -m conversion_jobs.export_onnx --experiment models/<group>/<name>`."""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from pathlib import Path

from pydantic import Field

from conversion_jobs.families.sources import SourceFile
from conversion_jobs.onnx.export import spec_metadata
from conversion_jobs.onnx.exported import Exported
from conversion_jobs.onnx.graph import append_metadata, interface, read_graph
from conversion_jobs.sandboxed.exporting import GRAPH, export_experiment
from jobkit import job
from jobkit.bottle import Bottle
from jobkit.errors import ConfigurationError
from jobkit.experiment import Experiment, read_spec
from jobkit.files import sha256_of
from jobkit.model_spec import ArraySpec, ModelSpec, Spec
from jobkit.sandbox import runner
from nightshift_common.options.conversion import ExportOptions

logger = logging.getLogger("conversion_jobs.export_onnx")


class Arguments(job.Arguments, ExportOptions):
    """Export the model of an experiment to one ONNX file, with a free batch where it takes any."""

    experiment: str = Field(description="the experiment's folder in the bottle: models/<group>/<experiment>")


class Result(job.Result):
    """The exported graph."""

    onnx: str = Field(description="key in the bottle")
    sha256: str
    made: Exported | None = Field(
        None, description="the exporter, its opset, why the other was refused; None: a graph of your own"
    )


def run(arguments: Arguments, context: job.Context) -> Result:
    """Build the model, load its weights, export, check, write to the bottle."""
    experiment = Experiment(arguments.experiment)
    spec = read_spec(context.bottle, experiment)
    if context.bottle.exists(experiment.own_graph):
        return put_own_graph(arguments, context, experiment, spec)
    source, origin = source_file(context.bottle, experiment, spec), {"experiment": experiment.folder}
    asked = {"opset": arguments.opset, "exporter": arguments.exporter, "dynamic": arguments.dynamic_size}
    how = {"source": source, "spec": spec, "origin": origin, **asked}
    with runner.run(export_experiment, how, reads=[source.path], modules=source.modules) as done:
        path = done.file(GRAPH)
        digest = sha256_of(path)
        context.bottle.put(experiment.onnx, path)
        made = done.value
        logger.info("%s: %.1f MB, opset %d", experiment.onnx, path.stat().st_size / 1e6, made.opset)
    made.report(logger, arguments.opset)
    if context.is_tracked:
        context.tracking.params({"opset": made.opset})
        tags = {"experiment": experiment.folder, "onnx_sha256": digest, "exporter": made.exporter}
        refused = {f"exporter_refused.{name}": reason for name, reason in made.refused.items()}
        context.tracking.tags(tags | refused)
    return Result(onnx=experiment.onnx, sha256=digest, made=made)


def put_own_graph(arguments: Arguments, context: job.Context, experiment: Experiment, spec: Spec) -> Result:
    """Take a graph of one's own as it is; only what it says of itself is added."""
    if arguments.dynamic_size:
        raise ConfigurationError("a graph of your own is served as it is: leave --dynamic_size out")
    with tempfile.TemporaryDirectory(prefix="nightshift-export-") as folder:
        path = Path(folder) / GRAPH
        shutil.copyfile(context.bottle.local(experiment.own_graph), path)
        append_metadata(path, {"experiment": experiment.folder} | spec_metadata(spec))
        opset = interface(read_graph(path)).opset
        digest = sha256_of(path)
        context.bottle.put(experiment.onnx, path)
    logger.info("%s: your own graph, as it is, opset %d", experiment.onnx, opset)
    if context.is_tracked:
        context.tracking.params({"opset": opset})
        context.tracking.tags({"experiment": experiment.folder, "onnx_sha256": digest})
    return Result(onnx=experiment.onnx, sha256=digest)


def source_file(bottle: Bottle, experiment: Experiment, spec: Spec) -> SourceFile:
    """Return where the model of an experiment is: its checkpoint; of an imported one without, its TorchScript."""
    if bottle.exists(experiment.best_checkpoint) and isinstance(spec, ModelSpec | ArraySpec):
        return SourceFile(bottle.local(experiment.best_checkpoint), "checkpoint", factory_of(bottle, experiment))
    return SourceFile(bottle.local(experiment.torchscript), "torchscript")


def factory_of(bottle: Bottle, experiment: Experiment) -> str | None:
    """Return the factory with which the weights were imported; None where they were not."""
    if not experiment.is_imported or not bottle.exists(experiment.config):
        return None
    found: str | None = json.loads(bottle.read(experiment.config)).get("factory")  # import_weights writes JSON
    return found


if __name__ == "__main__":
    job.main(Arguments, run)
