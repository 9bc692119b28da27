"""What a model gives, whatever it is wrapped in: tensors in their order."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jobkit.errors import DataValidationError

if TYPE_CHECKING:
    from torch import Tensor, nn


def flattened(value: Any) -> list[Tensor]:
    """Return the tensors in what a model gives: a tensor, or tuples, lists and mappings of them, in their order.

    Raises:
        DataValidationError: there is something else among them, or nothing at all.
    """
    found = list(_tensors(value))
    if not found:
        raise DataValidationError("the model gives no tensor")
    return found


def _tensors(value: Any) -> Iterator[Tensor]:
    import torch

    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, Mapping):
        yield from itertools.chain.from_iterable(map(_tensors, value.values()))
    elif isinstance(value, Sequence) and not isinstance(value, str):
        yield from itertools.chain.from_iterable(map(_tensors, value))
    else:
        raise DataValidationError(f"the model gives a {type(value).__name__} where a tensor should be")


def flat(module: nn.Module) -> nn.Module:
    """Return a module that gives the tensors of `module` as float32: one, or a tuple of several."""
    from torch import nn

    class Flat(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, inputs: Tensor) -> Any:
            tensors = tuple(tensor.float() for tensor in flattened(self.model(inputs)))
            return tensors if len(tensors) > 1 else tensors[0]

    return Flat().eval()
