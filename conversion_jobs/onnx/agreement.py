"""Whether what was just made of a model answers as it does, graph or trace: what chooses between exporters.

It needs no pictures, so it is not the proof of a conversion: that is `verify_onnx`, with real ones.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from conversion_jobs.families.outputs import flattened
from conversion_jobs.onnx.session import OnnxModel
from conversion_jobs.verification.checks import Close, judge_all
from jobkit.errors import DataValidationError

if TYPE_CHECKING:
    from torch import nn

Array = NDArray[np.float32]
BATCHES = (1, 3)  # exporters trace with 2
# Relative to the largest value, since nothing is known of their size: right graphs are 1e-5 off and less; a size or a
# branch that was traced as a constant, by as much as the values themselves.
RELATIVE = 1e-3
ROUNDING = 2.0**-22  # two of the inputs' last bits
SLACK = 10  # a graph rounds at every node, not at its input alone


@dataclass(frozen=True)
class Wanted:
    """What a model gives for noise: `outputs` for `inputs`, float32 [3, ...], and how far rounding alone moves each.

    Of a model with a fixed batch there are as many as that, and `batches` is that alone.

    Noise is not what a model was trained on: where its values grow from layer to layer, two right programs differ.
    """

    inputs: Array
    outputs: list[Array]
    rounding: list[float]
    batches: tuple[int, ...]


def wanted_of(model: nn.Module, shape: tuple[int, ...], batch: int | None = None) -> Wanted:
    """Return what `model` gives for inputs of noise [3, *shape], of a fixed `batch` as many; the same ones every time.

    Raises:
        DataValidationError: the model itself does not take this batch.
    """
    random = np.random.default_rng(0)
    batches = BATCHES if batch is None else (batch,)
    inputs = random.standard_normal((max(batches), *shape), np.float32)
    outputs = answers(model, inputs)
    signs = random.choice(np.array([-1, 1], np.float32), inputs.shape)
    moved = answers(model, inputs * (1 + np.float32(ROUNDING) * signs))
    rounding = [float(np.abs(other - output).max()) for other, output in zip(moved, outputs, strict=True)]
    return Wanted(inputs, outputs, rounding, batches)


def answers(model: nn.Module, inputs: Array) -> list[Array]:
    """Return the outputs of `model` for `inputs` in one batch.

    Raises:
        DataValidationError: the model itself does not take this batch.
    """
    import torch

    try:
        with torch.no_grad():
            return [tensor.float().numpy() for tensor in flattened(model(torch.from_numpy(inputs)))]
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataValidationError(f"the model itself fails on an input {list(inputs.shape)}: {reason}") from error


def disagreement(wanted: Wanted, run: Callable[[Array, int], list[Array]]) -> str | None:
    """Return how another program differs from the model that gives what is `wanted`; None: it does not.

    `run` returns its outputs for inputs, computed in batches of a size. A model that gives NaN for noise cannot be
    judged by it.
    """
    if not all(np.isfinite(output).all() for output in wanted.outputs):
        return None
    for batch in wanted.batches:
        try:
            given = run(wanted.inputs, batch)
        except DataValidationError as error:
            return str(error)
        if len(given) != len(wanted.outputs):
            return f"it gives {len(given)} outputs, the model {len(wanted.outputs)}"
        for expected, outputs, rounding in zip(wanted.outputs, given, wanted.rounding, strict=True):
            allowed = RELATIVE * float(np.abs(expected).max()) + SLACK * rounding
            check = Close(allowed + float(np.finfo(np.float32).tiny), 0)
            for verdict in judge_all([check], expected, outputs, ["noise"] * len(outputs)):
                if not verdict.passed:
                    return f"on noise, at batch {batch}, {verdict.sentence}"
    return None


def graph_disagreement(wanted: Wanted, path: Path) -> str | None:
    """Return how the graph at `path` differs from the model."""
    return disagreement(wanted, OnnxModel(path, os.cpu_count() or 1).run_all)
