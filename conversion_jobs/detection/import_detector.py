"""Bring an Ultralytics detector into the bottle as an experiment: part of `import_weights`, environment detection.

What is written is TorchScript and a spec: export, verification, packaging and serving then need no Ultralytics.
"""

from __future__ import annotations

from pathlib import Path

from conversion_jobs.sandboxed.importing import SCRIPT, import_detector
from jobkit.bottle import Bottle
from jobkit.detection.torchscript import detector_spec
from jobkit.errors import DataValidationError
from jobkit.experiment import Experiment
from jobkit.model_spec import DetectorSpec, NonMaxSuppression
from jobkit.sandbox import runner


def write_detector(
    bottle: Bottle, experiment: Experiment, weights: Path, img_size: tuple[int, int], labels: list[str],
    suppression: NonMaxSuppression | None,
) -> DetectorSpec:  # fmt: skip
    """Write the TorchScript model and the spec, the spec last.

    Args:
        bottle: where to.
        experiment: its folder.
        weights: the checkpoint.
        img_size: height and width of the input, pixels.
        labels: class names; empty: those of the checkpoint.
        suppression: non-maximum suppression inside the graph, or none.

    Raises:
        DataValidationError: see `load_detector`; or the number of `labels` is not that of the classes.
    """
    with runner.run(import_detector, {"weights": weights, "img_size": img_size}, reads=[weights]) as done:
        found = done.value
        if labels and len(labels) != len(found.labels):
            raise DataValidationError(f"{weights.name} has {len(found.labels)} classes, but {len(labels)} are named")
        bottle.put(experiment.torchscript, done.file(SCRIPT))
    spec = detector_spec(found.task, labels or found.labels, experiment.group, img_size, suppression)
    bottle.write(experiment.spec, spec.model_dump_json(indent=2) + "\n")
    return spec
