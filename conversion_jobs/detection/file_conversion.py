"""An ONNX file of a detector compared with Ultralytics' weights: what `test_onnx` does for detectors.

Runs in the environment `detection`; nothing of a bottle or of Airflow is needed.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conversion_jobs.detection.export import detector_checks, mask_verdicts
from conversion_jobs.onnx.session import OnnxModel
from conversion_jobs.sandboxed.answering import answer_detector_file, outputs_of, stored
from conversion_jobs.verification.checks import Verdict, judge_all
from jobkit.detection.torchscript import detector_spec
from jobkit.errors import DataValidationError
from jobkit.model_spec import NonMaxSuppression
from jobkit.sandbox import runner
from nightshift_common.options.weights import SourceOptions

Array = NDArray[np.float32]


def compare_detector_file(
    weights: Path, options: SourceOptions, model: OnnxModel, inputs: Array, names: list[str], atol: float, rtol: float
) -> list[Verdict]:
    """Return how far the ONNX model is from the detector in `weights`, for the same `inputs` [n, 3, H, W].

    Raises:
        DataValidationError, ConfigurationError: see `load_detector`.
    """
    with stored(inputs) as path:
        how = {"weights": weights, "options": options, "inputs": path}
        with runner.run(answer_detector_file, how, reads=[weights, path]) as done:
            wanted, detector = outputs_of(done, len(inputs)), done.value.detector
    if detector is None:
        raise DataValidationError(f"{weights} does not say what it is")
    spec = detector_spec(detector.task, detector.labels, "", options.img_size, NonMaxSuppression.of(options))
    found = model.run_all(inputs, min(2, len(inputs)))
    verdicts = judge_all(detector_checks(spec, atol, rtol), wanted[0], found[0], names)
    return verdicts + mask_verdicts(spec, wanted, found, names)
