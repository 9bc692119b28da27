"""Ultralytics' weights to an ONNX file and back to the comparison: what `torch2onnx` and `test_onnx` do for detectors.

Runs in the environment `detection`; nothing of a bottle or of Airflow is needed.
"""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conversion_jobs.detection.export import detector_checks, export_detector, mask_verdicts, source_outputs
from conversion_jobs.onnx.graph import compact_json
from conversion_jobs.onnx.session import OnnxModel
from conversion_jobs.verification.checks import Verdict, judge_all
from jobkit.detection.torchscript import Detector, detector_spec, traced
from jobkit.detection.ultralytics_weights import load_detector
from jobkit.files import atomic_file, sha256_of
from jobkit.model_spec import DetectorSpec, NonMaxSuppression, described_input
from nightshift_common.options.weights import SourceOptions

Array = NDArray[np.float32]


def write_detector_file(weights: Path, source: SourceOptions, output: Path, opset: int) -> None:
    """Write the detector in `weights` to `output` as ONNX, which says what it was made from.

    Raises:
        DataValidationError, ConfigurationError: see `load_detector`, `export_detector`.
    """
    detector, spec = _detector(weights, source)
    metadata = {
        "source": source.model_dump_json(include=set(SourceOptions.model_fields)),
        "weights": sha256_of(weights),
        "normalized": "false",
        "labels": compact_json(spec.labels),
        **{name: compact_json(value) for name, value in described_input(spec).items()},
    }
    with atomic_file(output.absolute()) as temporary, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        export_detector(traced(detector, source.img_size), spec, path, opset, metadata)
        shutil.copyfile(path, temporary)


def compare_detector_file(
    weights: Path, source: SourceOptions, model: OnnxModel, inputs: Array, names: list[str], atol: float, rtol: float
) -> list[Verdict]:
    """Return how far the ONNX model is from the detector in `weights`, for the same `inputs` [n, 3, H, W]."""
    detector, spec = _detector(weights, source)
    wanted, found = source_outputs(detector.module, spec, inputs), model.run_all(inputs, min(2, len(inputs)))
    verdicts = judge_all(detector_checks(spec, atol, rtol), wanted[0], found[0], names)
    return verdicts + mask_verdicts(spec, wanted, found, names)


def _detector(weights: Path, source: SourceOptions) -> tuple[Detector, DetectorSpec]:
    detector = load_detector(weights, source.img_size)
    return detector, detector_spec(detector, "", source.img_size, NonMaxSuppression.of(source))
