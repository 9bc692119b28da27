"""Heads over an embedding: linear layers, batch and layer norms, rebuilt from a state_dict.

A state_dict holds the layers that have weights and none of the others. What it does not tell is asked: the activation
between the linear layers (`hidden_activation`). What it half tells is read: where the names are places in a
`Sequential` (`0.weight, 1.running_mean, 3.weight`), the activation stands at the first place that has no weights; else
behind the norm, as in Linear, BatchNorm, activation. Dropout, which does nothing here, is left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from jobkit.errors import ConfigurationError, DataValidationError
from nightshift_common.options.weights import HIDDEN_ACTIVATIONS, Activation, HiddenActivation

if TYPE_CHECKING:
    from torch import Tensor, nn

State = dict[str, "Tensor"]


@dataclass(frozen=True)
class HeadActivations:
    """What is put between the linear layers of a head and behind the last; `hidden` None: not said."""

    hidden: HiddenActivation | None
    negative_slope: float
    last: Activation


@dataclass(frozen=True)
class _Layer:
    name: str  # of its module: the prefix of its tensors
    kind: Literal["linear", "batch_norm", "layer_norm"]
    tensors: State  # by their last names: weight, bias, running_mean, ...

    @property
    def takes(self) -> int:
        """The number of values that it takes."""
        if self.kind == "batch_norm":
            return len(self.tensors["running_mean"])
        return int(self.tensors["weight"].shape[-1])

    @property
    def gives(self) -> int:
        """The number of values that it gives."""
        return len(self.tensors["weight"]) if self.kind == "linear" else self.takes

    @property
    def place(self) -> tuple[str, int] | None:
        """The sequence that it is a place of, and which; None where the name ends with no number."""
        found = re.fullmatch(r"(.*?)(\d+)", self.name)
        return (found[1], int(found[2])) if found and (not found[1] or found[1].endswith(".")) else None


def build_head(state: State, path: Path, activations: HeadActivations) -> tuple[nn.Module, int]:
    """Return the head of a state_dict, in evaluation mode on the CPU, and the size of the embedding that it takes.

    Raises:
        DataValidationError: it holds other layers than these, or layers that do not fit one to the next.
        ConfigurationError: it has several linear layers, and nothing says what is between them.
    """
    from torch import nn

    layers = _ordered(list(_layers(state, path)), path)
    linear = [layer.name for layer in layers if layer.kind == "linear"]
    if len(linear) > 1 and activations.hidden is None:
        raise ConfigurationError(
            f"{path} has {len(linear)} linear layers ({', '.join(linear)}), and weights do not tell what is between "
            f"them: give --hidden_activation, one of {', '.join(HIDDEN_ACTIVATIONS)}"
        )
    behind = _places_of_activations(layers)
    modules: list[nn.Module] = []
    for index, layer in enumerate(layers):
        modules.append(_module(layer))
        if index in behind:
            modules.append(_hidden(activations))
    if activations.last != "none":
        modules.append(nn.Sigmoid() if activations.last == "sigmoid" else nn.Softmax(dim=1))
    return nn.Sequential(*modules).eval(), layers[0].takes


def _layers(state: State, path: Path) -> Iterator[_Layer]:
    by_module: dict[str, State] = {}
    for name, value in state.items():
        prefix, _, last = name.rpartition(".")
        by_module.setdefault(prefix, {})[last] = value
    for prefix, tensors in by_module.items():
        kind = _kind(tensors)
        if kind is None:
            shown = ", ".join(list(state)[:6]) + (f" and {len(state) - 6} more" if len(state) > 6 else "")
            raise DataValidationError(
                f"{path} is not a head of linear layers and norms: {prefix or 'its top'} has {', '.join(tensors)}; "
                f"it has {shown}; use --family factory"
            )
        yield _Layer(prefix, kind, tensors)


def _kind(tensors: State) -> Literal["linear", "batch_norm", "layer_norm"] | None:
    names, weight = set(tensors), tensors.get("weight")
    if (
        {"running_mean", "running_var"}
        <= names
        <= {"running_mean", "running_var", "num_batches_tracked", "weight", "bias"}
    ):
        return "batch_norm"
    if weight is None or not names <= {"weight", "bias"}:
        return None
    if weight.ndim == 2:
        return "linear"
    return "layer_norm" if weight.ndim == 1 and "bias" in names else None


def _ordered(layers: list[_Layer], path: Path) -> list[_Layer]:
    """Return the layers in the order of the file or, where they do not fit so, in that of their names.

    Files are in the order of the modules, but for safetensors, which is in that of the alphabet: there only numbers
    in the names tell the order.
    """
    from jobkit.state_dict import is_safetensors

    if len(layers) > 1 and any(layer.place is None for layer in layers) and is_safetensors(path):
        names = ", ".join(layer.name for layer in layers)
        raise DataValidationError(
            f"{path} does not tell the order of its layers: safetensors sorts names, and {names} have no numbers; save "
            "the state_dict by torch.save, or use --family factory"
        )
    natural = sorted(layers, key=lambda layer: _natural(layer.name))
    wrong = [_first_misfit(order) for order in (layers, natural)]
    if not any(layer.kind == "linear" for layer in layers):
        raise DataValidationError(f"{path} is not a head of linear layers and norms: it has no linear layer")
    for order, misfit in zip((layers, natural), wrong, strict=True):
        if misfit is None:
            return order
    before, layer = wrong[1] or wrong[0]  # type: ignore[misc]
    raise DataValidationError(
        f"{path}: {layer.name} takes {layer.takes} values, but {before.name} gives {before.gives}"
    )


def _first_misfit(layers: Sequence[_Layer]) -> tuple[_Layer, _Layer] | None:
    pairs = pairwise(layers)
    return next(((before, layer) for before, layer in pairs if before.gives != layer.takes), None)


def _places_of_activations(layers: Sequence[_Layer]) -> set[int]:
    """Return the indexes of the layers behind which the hidden activation stands."""
    linear = [index for index, layer in enumerate(layers) if layer.kind == "linear"]
    behind = set()
    for first, second in pairwise(linear):
        gaps = [index for index in range(first, second) if _has_gap(layers[index], layers[index + 1])]
        behind.add(gaps[0] if gaps else second - 1)
    return behind


def _has_gap(before: _Layer, after: _Layer) -> bool:
    """Whether something without weights stands between two layers of one sequence."""
    if before.place is None or after.place is None or before.place[0] != after.place[0]:
        return False
    return after.place[1] - before.place[1] > 1


def _module(layer: _Layer) -> nn.Module:
    from torch import nn

    tensors = {name: value.float() for name, value in layer.tensors.items() if name != "num_batches_tracked"}
    module: nn.Module
    if layer.kind == "linear":
        module = nn.Linear(layer.takes, layer.gives, bias="bias" in tensors)
    elif layer.kind == "batch_norm":
        module = nn.BatchNorm1d(layer.takes, affine="weight" in tensors)
    else:
        module = nn.LayerNorm(layer.takes)
    module.load_state_dict(tensors, strict=False)
    return module


def _hidden(activations: HeadActivations) -> nn.Module:
    from torch import nn

    modules: dict[HiddenActivation | None, nn.Module] = {
        "none": nn.Identity(), "relu": nn.ReLU(), "gelu": nn.GELU(), "gelu_tanh": nn.GELU(approximate="tanh"),
        "leaky_relu": nn.LeakyReLU(activations.negative_slope), "silu": nn.SiLU(), "tanh": nn.Tanh(),
    }  # fmt: skip
    return modules[activations.hidden]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", name)]
