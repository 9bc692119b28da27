"""Verified examples in a package: inputs and the outputs that were verified, which whoever serves it can repeat.

A package has them as `verified.npz`: arrays `input/<name>` and `output/<name>`, each [n, ...], and `judged_as`.
"""

from __future__ import annotations

import io
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

VERIFIED_FILE = "verified.npz"
MAX_EXAMPLES = 4
MAX_BYTES = 64 << 20  # of all arrays together; a server reads them into memory
MAX_INPUT_BYTES = 16 << 20  # of the inputs that a package takes along, but for the first

# What serves may be another device with other kernels: wider than the limits of verification, as `deploy_model` is.
ABSOLUTE, RELATIVE = 1e-3, 1e-2
COSINE = 0.997  # of a plan of half precision
UNORDERED = ("raw", "detections")  # outputs whose rows may change places: they are looked at for finite numbers only

Arrays = dict[str, NDArray[Any]]
_INPUT, _OUTPUT, _JUDGED_AS = "input/", "output/", "judged_as"


@dataclass(frozen=True)
class VerifiedExamples:
    """Inputs and outputs by their names, each [n, ...]; `judged_as` is what the first output is."""

    inputs: Arrays
    outputs: Arrays
    judged_as: str

    @property
    def count(self) -> int:
        """How many examples there are."""
        return len(next(iter(self.inputs.values())))


def fitting(inputs: NDArray[Any]) -> int:
    """Return how many of the examples `inputs` [n, ...] a package takes along: none where one is too large already."""
    if not len(inputs) or 2 * inputs[:1].nbytes > MAX_BYTES:
        return 0
    return min(len(inputs), MAX_EXAMPLES, max(1, MAX_INPUT_BYTES // inputs[:1].nbytes))


def write_examples(path: Path, examples: VerifiedExamples) -> None:
    """Write the file; the same examples always give the same bytes."""
    arrays: Arrays = {_JUDGED_AS: np.array(examples.judged_as)}
    arrays |= {f"{_INPUT}{name}": array for name, array in examples.inputs.items()}
    arrays |= {f"{_OUTPUT}{name}": array for name, array in examples.outputs.items()}
    with path.open("wb") as output:
        np.savez(output, **arrays)  # type: ignore[arg-type]


def read_examples(content: bytes) -> VerifiedExamples:
    """Return the examples of a file that anybody may have written.

    Raises:
        ValueError: they are not such, take more than `MAX_BYTES`, or do not fit together.
    """
    try:
        with zipfile.ZipFile(io.BytesIO(content)) as archive:
            size = sum(entry.file_size for entry in archive.infolist())
        if size > MAX_BYTES:
            raise ValueError(f"its arrays take {size} bytes, at most {MAX_BYTES} are allowed")
        with np.load(io.BytesIO(content), allow_pickle=False) as stored:
            arrays = {name: stored[name] for name in stored.files}
        judged_as = str(arrays.pop(_JUDGED_AS))
    except (OSError, EOFError, KeyError, zipfile.BadZipFile, NotImplementedError) as error:
        raise ValueError(f"it is not what package_model writes: {error!r}") from error
    inputs = {name.removeprefix(_INPUT): array for name, array in arrays.items() if name.startswith(_INPUT)}
    outputs = {name.removeprefix(_OUTPUT): array for name, array in arrays.items() if name.startswith(_OUTPUT)}
    counts = {len(array) if array.ndim else 0 for array in (*inputs.values(), *outputs.values())}
    if not inputs or not outputs or len(counts) != 1 or 0 in counts:
        raise ValueError(f"it needs inputs and outputs of one number of examples; it has {sorted(arrays)}")
    return VerifiedExamples(inputs, outputs, judged_as)


def differences(examples: VerifiedExamples, answers: Arrays, target: str) -> list[str]:
    """Return in what `answers` [n, ...] by name are not the verified outputs; empty where they are, within tolerance.

    All must be finite. Of a TensorRT plan the cosine of each answer with the verified one counts (0.997), of any other
    model each number (1e-3 absolute, 1e-2 relative).
    """
    problems = []
    for name, wanted in examples.outputs.items():
        given = answers.get(name)
        if given is None or given.shape != wanted.shape:
            shape = "none" if given is None else str(list(given.shape))
            problems.append(f"the output {name!r} has the shape {shape}, {list(wanted.shape)} was verified")
            continue
        if what := _difference(given.astype(np.float64), wanted.astype(np.float64), target, examples.judged_as):
            problems.append(f"the output {name!r} {what}")
    return problems


def _difference(given: NDArray[np.float64], wanted: NDArray[np.float64], target: str, judged_as: str) -> str:
    if count := int(np.count_nonzero(~np.isfinite(given))):
        return f"has {count} of {given.size} numbers that are not finite"
    if judged_as in UNORDERED:
        return ""
    if target == "tensorrt":
        least = min(_cosine(a.ravel(), b.ravel()) for a, b in zip(given, wanted, strict=True))
        return f"has a cosine of {least:.4f} with the verified one, below {COSINE}" if least < COSINE else ""
    if np.allclose(given, wanted, RELATIVE, ABSOLUTE):
        return ""
    return f"differs from the verified one by up to {np.max(np.abs(given - wanted)):.4g}"


def _cosine(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    norm = float(np.linalg.norm(a) * np.linalg.norm(b))
    return float(a @ b) / norm if norm else float(np.array_equal(a, b))
