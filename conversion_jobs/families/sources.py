"""Source models of every family that is converted: from a file of weights to a module in evaluation mode.

| family | weights | also needed |
|---|---|---|
| `classifier` | checkpoint of `{backbone, fc}` (ours, and the older trainer's), or of a timm model | `architecture` |
| `vit` | state_dict of a timm encoder; gives the embedding [N, features] | `architecture` (timm) |
| `head` | state_dict of linear layers and norms over an embedding; gives class scores | `hidden_activation` |
| `torchscript` | TorchScript archive | |
| `factory` | state_dict of what `module:function` builds | `factory` |
| `onnx` | a graph, served as it is: not here but in conversion_jobs/onnx/own_graph.py | |
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
from conversion_jobs.families.outputs import flat
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.model_spec import ArraySpec, ModelSpec, Output, Spec, input_shape
from nightshift_common.options.weights import SourceOptions

if TYPE_CHECKING:
    from torch import Tensor, nn


@dataclass(frozen=True)
class Source:
    """A model to convert: float32 [N, *shape] -> outputs float32 [N, ...], the first of which is `output`.

    `notes`: what was done to it that its owner should know.
    """

    module: nn.Module
    shape: tuple[int, ...]
    output: Output
    notes: tuple[str, ...] = ()


def load_source(weights: Path, options: SourceOptions) -> Source:
    """Return the model that `weights` and `options` describe, in evaluation mode on the CPU.

    Raises:
        DataValidationError: the file is not what the family needs; the message says what it is.
        ConfigurationError: the architecture or the factory does not exist, or does not take inputs of this shape.
    """
    shape = options.sizes
    kind: Output = "logits" if options.input_shape is None else "embedding"
    if options.family == "torchscript":
        module, notes = _in_full_precision(load_torchscript(weights))
        return Source(module, shape, kind, notes)
    if _is_torchscript(weights):
        raise DataValidationError(f"{weights} is a TorchScript archive: convert it with --family torchscript")
    from jobkit.classifier import load_weights
    from jobkit.state_dict import read_state_dict

    state = read_state_dict(weights)
    notes = _cast_notes(state)
    if options.family == "head":
        between = HeadActivations(options.hidden_activation, options.negative_slope, options.activation)
        module, features = build_head(state, weights, between)
        if options.input_shape not in (None, (features,)):
            raise ConfigurationError(f"{weights} takes {features} values, not --input_shape {list(shape)}")
        return Source(module, (features,), "logits" if options.activation == "none" else "probabilities", notes)
    architecture = str(options.architecture)
    if options.family == "classifier":
        return Source(classifier_of(architecture, shape, state, weights), shape, "logits", notes)
    if options.family == "vit":
        return Source(_encoder(architecture, shape, state, weights), shape, "embedding", notes)
    return Source(load_weights(_built(str(options.factory)), state, weights), shape, kind, notes)


def classifier_of(architecture: str, shape: tuple[int, ...], state: dict[str, Tensor], weights: Path) -> nn.Module:
    """Return the classifier of `state` for inputs of `shape` [C, H, W]: of `{backbone, fc}`, or a whole timm model.

    Raises:
        DataValidationError: the weights are neither, or not those of `architecture`; the message names what differs.
        ConfigurationError: timm has no such architecture.
    """
    from jobkit.classifier import Classifier, load_weights, uninitialized

    if _is_backbone_and_fc(state):
        classes = len(state["fc.weight"])
        return load_weights(
            uninitialized(lambda: Classifier(architecture, classes, shape[0])), state, weights, assign=True
        )
    classes = _classes_of(architecture, state, weights)
    return load_weights(_timm_model(architecture, shape, num_classes=classes), state, weights, assign=True)


def _is_backbone_and_fc(state: dict[str, Tensor]) -> bool:
    """Whether weights are of `{backbone, fc}`, as trainings here and the older trainer save them."""
    others = [name for name in state if not name.startswith("fc.")]
    return "fc.weight" in state and (not others or any(name.startswith("backbone.") for name in others))


def _classes_of(architecture: str, state: dict[str, Tensor], weights: Path) -> int:
    """Return the number of classes of a timm model's weights: the rows of its last layer."""
    import timm

    from jobkit.classifier import check_architecture

    check_architecture(architecture)
    known = timm.get_pretrained_cfg(architecture)
    layer = known.classifier if known else None  # its name; two of a distilled model
    name = layer[0] if isinstance(layer, tuple | list) else layer
    found = state.get(f"{name}.weight")
    if found is None:
        raise DataValidationError(
            f"{weights} has no '{name}.weight', the last layer of {architecture}, and is no {{backbone, fc}} either; "
            f"it has {_names(state)}"
        )
    return len(found)


