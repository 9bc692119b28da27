"""Source models of every family that is converted: from a file of weights to a module in evaluation mode.

| family | weights | also needed |
|---|---|---|
| `classifier` | checkpoint of `{backbone, fc}` (ours, and the older trainer's) | `architecture` (timm) |
| `vit` | state_dict of a timm encoder; gives the embedding [N, features] | `architecture` (timm) |
| `head` | state_dict of linear layers and norms over an embedding; gives class scores | `hidden_activation` |
| `torchscript` | TorchScript archive | |
| `factory` | state_dict of what `module:function` builds | `factory` |
| `ultralytics` | a detector or segmenter: not here but in jobkit/detection/ultralytics_weights.py | |

A state_dict is read with `weights_only`: a file with code in it is refused. A factory is code of one's own. All of it
runs in the sandbox alone (`conversion_jobs/sandboxed`): TorchScript is a program.
"""

from __future__ import annotations

import importlib
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from conversion_jobs.families.heads import HeadActivations, build_head
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.model_spec import ModelSpec, Output, Spec, input_shape
from nightshift_common.options.weights import SourceOptions

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Source:
    """A model to convert: float32 [N, *shape] -> `output` [N, ...]."""

    module: nn.Module
    shape: tuple[int, ...]
    output: Output


def load_source(weights: Path, options: SourceOptions) -> Source:
    """Return the model that `weights` and `options` describe, in evaluation mode on the CPU.

    Raises:
        DataValidationError: the file is not what the family needs; the message says what it is.
        ConfigurationError: the architecture or the factory does not exist.
    """
    picture = (options.channels, *options.img_size)
    if options.family == "torchscript":
        return Source(load_torchscript(weights), picture, "logits")
    if _is_torchscript(weights):
        raise DataValidationError(f"{weights} is a TorchScript archive: convert it with --family torchscript")
    from jobkit.classifier import Classifier, load_weights
    from jobkit.state_dict import read_state_dict

    state = read_state_dict(weights)
    if options.family == "head":
        between = HeadActivations(options.hidden_activation, options.negative_slope, options.activation)
        module, features = build_head(state, weights, between)
        output: Output = "logits" if options.activation == "none" else "probabilities"
        return Source(module, (features,), output)
    architecture = str(options.architecture)
    if options.family == "classifier":
        if "fc.weight" not in state:
            raise DataValidationError(
                f"{weights} has no 'fc.weight': a classifier is {{backbone, fc}}; it has {_names(state)}"
            )
        model = Classifier(architecture, len(state["fc.weight"]), options.channels)
        return Source(load_weights(model, state, weights), picture, "logits")
    if options.family == "vit":
        return Source(_encoder(architecture, picture, state, weights), picture, "embedding")
    return Source(load_weights(_built(str(options.factory)), state, weights), picture, "logits")


@dataclass(frozen=True)
class SourceFile:
    """Where the model of an experiment is."""

    path: Path
    kind: Literal["checkpoint", "torchscript"]


def load_experiment(source: SourceFile, spec: Spec) -> nn.Module:
    """Return the model of an experiment, in evaluation mode on the CPU.

    Raises:
        DataValidationError: the file is not what it should be, or its weights are not those of `spec`.
    """
    from jobkit.classifier import load_classifier, served
    from jobkit.state_dict import read_state_dict

    if source.kind == "torchscript" or not isinstance(spec, ModelSpec):
        return load_torchscript(source.path)
    if spec.output == "embedding":
        return _encoder(spec.architecture, input_shape(spec), read_state_dict(source.path), source.path)
    return served(load_classifier(source.path, spec), spec)


def load_torchscript(path: Path) -> nn.Module:
    """Return the TorchScript model at `path`, in evaluation mode on the CPU.

    Raises:
        DataValidationError: it is none.
    """
    import torch

    try:
        module: nn.Module = torch.jit.load(str(path), map_location="cpu").eval()
    except RuntimeError as error:
        raise DataValidationError(f"{path} is not a TorchScript model: {str(error).strip().splitlines()[0]}") from error
    return module


def _is_torchscript(path: Path) -> bool:
    if not zipfile.is_zipfile(path):
        return False
    with zipfile.ZipFile(path) as archive:
        return any(name.endswith("/constants.pkl") for name in archive.namelist())


def _encoder(architecture: str, shape: tuple[int, ...], state: dict[str, Tensor], weights: Path) -> nn.Module:
    """Return timm's encoder for pictures of `shape` [C, H, W] with `state`, whose own head is left out."""
    import timm

    from jobkit.classifier import check_architecture, load_weights, uninitialized

    check_architecture(architecture)
    arguments: dict[str, Any] = {"num_classes": 0, "in_chans": shape[0]}

    def build() -> nn.Module:
        try:
            return timm.create_model(architecture, img_size=shape[1:], **arguments)
        except TypeError:  # convolutional encoders take pictures of any size
            return timm.create_model(architecture, **arguments)

    encoder = uninitialized(build)
    known = encoder.state_dict()
    without_head = {name: value for name, value in state.items() if name in known or not name.startswith("head")}
    return load_weights(encoder, without_head, weights, assign=True)


def _built(factory: str) -> nn.Module:
    from torch import nn

    module_name, _, function_name = factory.partition(":")
    try:
        function: Callable[[], Any] = getattr(importlib.import_module(module_name), function_name)
    except (ImportError, AttributeError, ValueError) as error:
        raise ConfigurationError(f"--factory {factory!r} is not module:function: {error}") from error
    model = function()
    if not isinstance(model, nn.Module):
        raise ConfigurationError(f"--factory {factory} gave a {type(model).__name__}, not a torch module")
    return model


def _names(state: dict[str, Any]) -> str:
    shown = ", ".join(list(state)[:6])
    return shown + (f" and {len(state) - 6} more" if len(state) > 6 else "")
