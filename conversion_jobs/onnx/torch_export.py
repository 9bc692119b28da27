"""Export by torch's newer exporter, the one on `torch.export` (`dynamo=True`)."""

from __future__ import annotations

import logging
import warnings
from pathlib import Path
from typing import TYPE_CHECKING

from conversion_jobs.onnx.mapped_file import KEPT, append_weight

if TYPE_CHECKING:
    from torch import Tensor, nn


def export_captured(
    model: nn.Module, example: Tensor, path: Path, input_name: str, outputs: list[str], opset: int
) -> None:
    """Write `model` to `path` as ONNX with a free batch; its weights go one by one from the model into the file.

    It makes opset 18; where its way down to `opset` fails, the graph keeps 18. What it notes at each node (paths of
    source files) is left out: the same weights give the same bytes.

    Raises:
        RuntimeError, TypeError, ValueError: the model cannot be captured or has no counterpart in ONNX.
    """
    import onnx_ir
    import torch
    from onnx_ir.passes.common import ClearMetadataAndDocStringPass

    quiet = logging.getLogger("onnxscript"), logging.getLogger("torch.onnx"), logging.getLogger("onnx_ir")
    levels = [logger.level for logger in quiet]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for logger in quiet:
            logger.setLevel(logging.ERROR)  # its ways down through the opsets; what came out is told by the caller
        try:
            program = torch.onnx.export(
                model, (example,), input_names=[input_name], output_names=outputs, opset_version=opset, dynamo=True,
                dynamic_shapes=({0: torch.export.Dim("N")},), verbose=False,
            )  # fmt: skip
        finally:
            for logger, level in zip(quiet, levels, strict=True):
                logger.setLevel(level)
    if program is None:
        raise RuntimeError("the exporter gave no graph")
    graph = ClearMetadataAndDocStringPass()(program.model).model.graph
    values = [*graph.initializers.values(), *graph.inputs, *graph.outputs]
    for value in [*values, *(output for node in graph.all_nodes() for output in node.outputs)]:
        value.metadata_props.clear()
    program.model.metadata_props.clear()
    weights = {name: value.const_value for name, value in graph.initializers.items() if value.const_value is not None}
    large = {name: weight for name, weight in weights.items() if weight.nbytes >= KEPT}
    for name in large:
        del graph.initializers[name]
    path.write_bytes(onnx_ir.to_proto(program.model).SerializeToString())
    with path.open("ab") as file:
        for name, weight in large.items():
            append_weight(file, name, weight.numpy())
