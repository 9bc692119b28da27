"""Bring an Ultralytics detector into the bottle as an experiment: part of `import_weights`, environment detection.

What is written is TorchScript and a spec: export, verification, packaging and serving then need no Ultralytics.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

from jobkit.bottle import Bottle
from jobkit.detection.torchscript import detector_spec, traced
from jobkit.detection.ultralytics_weights import load_detector
from jobkit.errors import DataValidationError
from jobkit.experiment import Experiment
from jobkit.model_spec import DetectorSpec, NonMaxSuppression


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
    detector = load_detector(weights, img_size)
    if labels and len(labels) != len(detector.labels):
        raise DataValidationError(f"{weights.name} has {len(detector.labels)} classes, but {len(labels)} are named")
    with tempfile.TemporaryDirectory(prefix="nightshift-import-") as folder:
        script = Path(folder) / "model.pt"
        traced(detector, img_size).save(str(script))
        bottle.put(experiment.torchscript, script)
    spec = detector_spec(detector, experiment.group, img_size, suppression)
    spec = spec.model_copy(update={"labels": labels or detector.labels})
    bottle.write(experiment.spec, spec.model_dump_json(indent=2) + "\n")
    return spec
