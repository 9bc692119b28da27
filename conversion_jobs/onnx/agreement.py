"""Whether a graph that was just made answers as its model does: what the choice between exporters rests on.

It needs no pictures, so it is not the proof of a conversion: that is `verify_onnx`, with real ones.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from conversion_jobs.onnx.session import OnnxModel
from conversion_jobs.verification.checks import Close, Cosine, judge_all
from jobkit.errors import DataValidationError

if TYPE_CHECKING:
    from torch import nn

Array = NDArray[np.float32]
BATCHES = (1, 3)  # exporters trace with 2
# Noise is not what a model was trained on, and its values may have any size: so relative to the largest of them. Right
# graphs are 1e-5 off and less; a size or a branch that was traced as a constant, by as much as the values themselves.
RELATIVE = 1e-3
MINIMUM_COSINE = 0.9999


def noise(shape: tuple[int, ...]) -> Array:
    """Return three inputs, float32 [3, *shape]; the same ones every time."""
    return np.random.default_rng(0).standard_normal((max(BATCHES), *shape), np.float32)


def answers(model: nn.Module, inputs: Array) -> Array:
    """Return the output of `model` for `inputs` in one batch.

    Raises:
        DataValidationError: the model itself does not take this batch.
    """
    import torch

    try:
        with torch.no_grad():
            output: Array = model(torch.from_numpy(inputs)).float().numpy()
    except (RuntimeError, ValueError, TypeError) as error:
        reason = str(error).strip().splitlines()[-1]
        raise DataValidationError(f"the model itself fails on an input {list(inputs.shape)}: {reason}") from error
    return output


def disagreement(path: Path, inputs: Array, wanted: Array) -> str | None:
    """Return how the graph at `path` differs from a model that gives `wanted` for `inputs`; None: it does not.

    A model that gives NaN for noise cannot be judged by it.
    """
    if not np.isfinite(wanted).all():
        return None
    checks = Close(RELATIVE * float(np.abs(wanted).max()) + np.finfo(np.float32).tiny, 0), Cosine(MINIMUM_COSINE)
    names = ["noise"] * len(inputs)
    graph = OnnxModel(path, os.cpu_count() or 1)
    for batch in BATCHES:
        try:
            found = judge_all(checks, wanted, graph.run(inputs, batch), names)
        except DataValidationError as error:
            return str(error)
        if failed := [verdict.sentence for verdict in found if not verdict.passed]:
            return f"at batch {batch} {'; '.join(failed)}"
    return None