def _cast_notes(state: dict[str, Tensor]) -> tuple[str, ...]:
    """Say of which types weights are that become float32: a graph is made, and compared, in float32."""
    others = {str(v.dtype).removeprefix("torch.") for v in state.values() if v.is_floating_point()} - {"float32"}
    return (f"weights of {', '.join(sorted(others))} became float32 for the graph",) if others else ()


def _in_full_precision(module: nn.Module) -> tuple[nn.Module, tuple[str, ...]]:
    """Return a TorchScript model with its weights in float32, and what there is to say of it."""
    notes = _cast_notes(dict(module.state_dict()))
    return (module.float() if notes else module), notes


@dataclass(frozen=True)
class SourceFile:
    """Where the model of an experiment is."""

    path: Path
    kind: Literal["checkpoint", "torchscript"]
    factory: str | None = None  # what builds the model of the checkpoint: module:function; None: timm's architecture

    @property
    def modules(self) -> list[str]:
        """The modules of one's own that building the model takes."""
        return [self.factory.partition(":")[0]] if self.factory else []


def load_experiment(source: SourceFile, spec: Spec) -> nn.Module:
    """Return the model of an experiment, in evaluation mode on the CPU.

    Raises:
        DataValidationError: the file is not what it should be, or its weights are not those of `spec`.
    """
    from jobkit.classifier import load_classifier, load_weights, served
    from jobkit.state_dict import read_state_dict

    if source.kind == "checkpoint" and source.factory is not None:
        return flat(load_weights(_built(source.factory), read_state_dict(source.path), source.path))
    if source.kind == "torchscript" or not isinstance(spec, ModelSpec | ArraySpec):
        return load_torchscript(source.path)
    state = read_state_dict(source.path)
    if spec.output == "embedding":
        return _encoder(spec.architecture, input_shape(spec), state, source.path)
    if isinstance(spec, ModelSpec) and _is_backbone_and_fc(state):
        return served(load_classifier(source.path, spec), spec)
    return classifier_of(spec.architecture, input_shape(spec), state, source.path)


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
    """Return timm's encoder for inputs of `shape` [C, H, W] with `state`, whose own head is left out."""
    from jobkit.classifier import load_weights

    encoder = _timm_model(architecture, shape, num_classes=0)
    known = encoder.state_dict()
    without_head = {name: value for name, value in state.items() if name in known or not name.startswith("head")}
    return load_weights(encoder, without_head, weights, assign=True)


def _timm_model(architecture: str, shape: tuple[int, ...], num_classes: int) -> nn.Module:
    """Return timm's model for inputs of `shape` [C, H, W], without numbers in its weights.

    Raises:
        ConfigurationError: timm has no such architecture, or `shape` is not [C, H, W].
    """
    import timm

    from jobkit.classifier import check_architecture, uninitialized

    check_architecture(architecture)
    if len(shape) != 3:
        raise ConfigurationError(
            f"{architecture} of timm takes inputs of [channels, height, width], not of {list(shape)}: a model of other "
            "inputs comes by --family factory or torchscript"
        )
    arguments: dict[str, Any] = {"num_classes": num_classes, "in_chans": shape[0]}

    def build() -> nn.Module:
        try:
            return timm.create_model(architecture, img_size=shape[1:], **arguments)
        except TypeError:  # convolutional models take pictures of any size
            return timm.create_model(architecture, **arguments)

    return uninitialized(build)


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
