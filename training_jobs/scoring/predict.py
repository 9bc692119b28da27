"""Run a model on the pictures of a snapshot."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.model_spec import DetectorSpec, ModelSpec, prepare
from jobkit.progress import Progress
from jobkit.snapshot import Sample
from nightshift_common.picture_preparation import probabilities
from training_jobs.scoring.models import Model

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

BATCH = 64
THREADS = 4  # decode the next pictures; OpenCV lets go of the interpreter lock


def predict(bottle: Bottle, samples: list[Sample], model: Model[ModelSpec]) -> NDArray[np.float64]:
    """Return the model's probabilities, float64 [N, classes of its spec].

    Raises:
        DataValidationError: the model's outputs do not fit its own spec, or are not finite.
    """
    import numpy as np

    spec = model.spec
    progress = Progress(f"evaluate {model.version}", len(samples), "pictures")
    parts = []
    with ThreadPoolExecutor(THREADS) as pool:
        for start in range(0, len(samples), BATCH):
            batch = samples[start : start + BATCH]
            inputs = np.stack(list(pool.map(lambda s: prepare(bottle.local(s.path), spec.preprocessing), batch)))
            parts.append(_run(model, inputs))
            progress.advance(len(batch))
    return probabilities(np.concatenate(parts), spec.output)


def _run(model: Model[ModelSpec], inputs: NDArray[np.float32]) -> NDArray[np.float32]:
    import numpy as np

    try:
        logits = model.outputs(inputs)[0]
    except Exception as error:  # PyTorch and ONNX Runtime raise what they like on inputs that do not fit
        raise DataValidationError(f"{model.version} fails on inputs of shape {list(inputs.shape)}: {error}") from error
    wanted = (len(inputs), len(model.spec.labels))
    if logits.shape != wanted:
        raise DataValidationError(
            f"{model.version} gives outputs {list(logits.shape)}, but its spec says {list(wanted)}"
        )
    if not np.isfinite(logits).all():
        raise DataValidationError(f"{model.version} gives outputs that are not finite numbers")
    return logits


def align(found: NDArray[np.float64], known: list[str], labels: list[str]) -> NDArray[np.float64]:
    """Return probabilities [N, len(known)] as [N, len(labels) + 1], matched by name; a label that is not known gets 0.

    The last column stands for all other classes by the largest of them: so the likeliest class stays the likeliest.
    """
    import numpy as np

    aligned = np.zeros((len(found), len(labels) + 1))
    column = {label: i for i, label in enumerate(labels)}
    for index, label in enumerate(known):
        if label in column:
            aligned[:, column[label]] = found[:, index]
        else:
            aligned[:, -1] = np.maximum(aligned[:, -1], found[:, index])
    return aligned


def differences(spec: ModelSpec | DetectorSpec, labels: list[str], counts: dict[str, int], name: str) -> list[str]:
    """Return how a model's classes differ from the golden set's, as sentences.

    `counts`: golden pictures by class; of a detector the objects in them.
    """
    notes, what = [], "objects" if isinstance(spec, DetectorSpec) else "pictures"
    if unknown := [label for label in labels if label not in spec.labels]:
        shown = ", ".join(f"{label!r} ({counts.get(label, 0)} golden {what})" for label in unknown)
        notes.append(f"{name} does not know the class {shown}: it is wrong on all of these")
    if extra := [label for label in spec.labels if label not in labels]:
        shown = ", ".join(repr(label) for label in extra)
        notes.append(f"{name} also knows the class {shown}, which the snapshot does not have: such an answer is wrong")
    return notes
