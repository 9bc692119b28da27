"""What a model takes and gives, found by running it: its outputs, and whether its batch is free."""

from __future__ import annotations

import errno
import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from conversion_jobs.families.outputs import flat, flattened
from conversion_jobs.families.sources import Source
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.model_spec import Output

if TYPE_CHECKING:
    from torch import Tensor, nn

BATCHES = (*range(1, 9), 10, 12, 16, 20, 24, 32, 48, 64)  # that models with a fixed one are tried with
DENIED = (errno.EACCES, errno.EPERM)
LARGEST_EXAMPLE = 2**30  # bytes of one batch of zeros


@dataclass(frozen=True)
class Probed:
    """A model float32 [N, *shape] -> one tensor, or a tuple of them; `outputs` are their sizes without the batch.

    `batch` is the one batch size that it takes; None: any.
    """

    module: nn.Module
    shape: tuple[int, ...]
    output: Output
    outputs: tuple[tuple[int, ...], ...]
    batch: int | None
    notes: tuple[str, ...]

    @property
    def example(self) -> Tensor:
        """Zeros that it takes; where the batch is free, two: a batch of 1 would be taken for a constant."""
        import torch

        return torch.zeros(self.batch or 2, *self.shape)


def probe(source: Source) -> Probed:
    """Run a model on zeros.

    Raises:
        ConfigurationError: it takes no float32 inputs of this shape, of any batch size; the message says why.
        DataValidationError: it gives something else than tensors of numbers with a row an input.
    """
    found, reason = _run(source, 2)
    batch, notes = None, source.notes
    if found is None or _run(source, 1)[0] is None:
        sizes = [2] if found is not None else [size for size in BATCHES if size != 2]
        tried = ((size, _run(source, size)[0]) for size in sizes if _bytes(source.shape, size) <= LARGEST_EXAMPLE)
        batch, found = next(((size, values) for size, values in tried if values is not None), (None, None))
        if found is None:
            raise ConfigurationError(_unusable(source, reason))
        notes = (*notes, f"its batch is fixed: it takes {batch} inputs at once, no more and no fewer, and is served so")
    module = source.module if found.is_plain else flat(source.module)
    sizes_of_outputs = tuple(tuple(tensor.shape[1:]) for tensor in found.tensors)
    return Probed(module, source.shape, source.output, sizes_of_outputs, batch, notes)


@dataclass(frozen=True)
class _Given:
    tensors: list[Tensor]
    is_plain: bool  # one float32 tensor, by itself


def _run(source: Source, batch: int) -> tuple[_Given | None, str]:
    """Return what the model gives for a batch of zeros; else None and why it does not take it."""
    import torch

    with torch.inference_mode():
        try:
            value = source.module(torch.zeros(batch, *source.shape))
        except (RuntimeError, ValueError, AssertionError, TypeError, IndexError) as error:  # as modules refuse shapes
            if any(os.strerror(number) in str(error) for number in DENIED):
                raise  # the sandbox says what the model has tried: that is no question of shapes
            lines = str(error).strip().splitlines() or [type(error).__name__]
            return None, next((line for line in reversed(lines) if "Error" in line), lines[-1]).strip()
    tensors = flattened(value)
    if not all(tensor.is_floating_point() for tensor in tensors):
        kinds = ", ".join(str(tensor.dtype).removeprefix("torch.") for tensor in tensors)
        raise DataValidationError(f"the model gives {kinds}: outputs that are no floating-point numbers do not convert")
    if any(not tensor.ndim or len(tensor) != batch for tensor in tensors):
        shapes = ", ".join(str(list(tensor.shape)) for tensor in tensors)
        return None, f"it gives {shapes} for {batch} inputs: no row an input"
    return _Given(tensors, isinstance(value, torch.Tensor) and value.dtype == torch.float32), ""


def names_of_outputs(named: Sequence[str], first: str, count: int) -> list[str]:
    """Return the names of a model's outputs: those that are `named`, else `first`, `output_1`, `output_2`, ...

    Raises:
        ConfigurationError: another number of them is named.
    """
    if named and len(named) != count:
        raise ConfigurationError(f"the model gives {count} outputs, --output_names has {len(named)}")
    return list(named) or [first, *(f"output_{number}" for number in range(1, count))]


def _bytes(shape: tuple[int, ...], batch: int) -> int:
    count = 4 * batch
    for size in shape:
        count *= size
    return count


def _unusable(source: Source, reason: str) -> str:
    shape = ", ".join(map(str, source.shape))
    message = f"the model does not take float32 inputs of [N, {shape}], whatever N: {reason}"
    if any("float32" in note for note in source.notes):
        message += (
            ". Its weights were of half precision and became float32; types that are written into its code stay: save "
            "it again from model.float()"
        )
    return message
