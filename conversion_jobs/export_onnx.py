"""Export a trained or imported model: `python -m conversion_jobs.export_onnx --experiment models/<group>/<name>`."""

from __future__ import annotations

import logging

from pydantic import Field

from conversion_jobs.families.sources import SourceFile
from conversion_jobs.onnx.exported import Exported
from conversion_jobs.sandboxed.exporting import GRAPH, export_experiment
from jobkit import job
from jobkit.bottle import Bottle
from jobkit.experiment import Experiment, read_spec
from jobkit.files import sha256_of
from jobkit.model_spec import ModelSpec, Spec
from jobkit.sandbox import runner
from nightshift_common.options.conversion import ExportOptions

logger = logging.getLogger("conversion_jobs.export_onnx")


class Arguments(job.Arguments, ExportOptions):
    """Export the model of an experiment to one ONNX file with a free batch dimension."""

    experiment: str = Field(description="the experiment's folder in the bottle: models/<group>/<experiment>")


class Result(job.Result):
    """The exported graph."""

    onnx: str = Field(description="key in the bottle")
    sha256: str
    made: Exported = Field(description="the exporter that made it, its opset, and why the other exporter was refused")


def run(arguments: Arguments, context: job.Context) -> Result:
    """Build the model, load its weights, export, check, write to the bottle."""
    experiment = Experiment(arguments.experiment)
    spec = read_spec(context.bottle, experiment)
    source, origin = source_file(context.bottle, experiment, spec), {"experiment": experiment.folder}
    asked = {"opset": arguments.opset, "exporter": arguments.exporter}
    how = {"source": source, "spec": spec, "origin": origin, **asked}
    with runner.run(export_experiment, how, reads=[source.path]) as done:
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


def source_file(bottle: Bottle, experiment: Experiment, spec: Spec) -> SourceFile:
    """Return where the model of an experiment is: its checkpoint; of an imported one without, its TorchScript."""
    if bottle.exists(experiment.best_checkpoint) and isinstance(spec, ModelSpec):
        return SourceFile(bottle.local(experiment.best_checkpoint), "checkpoint")
    return SourceFile(bottle.local(experiment.torchscript), "torchscript")


if __name__ == "__main__":
    job.main(Arguments, run)
