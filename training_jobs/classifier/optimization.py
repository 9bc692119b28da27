"""Optimizers and the one-cycle schedule."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterable
from typing import Any

import torch
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import OneCycleLR

from jobkit.classifier import Classifier
from jobkit.errors import ConfigurationError
from training_jobs.classifier import config as configuration

logger = logging.getLogger("training_jobs.train_classifier")


def build_optimizer(config: configuration.Optimizer, model: Classifier, fused: bool = True) -> Optimizer:
    """Return the optimizer, with one group of parameters per learning rate and weight decay.

    `fused` updates all weights in one call. It has to be off where gradients of a mixed precision are clipped: a fused
    optimizer unscales those of 16 itself, after the clipping, and so Lightning refuses to clip for it (for bf16, too).
    Without a GPU adamw_8bit is adamw, with a warning.

    Raises:
        ConfigurationError: adamw_8bit is asked for and bitsandbytes is missing.
    """
    decay, backbone_lr = config.weight_decay, config.backbone_lr or config.lr or 1e-3
    named = dict(model.backbone.named_parameters())
    scales = layer_scales(model.backbone, config.layer_decay) if config.layer_decay else dict.fromkeys(named, 1.0)
    groups: list[dict[str, Any]] = []
    for scale in sorted(set(scales.values())):  # the layers next to the classes last: theirs is the rate that is shown
        chosen = [value for name, value in named.items() if scales[name] == scale]
        groups += _groups("backbone", chosen, backbone_lr * scale, decay)
    groups += _groups("fc", model.fc.parameters(), config.fc_lr or config.lr or 1e-3, decay)
    betas, eps = config.betas, config.eps
    if config.type == "sgd":
        return torch.optim.SGD(groups, momentum=betas[0], nesterov=betas[0] > 0, fused=fused)
    if config.type == "adam":
        return torch.optim.Adam(groups, betas=betas, eps=eps, fused=fused)
    if config.type == "adamw_8bit" and torch.cuda.is_available():
        return _adamw_8bit(groups, betas, eps)
    if config.type == "adamw_8bit":
        logger.warning("optimizer.type adamw_8bit needs a GPU, and there is none here: training with adamw")
    return torch.optim.AdamW(groups, betas=betas, eps=eps, fused=fused)


def layer_scales(backbone: nn.Module, layer_decay: float) -> dict[str, float]:
    """Return what the rate of each parameter of a backbone is multiplied with: `layer_decay ** (layers above it)`.

    Layers are timm's, with a classification layer as the one at the top, whose rate stays (Clark et al. 2020; as in
    BEiT, Bao et al. 2022).
    """
    whole: Any = copy.deepcopy(backbone).to("meta").requires_grad_(True)
    whole.reset_classifier(2)
    scales: dict[int, float] = {}
    for group in param_groups_layer_decay(whole, layer_decay=layer_decay):
        scales |= {id(value): float(group["lr_scale"]) for value in group["params"]}
    by_name = {name: scales[id(value)] for name, value in whole.named_parameters()}
    return {name: by_name[name] for name, _ in backbone.named_parameters()}


def _groups(part: str, parameters: Iterable[nn.Parameter], lr: float, weight_decay: float) -> Iterable[dict[str, Any]]:
    """Yield parameters in two groups: weights, which decay; biases and norms (one axis), which do not."""
    parameters = [parameter for parameter in parameters if parameter.requires_grad]
    for decay, chosen in (
        (weight_decay, [p for p in parameters if p.ndim > 1]),
        (0.0, [p for p in parameters if p.ndim <= 1]),
    ):
        if chosen:
            yield {"params": chosen, "part": part, "lr": lr, "weight_decay": decay}


def _adamw_8bit(groups: list[dict[str, Any]], betas: tuple[float, float], eps: float) -> Optimizer:
    try:
        from bitsandbytes.optim import AdamW8bit
    except ImportError as error:
        raise ConfigurationError(
            "optimizer.type adamw_8bit needs the package bitsandbytes in this image; or use adamw"
        ) from error
    optimizer: Optimizer = AdamW8bit(groups, betas=betas, eps=eps)
    return optimizer


class OneCycle(OneCycleLR):
    """The one-cycle schedule, which ends at its last rate.

    torch's own goes on after the last update: a linear schedule then to a negative rate, which is what gets logged.
    """

    def get_lr(self) -> list[Any]:
        """Return the rate of each group."""
        if self.last_epoch >= self.total_steps:
            return [group["lr"] for group in self.optimizer.param_groups]
        return list(super().get_lr())


def build_scheduler(config: configuration.Scheduler, optimizer: Optimizer, steps: int) -> OneCycle:
    """Return the one-cycle schedule over `steps` weight updates.

    Each group keeps its own highest rate (a scalar `max_lr` would flatten them), and the optimizer keeps its betas
    (OneCycleLR overwrites them unless told not to).
    """
    total, pct_start = max(steps, 2), config.pct_start
    if pct_start * total == 1:  # a rise of one update, over whose length, none, torch would divide
        pct_start *= 1 - 1e-9
    return OneCycle(
        optimizer, max_lr=[group["lr"] for group in optimizer.param_groups], total_steps=total,
        anneal_strategy=config.anneal_strategy, div_factor=config.div_factor, final_div_factor=config.final_div_factor,
        pct_start=pct_start, cycle_momentum=False,
    )  # fmt: skip
