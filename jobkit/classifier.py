"""The classifier: a timm backbone without its head, and one linear layer. Importing this imports torch and timm."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import timm
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.model_spec import ModelSpec

STATE_KEYS = ("state_dict_ema", "model_ema", "ema_state_dict", "average", "state_dict", "model", "model_state_dict")
PREFIXES = ("module.", "model.")
# What trainers save beside the weights and what runs no code when it is read: a Namespace has attributes alone, and
# Lightning's AttributeDict, which is read as the dict that it is.
PLAIN_VALUES: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    argparse.Namespace,
    (dict, "pytorch_lightning.utilities.parsing.AttributeDict"),
    (dict, "lightning.fabric.utilities.data.AttributeDict"),
    (dict, "lightning_fabric.utilities.data.AttributeDict"),
]


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


def check_architecture(architecture: str) -> None:
    """Refuse a name that timm does not know.

    Raises:
        ConfigurationError: the message names architectures near it.
    """
    if not timm.is_model(architecture):
        near = timm.list_models(f"*{architecture.split('.', maxsplit=1)[0].split('_', maxsplit=1)[0]}*")[:8]
        raise ConfigurationError(f"timm has no architecture {architecture!r}; near it: {', '.join(near) or 'nothing'}")


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint: names without what trainers put before all of them, and tensors.

    Reads a plain state_dict, one under a key of `STATE_KEYS` (Lightning's, timm's, torchvision's, an average of the
    weights first), and `.safetensors`. `PREFIXES` are taken off: those of `torch.compile`, of DDP and averages, of
    Lightning modules. Nothing but tensors and plain values is unpickled.

    Raises:
        DataValidationError: the file is no checkpoint, or holds code.
    """
    state = _state(_read_safetensors(path) if path.suffix == ".safetensors" else _unpickled(path))
    if not state or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataValidationError(f"{path} holds no state_dict: a mapping of names to tensors")
    state = {str(name).replace("_orig_mod.", ""): value for name, value in state.items() if name != "n_averaged"}
    while prefix := next((one for one in PREFIXES if all(name.startswith(one) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return state


def _state(content: Any) -> dict[Any, Any]:
    """Return the mapping of names to tensors in `content`, as it was saved; an empty one where there is none."""
    if not isinstance(content, dict):
        return {}
    found: dict[Any, Any] = next((content[key] for key in STATE_KEYS if isinstance(content.get(key), dict)), content)
    return found


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    try:
        return load_file(path)
    except SafetensorError as error:
        raise DataValidationError(f"{path} is not a .safetensors file: {error}") from error


def _unpickled(path: Path) -> Any:
    try:
        # Mapped into memory: the weights are then copied once, into the model.
        with torch.serialization.safe_globals(PLAIN_VALUES):
            return torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
    except OSError:
        raise
    except Exception as error:  # a damaged pickle may raise anything
        reason = str(error).strip().split("\n", 1)[0]
        raise DataValidationError(f"{path} is not a checkpoint of weights alone: {reason}") from error


def load_classifier(path: Path, spec: ModelSpec) -> Classifier:
    """Return the model of `spec` with the weights at `path`, in evaluation mode on the CPU.

    Raises:
        DataValidationError: the weights are not those of this architecture and these classes; the message names what
            differs.
    """
    model = uninitialized(lambda: Classifier(spec.architecture, len(spec.labels), spec.preprocessing.channels))
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
