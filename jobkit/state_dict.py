"""Weights as names and tensors, from whatever a trainer has put around them. Importing this imports torch."""

from __future__ import annotations

import argparse
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from jobkit.errors import DataValidationError
from jobkit.sandbox import runner

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
_FILE = "weights.safetensors"


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint: names without what trainers put before all of them, and tensors.

    Reads a plain state_dict, one under a key of `STATE_KEYS` (Lightning's, timm's, torchvision's, an average of the
    weights first), and `.safetensors`. `PREFIXES` are taken off: those of `torch.compile`, of DDP and averages, of
    Lightning modules. Nothing but tensors and plain values is unpickled.

    Raises:
        DataValidationError: the file is no checkpoint, or holds code.
    """
    state = _state(_read_safetensors(path) if is_safetensors(path) else _unpickled(path))
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


def is_safetensors(path: Path) -> bool:
    """Whether a file is one of safetensors: eight bytes with the length of the JSON object that follows them."""
    with path.open("rb") as file:
        head = file.read(9)
    return path.suffix == ".safetensors" or (len(head) == 9 and head[8:] == b"{" and not any(head[4:8]))


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


def read_foreign_state_dict(path: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint of unknown origin, as `read_state_dict` does: the sandbox alone opens it.

    Raises:
        DataValidationError: the file is no checkpoint, or holds code.
        ConfigurationError: this kernel has no sandbox, and NIGHTSHIFT_SANDBOX asks for it.
    """
    with runner.run(write_state_dict, {"weights": path}, reads=[path]) as done:
        return _read_safetensors(done.file(_FILE))


def write_state_dict(work: Path, weights: Path) -> int:
    """Write the state_dict of a checkpoint to `work` as safetensors, which holds numbers alone; return its tensors."""
    state = read_state_dict(weights)
    apart = {name: value.detach().clone(memory_format=torch.contiguous_format) for name, value in state.items()}
    save_file(apart, work / _FILE)
    return len(state)
