"""Half precision: which nodes have to stay in FP32, and the graph in half precision that TensorRT 11 needs."""

from __future__ import annotations

import logging
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conversion_jobs.onnx.graph import append_metadata, interface
from conversion_jobs.verification.record import FP16Risk
from jobkit.errors import ConfigurationError, DataValidationError

# Where sums of many values or exponentials lose what half precision has: what the field keeps in FP32 first.
SENSITIVE = frozenset(
    {"LayerNormalization", "InstanceNormalization", "Softmax", "ReduceMean", "ReduceSum", "Pow", "Exp"}
)


def fp32_layers(graph: Any, risks: Sequence[FP16Risk]) -> list[str]:
    """Return the nodes of an `onnx.ModelProto` to keep in FP32: those at risk of overflow, and sensitive operators."""
    at_risk = {risk.node for risk in risks}
    named = [node for node in graph.graph.node if node.name]
    return [node.name for node in named if node.name in at_risk or node.op_type in SENSITIVE]


def to_half(source: Path, target: Path, calibration: NDArray[np.float32], keep: Sequence[str]) -> None:
    """Write the graph at `source` to `target` in half precision, by ModelOpt's AutoCast on the CPU.

    Inputs and outputs stay float32; so do the nodes named in `keep`, and those whose values, for the real inputs
    `calibration` [n, ...], are too large. The metadata goes along.

    Raises:
        ConfigurationError: nvidia-modelopt is not installed.
        DataValidationError: AutoCast does not take the graph.
    """
    import onnx

    try:
        from modelopt.onnx.autocast import convert_to_mixed_precision  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigurationError(f"half precision for TensorRT 11 needs nvidia-modelopt: {error}") from error
    logging.getLogger("modelopt.onnx").handlers.clear()  # its lines go through the job's log
    original = onnx.load(str(source), load_external_data=False)
    known = interface(original)
    examples = target.with_suffix(".npz")
    arrays: dict[str, Any] = {known.inputs[0].name: calibration}
    np.savez(examples, **arrays)
    try:
        converted = convert_to_mixed_precision(
            str(source), low_precision_type="fp16", keep_io_types=True, calibration_data=str(examples),
            nodes_to_exclude=[f"^{re.escape(name)}$" for name in keep] or None,
        )  # fmt: skip
    except Exception as error:  # its errors share no base class
        raise DataValidationError(f"AutoCast does not take {source.name}: {error}") from error
    finally:
        examples.unlink()
    del converted.metadata_props[:]
    onnx.save(converted, str(target))
    append_metadata(target, known.metadata)
