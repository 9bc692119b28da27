"""Reference outputs from the users' own code: the proof of a conversion that does not rest on our reading of weights.

A graph that agrees with the model that we rebuilt from weights shows that it was exported right, not that the model was
rebuilt right: with a wrong activation between two layers both agree, and both are wrong.
"""

from __future__ import annotations

import zipfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from conversion_jobs.verification.checks import Check, Close, Cosine, Top1Agreement, Verdict, judge_all
from jobkit.errors import DataValidationError

TRAINED_HERE = "the model that was trained here"
OUR_READING = "consistent with our reading of the weights"
REFERENCE = "reference outputs that came with the weights"
NOT_COMPARED = "served as it is; not compared with anything"
RANDOM = "on random numbers, since no real inputs were given"

# References are often made on a GPU, where TF32 keeps 10 bits of a mantissa (about 1e-3 of a value), a step of
# several layers. A model that was rebuilt wrong is off by far more.
ATOL, RTOL = 1e-3, 1e-2
MINIMUM_COSINE = 0.999
FURTHER = "further_"
Array = NDArray[np.float32]


@dataclass(frozen=True)
class Expected:
    """What the users' own code gives: `outputs` float32 [n, ...] for the inputs `names`, in that order.

    `inputs` float32 [n, ...] are what their code gave the model, as prepared by it; None where only outputs came.
    `further` are outputs after the first, by their names.
    """

    outputs: Array
    names: list[str]
    inputs: Array | None = None
    further: dict[str, Array] = field(default_factory=dict)

    def write(self, path: Path) -> None:
        """Write it to `path`, an .npz."""
        arrays: dict[str, Any] = {"outputs": self.outputs, "names": np.array(self.names)}
        if self.inputs is not None:
            arrays["inputs"] = self.inputs
        arrays |= {f"{FURTHER}{name}": values for name, values in self.further.items()}
        np.savez(path, **arrays)


def read_expected(path: Path, names: Sequence[str], further: Sequence[str] = ()) -> Expected:
    """Return the reference outputs in a file of the users.

    Args:
        path: an .npy of outputs [n, ...], or an .npz of `outputs` and, where they were kept, prepared `inputs`.
            Outputs after the first have their own names in it.
        names: of the inputs that came with the weights, in the order of the outputs.
        further: names of the model's outputs after the first.

    Raises:
        DataValidationError: it is neither, or has another number of outputs than there are inputs.
    """
    try:
        found = np.load(path, allow_pickle=False)
        arrays = {name: found[name] for name in found.files} if zipfile.is_zipfile(path) else {"outputs": found}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise DataValidationError(f"{path} is no .npy or .npz file of numbers: {error}") from error
    if "outputs" not in arrays or (unknown := set(arrays) - {"outputs", "inputs", *further}):
        raise DataValidationError(
            f"{path} has the arrays {', '.join(sorted(arrays))}; it needs outputs, and may have inputs"
            + (f", not {', '.join(sorted(unknown))}" if "outputs" in arrays else "")
        )
    outputs, inputs = arrays["outputs"], arrays.get("inputs")
    others = {name: arrays[name] for name in further if name in arrays}
    for values in (outputs, *others.values()):
        if (
            not np.issubdtype(values.dtype, np.number)
            or values.ndim < 2
            or len(values) != len(outputs)
            or not len(values)
        ):
            raise DataValidationError(f"{path} holds {values.dtype} {list(values.shape)}, not numbers [n, ...]")
    if inputs is not None:
        if len(inputs) != len(outputs):
            raise DataValidationError(f"{path} has {len(inputs)} inputs and {len(outputs)} outputs")
        names = [f"expected input {index}" for index in range(len(inputs))]
    elif not names:
        raise DataValidationError(
            f"{path} has no inputs, and none came with the weights: of what are these the outputs?"
        )
    elif len(outputs) != len(names):
        raise DataValidationError(
            f"{path} has outputs of {len(outputs)} inputs, and {len(names)} came with the weights: they have to be the "
            "same, in the same order (pictures by their path)"
        )
    return Expected(
        outputs.astype(np.float32), list(names), None if inputs is None else inputs.astype(np.float32),
        {name: values.astype(np.float32) for name, values in others.items()},
    )  # fmt: skip


def written_expected(path: Path) -> Expected:
    """Return what `Expected.write` wrote."""
    with np.load(path, allow_pickle=False) as found:
        further = {name.removeprefix(FURTHER): found[name] for name in found.files if name.startswith(FURTHER)}
        return Expected(found["outputs"], [str(name) for name in found["names"]], found.get("inputs"), further)


def judge_expected(
    expected: Array, outputs: Array, names: Sequence[str], top1_agreement: float | None
) -> list[Verdict]:
    """Compare a graph's outputs [n, ...] with the reference; the first class too where `top1_agreement` is given."""
    checks: list[Check] = [Close(ATOL, RTOL), Cosine(MINIMUM_COSINE)]
    if top1_agreement is not None:
        checks.append(Top1Agreement(top1_agreement))
    found = judge_all(checks, expected, outputs, names)
    return [
        verdict.model_copy(update={"name": f"expected_{verdict.name}", "sentence": f"as expected? {verdict.sentence}"})
        for verdict in found
    ]
