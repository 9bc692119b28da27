"""What an export tells beside the graph."""

from __future__ import annotations

import logging
import re

from pydantic import BaseModel

from jobkit.errors import DataValidationError
from nightshift_common.options.conversion import ExporterName


class Exported(BaseModel):
    """Which of torch's exporters made a graph, and why the other's was not taken, where it was tried."""

    exporter: ExporterName
    opset: int
    refused: dict[ExporterName, str] = {}

    def report(self, logger: logging.Logger, asked: int) -> None:
        """Say it, and where the opset is not the one that was asked for."""
        for name, reason in self.refused.items():
            logger.warning("made by the exporter %s; that of %s was refused: %s", self.exporter, name, reason)
        if self.opset != asked:
            logger.warning("the graph has opset %d, not %d: its exporter knows no way down", self.opset, asked)


def refuse_older_opset(error: Exception, opset: int) -> None:
    """Refuse an opset that has no operator for what the model computes, where `error` says that a newer one has.

    Raises:
        DataValidationError: it says so. Another exporter would not help: the newer one starts at opset 18.
    """
    import torch

    needed = re.search(r"'([^']+)'.* added in version (\d+)", str(error))
    if isinstance(error, torch.onnx.errors.UnsupportedOperatorError) and needed:
        raise DataValidationError(
            f"the model computes {needed[1]}, which needs opset {needed[2]}: opset {opset} cannot say it"
        ) from error
