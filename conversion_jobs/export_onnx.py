"""Export a trained classifier to ONNX: `python -m conversion_jobs.export_onnx --experiment models/<group>/<name>`."""

from __future__ import annotations

import logging
import tempfile
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import Field

from conversion_jobs.experiment import Experiment, read_spec, sha256_of
from conversion_jobs.graph import add_metadata, compact_json, interface, read_graph
from jobkit import job
from jobkit.errors import DataRefused
from jobkit.modelspec import ModelSpec

if TYPE_CHECKING:
    from torch import nn

logger = logging.getLogger("conversion_jobs.export_onnx")
INPUT, OUTPUT = "input", "logits"


class Arguments(job.Arguments):
    """Export the best checkpoint of an experiment to one ONNX file with a free batch dimension."""

    experiment: str = Field(description="the experiment's folder in the bottle: models/<group>/<experiment>")
    opset: int = Field(17, ge=13, le=20, description="ONNX opset; 17 has layer norm as one node, which FP16 needs")


class Result(job.Result):
    """The exported graph."""

    onnx: str = Field(description="key in the bottle")
    sha256: str


def run(arguments: Arguments, context: job.Context) -> Result:
    """Build the model, load its weights, export, check, write to the bottle."""
    from jobkit.classifier import load_classifier

    experiment = Experiment(arguments.experiment)
    spec = read_spec(context.bottle, experiment)
    model = load_classifier(context.bottle.local(experiment.best_checkpoint), spec)
    with tempfile.TemporaryDirectory(prefix="nightshift-export-") as folder:
        path = Path(folder) / "model.onnx"
        export(model, spec, path, arguments.opset, {"experiment": experiment.folder})
        digest = sha256_of(path)
        context.bottle.put(experiment.onnx, path)
        logger.info("%s: %.1f MB, opset %d", experiment.onnx, path.stat().st_size / 1e6, arguments.opset)
    if context.is_tracked:
        context.tracking.params({"opset": arguments.opset})
        context.tracking.tags({"experiment": experiment.folder, "onnx_sha256": digest})
    return Result(onnx=experiment.onnx, sha256=digest)


def export(model: nn.Module, spec: ModelSpec, path: Path, opset: int, origin: dict[str, str]) -> None:
    """Write `model` (evaluation mode, float32 [N, C, H, W] -> [N, classes]) to `path` as ONNX.

    The file tells what it is: labels, preprocessing, snapshot and `origin` stand in its `metadata_props`. The same
    weights and arguments give the same bytes.

    Raises:
        DataRefused: the graph does not have the interface of `spec`.
    """
    import onnx
    import torch

    how = spec.preprocessing
    example = torch.zeros(2, how.channels, how.height, how.width)  # a batch of 1 would be taken for a constant
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the tracer's notes on shapes; verify_onnx tries several batch sizes
        # The exporter on torch.export takes 2 s longer to start and gives the same graph for these models.
        torch.onnx.export(
            model, (example,), str(path), input_names=[INPUT], output_names=[OUTPUT], opset_version=opset,
            dynamic_axes={INPUT: {0: "N"}, OUTPUT: {0: "N"}}, dynamo=False,
        )  # fmt: skip
    graph = onnx.load(str(path))
    add_metadata(graph, origin | spec_metadata(spec))
    onnx.save(graph, str(path))
    found = interface(read_graph(path))
    wanted = (None, len(spec.labels))
    if not found.has_free_batch or found.outputs[0].shape != wanted:
        raise DataRefused(f"the exported graph gives {found.outputs[0]}, not [?, {len(spec.labels)}] (one a label)")


def spec_metadata(spec: ModelSpec) -> dict[str, str]:
    """Return what an ONNX file says about its model; values that are no text are JSON."""
    return {
        "group": spec.group,
        "architecture": spec.architecture,
        "labels": compact_json(spec.labels),
        "preprocessing": compact_json(spec.preprocessing.model_dump()),
        "snapshot_id": spec.snapshot_id or "",
    }


if __name__ == "__main__":
    job.main(Arguments, run)
