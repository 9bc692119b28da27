"""The model before the first step: built, fine-tuned from a checkpoint, averaged while it trains."""

from __future__ import annotations

import inspect
import logging
import re
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any

import timm
import torch
from pydantic import ValidationError
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from jobkit import published_weights
from jobkit.bottle import Bottle, FolderBottle
from jobkit.classifier import Classifier, check_architecture
from jobkit.errors import ConfigurationError
from jobkit.files import sha256_of
from jobkit.model_spec import SPEC_FILE, UNKNOWN_LICENSE, ModelSpec, WeightsOrigin
from jobkit.published_weights import Found
from jobkit.state_dict import read_foreign_state_dict
from training_jobs.classifier.config import Config
from training_jobs.classifier.config_checks import RESERVED

logger = logging.getLogger("training_jobs.train_classifier")


def build(config: Config, classes: int, bottle: Bottle) -> Classifier:
    """Return the model with its initial weights: random, published (`pretrained`), or from a checkpoint (`load_from`).

    A checkpoint wins over published weights, as in the older trainer.

    Raises:
        ConfigurationError: the architecture is unknown or does not take its arguments, published weights are not at
            hand, or layers do not fit.
        DataValidationError: the weights are damaged, hold code, or are not what their record says.
    """
    model = config.model
    options = architecture_options(config)
    check_architecture(model.backbone_name)
    random_state = torch.random.get_rng_state()
    try:
        built = Classifier(model.backbone_name, classes, model.in_channels, **options)
    except Exception as error:
        if not options:
            raise
        raise ConfigurationError(_refused(config, options, error)) from error
    if model.load_from is not None:
        if model.pretrained:
            logger.warning("model.pretrained: true has no effect: model.load_from is set, and wins")
        fine_tune(built, find(config, model.load_from, bottle), model.load_mismatched)
    elif model.pretrained:
        take_published(built, config, _published(config, bottle), random_state)
    return built.to(memory_format=torch.channels_last)  # type: ignore[call-overload,no-any-return]


def architecture_options(config: Config) -> dict[str, Any]:
    """Return what the file gives to the architecture: its arguments, rates of dropout and stochastic depth."""
    rates = {"drop_rate": config.model.drop_rate, "drop_path_rate": config.model.drop_path_rate}
    return {**config.model.arguments, **{name: rate for name, rate in rates.items() if rate is not None}}


def _refused(config: Config, options: Mapping[str, Any], error: Exception) -> str:
    """Return which keys of the file the architecture does not take, and what it takes."""
    name = config.model.backbone_name
    keys = {key: f"model.arguments.{key}" if key in config.model.arguments else f"model.{key}" for key in options}
    unknown = re.search(r"unexpected keyword argument '(\w+)'", str(error))
    if unknown is None or unknown[1] not in keys:
        return f"{' and '.join(keys.values())}: {name} cannot be built with that: {type(error).__name__}: {error}"
    takes = inspect.signature(type(Classifier(name, 2).backbone).__init__).parameters
    valid = ", ".join(one for one in takes if one not in RESERVED and one not in ("self", "args", "kwargs"))
    return f"{keys[unknown[1]]}: {name} does not take it; leave it out, or take one of: {valid}"


def initial_weights(config: Config, bottle: Bottle) -> WeightsOrigin | None:
    """Return where the weights that a training starts from are from; None where they are random.

    The license of a checkpoint is that of what it was trained from, as far as that is known.
    """
    model = config.model
    if model.load_from is not None:
        path = find(config, model.load_from, bottle)
        license_ = _license_of(config, model.load_from, bottle)
        return WeightsOrigin(name=model.load_from, source=str(path), license=license_, sha256=sha256_of(path))
    return _published(config, bottle).origin if model.pretrained else None


def _license_of(config: Config, name: str, bottle: Bottle) -> str:
    """Return the license of the weights that a checkpoint of ours was trained from, or of fetched weights."""
    folder = config.directories.models
    place: Bottle = bottle
    if folder is not None and (Path(folder) / name).is_file():
        place = FolderBottle(Path(folder))
    record, spec = PurePosixPath(name).with_suffix(".json"), PurePosixPath(name).parent.parent / SPEC_FILE
    try:
        if place.exists(str(record)):
            return WeightsOrigin.model_validate_json(place.read(str(record))).license
        if place.exists(str(spec)):
            trained = ModelSpec.model_validate_json(place.read(str(spec))).initial_weights
            return trained.license if trained else UNKNOWN_LICENSE
    except (ValidationError, ConfigurationError):  # another file of that name, or outside the bottle
        pass
    return UNKNOWN_LICENSE


def _published(config: Config, bottle: Bottle) -> Found:
    folder = config.directories.models
    return published_weights.find(config.model.backbone_name, bottle, Path(folder) if folder else None)


def take_published(model: Classifier, config: Config, found: Found, random_state: Tensor) -> None:
    """Put the published weights `found` into the backbone, as timm does: with its names, and for other channels.

    `random_state` is that which `model` was built in: built in it again, a matrix that is as before was not loaded.
    timm itself leaves out what does not fit.

    Raises:
        ConfigurationError: matrices of the backbone are not in the file.
        DataValidationError: the file is damaged or holds code.
    """
    name, state = config.model.backbone_name, read_foreign_state_dict(found.path)
    with torch.random.fork_rng(devices=[]):
        torch.random.set_rng_state(random_state)
        try:
            backbone: nn.Module = timm.create_model(
                name, pretrained=True, pretrained_cfg_overlay={"state_dict": state}, num_classes=0,
                in_chans=config.model.in_channels, **architecture_options(config),
            )  # fmt: skip
        except Exception as error:  # its filters of names may stumble over anything
            raise ConfigurationError(
                f"model.pretrained: {found.path} does not fit {name}: {type(error).__name__}: {error}"
            ) from error
    before = dict(model.backbone.named_parameters())
    matrices = {name: value for name, value in backbone.named_parameters() if value.ndim > 1}
    missing = [name for name, value in matrices.items() if torch.equal(value, before[name])]
    if missing:
        raise ConfigurationError(
            f"model.pretrained: {found.path} has {len(matrices) - len(missing)} of the {len(matrices)} matrices of "
            f"{name}, and not {_some(missing)}: these are weights of something else"
        )
    model.backbone = backbone
    origin = found.origin
    logger.info("%s: published weights from %s, license %s", origin.name, origin.source, origin.license)


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
