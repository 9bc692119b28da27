"""The model before the first step: built, fine-tuned from a checkpoint, averaged while it trains."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from jobkit.bottle import Bottle
from jobkit.classifier import Classifier
from jobkit.errors import ConfigurationError
from jobkit.state_dict import read_foreign_state_dict
from training_jobs.classifier.config import Config

logger = logging.getLogger("training_jobs.train_classifier")


def build(config: Config, classes: int, bottle: Bottle) -> Classifier:
    """Return the model with its initial weights: random, published (`pretrained`), or from a checkpoint (`load_from`).

    A checkpoint wins over published weights, as in the older trainer.

    Raises:
        ConfigurationError: the architecture is unknown, published weights are not at hand, or layers do not fit.
        DataValidationError: the checkpoint is damaged or holds code.
    """
    model = config.model
    pretrained = model.pretrained and model.load_from is None
    if model.pretrained and not pretrained:
        logger.warning("model.pretrained: true has no effect: model.load_from is set, and wins")
    try:
        built = Classifier(model.backbone_name, classes, model.in_channels, pretrained=pretrained, **_rates(config))
    except TypeError as error:
        given = " and ".join(f"model.{name}" for name in _rates(config))
        if not given or "unexpected keyword" not in str(error):
            raise
        raise ConfigurationError(f"{given}: {model.backbone_name} does not take it ({error}); leave it out") from error
    except (OSError, RuntimeError) as error:
        if not pretrained:
            raise
        raise ConfigurationError(
            f"model.pretrained: timm's weights of {model.backbone_name} cannot be had here ({error}); "
            "put the checkpoint beside the models and name it in model.load_from"
        ) from error
    if model.load_from is not None:
        fine_tune(built, find(config, model.load_from, bottle), model.load_mismatched)
    return built.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def _rates(config: Config) -> dict[str, float]:
    """Return the rates of dropout and stochastic depth that the file has."""
    rates = {"drop_rate": config.model.drop_rate, "drop_path_rate": config.model.drop_path_rate}
    return {name: rate for name, rate in rates.items() if rate is not None}


def find(config: Config, name: str, bottle: Bottle) -> Path:
    """Return the checkpoint `name`: below directories.models where that is set, else in the bottle."""
    folder = config.directories.models
    if folder is not None and (Path(folder) / name).is_file():
        return Path(folder) / name
    if not Path(name).is_absolute() and bottle.exists(name):
        return bottle.local(name)
    places = [str(Path(folder) / name)] if folder else []
    raise ConfigurationError(f"model.load_from: there is no {' and no '.join([*places, f'{bottle}/{name}'])}")


def fine_tune(model: Classifier, path: Path, accept_mismatched: bool) -> None:
    """Load the checkpoint at `path` into `model`, adapting the first layer to other channels.

    The classification layer starts anew where the class count differs or the checkpoint has none. Anything else that
    does not fit is refused unless `accept_mismatched`; then those layers keep their random weights. A checkpoint of
    whose backbone nothing fits is refused all the same: nothing of it would be trained further.

    Raises:
        ConfigurationError: layers do not fit; the message lists what does and what does not.
    """
    state, expected = in_our_names(read_foreign_state_dict(path), model), model.state_dict()
    first = first_layer(model)
    if first is not None and first in state:
        state[first] = adapt_channels(state[first], expected[first].shape[1])
    fits = {name: value for name, value in state.items() if name in expected and value.shape == expected[name].shape}
    unfit = sorted(
        name for name in {*state, *expected} - fits.keys() if not (name.startswith("fc.") and name in expected)
    )
    if unfit and not accept_mismatched:
        raise ConfigurationError(
            f"model.load_from: {path}: {len(fits)} of {len(expected)} tensors fit ({_some(sorted(fits))}), "
            f"these do not: {_some([_why(name, state, expected) for name in unfit])}; "
            "model.load_mismatched: true trains those from random weights"
        )
    if not any(name.startswith("backbone.") and value.ndim > 1 for name, value in fits.items()):  # norms fit by chance
        raise ConfigurationError(
            f"model.load_from: {path}: no weight of the backbone fits "
            f"({_some([_why(name, state, expected) for name in unfit])}), so that the model would train from random "
            "weights: name a checkpoint of this backbone_name, or leave out load_from"
        )
    model.load_state_dict({**expected, **fits})
    fresh = sorted(expected.keys() - fits.keys())
    logger.info("%s: %d of %d tensors loaded, new: %s", path, len(fits), len(expected), _some(fresh) or "none")


def in_our_names(state: dict[str, Tensor], model: Classifier) -> dict[str, Tensor]:
    """Return `state` under the names of `Classifier`, where its names are timm's, or below the attribute of a module.

    What stands beside that attribute (the weights of a loss, metrics) is left out, and so is what timm has in its
    classification layer beside one matrix and one bias. A `state` whose names are not known better comes back as it is.
    """
    backbone = {name.removeprefix("backbone.") for name in model.state_dict() if name.startswith("backbone.")}
    ours = {*model.state_dict()}
    found = [(len(ours & state.keys()), state)]
    for prefix in ("", *sorted({f"{name.split('.', 1)[0]}." for name in state})):
        below = {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}
        found.append((len(ours & below.keys()), below))
        if not any(name.startswith("backbone.") for name in below):
            renamed = _from_timm(below, model.backbone, backbone)
            found.append((len(ours & renamed.keys()), renamed))
    best = max(found, key=lambda one: one[0])[1]  # of equals the first
    if left_out := len(state) - len(best):
        logger.info("%d of %d tensors of the checkpoint are not of the backbone and its classes", left_out, len(state))
    return best


def _from_timm(state: dict[str, Tensor], backbone: nn.Module, expected: set[str]) -> dict[str, Tensor]:
    """Return a state_dict of a timm model with its classification layer under the names of `Classifier`."""
    configured = getattr(backbone, "pretrained_cfg", {}).get("classifier") or ()
    layers = (configured,) if isinstance(configured, str) else tuple(configured)
    renamed = {}
    for name, value in state.items():
        layer, _, kind = name.rpartition(".")
        if name in expected or not any(name.startswith(f"{one.split('.', 1)[0]}.") for one in layers):
            renamed[f"backbone.{name}"] = value
        elif layers == (layer,):
            renamed[f"fc.{kind}"] = value
    return renamed


def first_layer(model: Classifier) -> str | None:
    """Return the name of the weight that sees the picture's channels, as timm's own registry gives it."""
    configured = getattr(model.backbone, "pretrained_cfg", {}).get("first_conv")
    return f"backbone.{configured}.weight" if isinstance(configured, str) else None


def adapt_channels(weight: Tensor, channels: int) -> Tensor:
    """Return a first convolution's weight, float [out, in, h, w], for another number of channels.

    A gray picture gives the sum over colors of what the same gray in every color would give, and the other way round.
    """
    have = weight.shape[1]
    if have == channels or have not in (1, 3):
        return weight
    return weight.sum(1, keepdim=True) if channels == 1 else weight.repeat(1, channels, 1, 1) / channels


def average_of(model: nn.Module, decay: float) -> AveragedModel:
    """Return an exponential moving average of `model`, with buffers (the statistics of batch norms), not trainable.

    The decay of update n is `min(decay, (1 + n) / (10 + n))`, so that an early average is not its random start.
    """

    def update(averaged: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        share = 1 - min(decay, (1 + int(updates)) / (10 + int(updates)))
        for mine, new in zip(averaged, current, strict=True):
            if mine.is_floating_point():
                mine.lerp_(new.to(mine.dtype), share)
            else:
                mine.copy_(new)

    average = AveragedModel(model, multi_avg_fn=update, use_buffers=True)
    return average.requires_grad_(False).eval()


def _why(name: str, state: dict[str, Tensor], expected: dict[str, Tensor]) -> str:
    if name not in state:
        return f"{name} (missing)"
    if name not in expected:
        return f"{name} (unknown)"
    return f"{name} (is {list(state[name].shape)}, not {list(expected[name].shape)})"


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
