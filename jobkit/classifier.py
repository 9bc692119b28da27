"""The classifier: a timm backbone without its head, and one linear layer. Importing this imports torch and timm."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from torch import Tensor, nn

from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.model_spec import ModelSpec
from jobkit.state_dict import read_state_dict
from nightshift_common.options.training import FlipTta

MIRRORED: dict[FlipTta, list[list[int]]] = {
    "off": [],
    "horizontal": [[3]],
    "vertical": [[2]],
    "both": [[3], [2], [2, 3]],
}
"""Dimensions of [N, C, H, W] that are turned around in each mirror image."""


class Classifier(nn.Module):
    """`backbone` (timm, `num_classes=0`) and `fc` (linear): float32 [N, C, H, W] -> logits, float32 [N, classes].

    Its state_dict is what the older trainer's checkpoints hold.

    Raises:
        ConfigurationError: timm has no architecture of that name.
    """

    def __init__(self, architecture: str, classes: int, channels: int = 3, **options: Any) -> None:
        super().__init__()
        check_architecture(architecture)
        backbone: Any = timm.create_model(architecture, num_classes=0, in_chans=channels, **options)
        self.backbone: nn.Module = backbone
        # Some backbones (hgnetv2, mobilenetv3) have a layer between their features and their logits.
        self.fc = nn.Linear(getattr(backbone, "head_hidden_size", None) or backbone.num_features, classes)

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the logits."""
        logits: Tensor = self.fc(self.backbone(pictures))
        return logits


class Served(nn.Module):
    """What is handed over: `model` averaged over mirror images, its logits divided by a temperature.

    Of several labels it gives a probability of each class instead: the sigmoid of its averaged logit.
    """

    def __init__(self, model: nn.Module, flips: FlipTta, temperature: float, multi_label: bool = False) -> None:
        super().__init__()
        self.model, self.flips, self.temperature, self.multi_label = model, flips, temperature, multi_label

    def forward(self, pictures: Tensor) -> Tensor:
        """Return the logits, or probabilities, float32 [N, classes], of float32 [N, C, H, W]."""
        logits = averaged(self.model, pictures, self.flips)
        if self.multi_label:
            return logits.sigmoid()
        return logits if self.temperature == 1 else logits / self.temperature


def served(model: nn.Module, spec: ModelSpec) -> nn.Module:
    """Return `model` with what `spec` says that the graph does beside it; `model` itself where that is nothing."""
    if spec.flip_tta == "off" and spec.temperature == 1 and not spec.multi_label:
        return model
    return Served(model, spec.flip_tta, spec.temperature, spec.multi_label).eval()


def averaged(model: nn.Module, pictures: Tensor, flips: FlipTta) -> Tensor:
    """Return the mean of a model's logits over `pictures` [N, C, H, W] and their mirror images.

    All go through `model` as one batch: its graph is there once, whatever the exporter folds into its weights.
    """
    views = [pictures, *(pictures.flip(dimensions) for dimensions in MIRRORED[flips])]
    if len(views) == 1:
        logits: Tensor = model(pictures)
        return logits
    return model(torch.cat(views)).unflatten(0, (len(views), -1)).mean(0)  # type: ignore[no-any-return]


def check_architecture(architecture: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        ConfigurationError: the message names architectures near it.
    """
    if not timm.is_model(architecture):
        near = timm.list_models(f"*{architecture.split('.', maxsplit=1)[0].split('_', maxsplit=1)[0]}*")[:8]
        raise ConfigurationError(f"timm has no architecture {architecture!r}; near it: {', '.join(near) or 'nothing'}")


def load_classifier(path: Path, spec: ModelSpec) -> Classifier:
    """Return the model of `spec` with the weights at `path`, in evaluation mode on the CPU.

    Raises:
        DataValidationError: the weights are not those of this architecture and these classes; the message names what
            differs.
    """
    model = uninitialized(
        lambda: Classifier(spec.architecture, len(spec.labels), spec.preprocessing.channels, **spec.arguments)
    )
    return load_weights(model, read_state_dict(path), path, assign=True)


M = TypeVar("M", bound=nn.Module)


def uninitialized(build: Callable[[], M]) -> M:
    """Return what `build` makes, without numbers in it where all of them are replaced by those of a checkpoint.

    Drawing the first weights of a ViT-B takes ten seconds and its size in memory.
    """
    try:
        with torch.device("meta"):
            model = build()
    except (NotImplementedError, RuntimeError):  # its constructor looks at numbers
        return build()
    replaced = model.state_dict()
    return model if all(name in replaced for name, _ in model.named_buffers()) else build()


def load_weights(model: M, state: dict[str, Tensor], path: Path, *, assign: bool = False) -> M:
    """Return `model` with the weights `state`, which were read from `path`, in evaluation mode.

    With `assign` the tensors of `state` themselves become the model's, in its types: nothing is copied.

    Raises:
        DataValidationError: names or shapes differ; the message says which.
    """
    expected = model.state_dict()
    wrong = [f"{name} is missing" for name in expected if name not in state]
    wrong += [f"{name} is unknown" for name in state if name not in expected]
    wrong += [
        f"{name} is {list(state[name].shape)}, not {list(value.shape)}"
        for name, value in expected.items()
        if name in state and state[name].shape != value.shape
    ]
    if wrong:
        shown = "; ".join(wrong[:5]) + (f"; and {len(wrong) - 5} more" if len(wrong) > 5 else "")
        raise DataValidationError(f"{path} does not fit the model: {shown}")
    if assign:
        state = {name: value.to(expected[name].dtype) for name, value in state.items()}
    model.load_state_dict(state, assign=assign)
    return model.eval()
