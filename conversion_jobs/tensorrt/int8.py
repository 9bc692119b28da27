"""INT8: the graph with quantization nodes (Q/DQ) and scales, calibrated on pictures that verify nothing."""

from __future__ import annotations

import logging
import shutil
import tempfile
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conversion_jobs.onnx.graph import append_metadata, interface, read_graph
from conversion_jobs.tensorrt.version import TensorRTVersion
from conversion_jobs.verification.golden_inputs import choose
from jobkit.bottle import Bottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment
from jobkit.model_spec import ArraySpec, HeadSpec, Spec, prepare
from jobkit.snapshot import read_snapshot

OLDEST = (10, 0)  # quantized graphs have opset 19, which the parser of 8.6 does not read


def check_int8(version: TensorRTVersion) -> None:
    """Refuse a version that does not read quantized graphs.

    Raises:
        ConfigurationError: it is older than 10.0.
    """
    if version.release < OLDEST:
        raise ConfigurationError(f"TensorRT {version} does not read quantized graphs (opset 19): int8 takes 10.0")


def calibration_inputs(
    bottle: Bottle, experiment: Experiment, spec: Spec, snapshot_id: str | None, count: int
) -> NDArray[np.float32]:
    """Return `count` inputs (all, where there are fewer) as float32 [n, *input_shape], from all classes in turn.

    They are pictures of the snapshot's validation part, and of its training part where those are too few; never golden
    ones, with which the plan is judged afterwards.

    Raises:
        ConfigurationError: no snapshot, or a model that takes no pictures.
        DataValidationError: the snapshot is not there or has golden pictures only, or a picture cannot be decoded.
    """
    if isinstance(spec, HeadSpec | ArraySpec):
        raise ConfigurationError("int8 is calibrated with pictures: this model takes none, build it in fp16")
    if snapshot_id is None:
        raise ConfigurationError("int8 is calibrated with pictures: --snapshot_id says of which snapshot")
    snapshot = read_snapshot(bottle, experiment.group, snapshot_id)
    parts = [part for part in (snapshot.split("val"), snapshot.split("train")) if part]
    if not parts:
        raise DataValidationError(
            f"all pictures of the snapshot {snapshot_id} are golden: none is left to calibrate int8 with"
        )
    samples = [sample for part in parts for sample in choose(part, count)][:count]
    return np.stack([prepare(bottle.local(sample.path), spec.preprocessing) for sample in samples])


def to_int8(source: Path, target: Path, calibration: NDArray[np.float32], *, half: bool) -> None:
    """Write the graph at `source` to `target` with Q/DQ nodes, by ModelOpt on the CPU.

    Weights get a scale a channel, activations one a tensor (entropy), all symmetric, as TensorRT wants it. Inputs and
    outputs stay float32. What is not quantized stays in FP32, or with `half` becomes FP16: a strongly typed network
    has no other way to say so. The metadata goes along.

    Raises:
        ConfigurationError: nvidia-modelopt is not installed.
        DataValidationError: ModelOpt does not take the graph.
    """
    import onnx

    try:
        from modelopt.onnx.quantization import quantize  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigurationError(f"int8 needs nvidia-modelopt: {error}") from error
    logging.getLogger("modelopt.onnx").handlers.clear()  # its lines go through the job's log
    known = interface(read_graph(source))
    batch = known.inputs[0].shape[0] or 1
    count = max(batch, len(calibration) // batch * batch)
    with tempfile.TemporaryDirectory(prefix="nightshift-int8-", dir=target.parent) as folder:
        copy, made = Path(folder) / "source.onnx", Path(folder) / "int8.onnx"  # it writes beside what it reads
        shutil.copyfile(source, copy)
        try:
            quantize(
                str(copy), quantize_mode="int8", calibration_data={known.inputs[0].name: np.resize(
                    calibration, (count, *calibration.shape[1:]))},
                calibration_method="entropy", calibration_eps=["cpu"], high_precision_dtype="fp16" if half else "fp32",
                output_path=str(made), log_level="WARNING",
            )  # fmt: skip
        except Exception as error:  # its errors share no base class
            raise DataValidationError(f"ModelOpt does not quantize {source.name}: {error}") from error
        quantized = onnx.load(str(made))
    if not any(node.op_type == "QuantizeLinear" for node in quantized.graph.node):
        raise DataValidationError(f"ModelOpt found nothing to quantize in {source.name}: build it in fp16")
    del quantized.metadata_props[:]
    onnx.save(quantized, str(target))
    append_metadata(target, known.metadata)
