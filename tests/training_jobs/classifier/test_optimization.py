"""Optimizers and one-cycle: what the file says survives."""

from __future__ import annotations

import math
from typing import Any

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]

from jobkit.classifier import Classifier
from tests.training_jobs.classifier.support import config
from training_jobs.classifier.optimization import build_optimizer, build_scheduler

TWO = {"optimizer__lr": None, "optimizer__lr_type": "two_lrs", "optimizer__backbone_lr": 1e-4, "optimizer__fc_lr": 1e-2}


def rates(steps: int = 20, **values: Any) -> tuple[list[list[float]], torch.optim.Optimizer]:
    chosen = config(**values)
    optimizer = build_optimizer(chosen.optimizer, Classifier("test_resnet", 3))
    scheduler = build_scheduler(chosen.scheduler, optimizer, steps)
    seen = []
    for _ in range(steps):
        seen.append([group["lr"] for group in optimizer.param_groups])
        optimizer.step()
        scheduler.step()
    return seen, optimizer


def test_two_learning_rates_survive_the_schedule() -> None:
    seen, optimizer = rates(**TWO)
    highest = [max(step[group] for step in seen) for group in range(4)]
    assert highest == pytest.approx([1e-4, 1e-4, 1e-2, 1e-2], rel=0.05)
    backbone = sum(p.numel() for group in optimizer.param_groups[:2] for p in group["params"])
    assert backbone == sum(p.numel() for p in Classifier("test_resnet", 3).backbone.parameters())


@pytest.mark.parametrize("name", ["test_resnet", "test_vit", "test_convnext", "mobilenetv3_small_050"])
def test_layers_have_the_rates_that_timm_gives_those_of_the_whole_model(name: str) -> None:
    """With its classification layer, which ours is built without."""
    whole = timm.create_model(name, num_classes=3)
    scales = {
        id(p): group["lr_scale"] for group in param_groups_layer_decay(whole, layer_decay=0.6) for p in group["params"]
    }
    expected = {name: scales[id(parameter)] for name, parameter in whole.named_parameters()}
    model = Classifier(name, 3)
    optimizer = build_optimizer(config(**TWO, optimizer__layer_decay=0.6).optimizer, model)
    found = {id(parameter): group["lr"] for group in optimizer.param_groups for parameter in group["params"]}
    for name_, parameter in model.backbone.named_parameters():
        assert found[id(parameter)] == pytest.approx(1e-4 * expected[name_]), name_
    assert {found[id(parameter)] for parameter in model.fc.parameters()} == {1e-2}
    assert len(found) == len(list(model.parameters()))
    shown = {group["part"]: group["lr"] for group in optimizer.param_groups}  # as the training's log has them
    assert shown["backbone"] == pytest.approx(1e-4 * max(expected[n] for n, _ in model.backbone.named_parameters()))
    assert min(expected.values()) < 0.6**2


def test_betas_survive_the_schedule() -> None:
    _, optimizer = rates(optimizer__betas=[0.8, 0.99])
    assert all(group["betas"] == (0.8, 0.99) for group in optimizer.param_groups)


def test_the_schedule_starts_rises_and_ends_where_the_file_says() -> None:
    seen, _ = rates(steps=100, optimizer__lr=0.1, scheduler__div_factor=1000.0, scheduler__final_div_factor=10000.0,
                    scheduler__pct_start=0.1)  # fmt: skip
    first = [step[0] for step in seen]
    assert first[0] == pytest.approx(0.1 / 1000)
    assert first.index(max(first)) == 9
    assert max(first) == pytest.approx(0.1)
    assert first[-1] == pytest.approx(0.1 / 1000 / 10000)


def test_biases_and_norms_do_not_decay() -> None:
    _, optimizer = rates(optimizer__weight_decay=0.3)
    for group in optimizer.param_groups:
        assert all((parameter.ndim > 1) == (group["weight_decay"] == 0.3) for parameter in group["params"])


@pytest.mark.parametrize(
    ("name", "expected"), [("adamw", torch.optim.AdamW), ("adam", torch.optim.Adam), ("sgd", torch.optim.SGD)]
)
def test_the_named_optimizer_is_built(name: str, expected: type) -> None:
    _, optimizer = rates(optimizer__type=name)
    assert type(optimizer) is expected


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU here")
def test_eight_bit_adamw_without_a_gpu_is_adamw_and_says_so(caplog: pytest.LogCaptureFixture) -> None:
    _, optimizer = rates(optimizer__type="adamw_8bit", optimizer__betas=[0.8, 0.99])
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["betas"] == (0.8, 0.99)
    assert "adamw_8bit needs a GPU, and there is none here: training with adamw" in caplog.text


@pytest.mark.parametrize("steps", [1, 2, 3])
def test_a_training_of_few_steps_has_a_schedule(steps: int) -> None:
    rates(steps=steps)


def by_hand(step: float, steps: int, strategy: str, pct_start: float, peak: float) -> float:
    """The rate of an update by the formula of the schedule: up from peak / 25 to peak, down to peak / 25 / 10000."""
    top, last = pct_start * steps - 1, steps - 1
    first, part = (peak / 25, step / top) if 0 < top >= step else (peak, (step - top) / (last - top))
    final = peak if 0 < top >= step else peak / 25 / 1e4
    return first + (final - first) * (part if strategy == "linear" else (1 - math.cos(math.pi * part)) / 2)


@pytest.mark.parametrize("strategy", ["linear", "cos"])
@pytest.mark.parametrize(("steps", "pct_start"), [(2, 0.3), (10, 0.1), (20, 0.1), (100, 0.25)])
def test_the_rate_follows_the_formula_and_stays_at_its_last_value(strategy: str, steps: int, pct_start: float) -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.1)
    chosen = config(scheduler__anneal_strategy=strategy, scheduler__pct_start=pct_start,
                    scheduler__div_factor=25.0, scheduler__final_div_factor=1e4)  # fmt: skip
    scheduler = build_scheduler(chosen.scheduler, optimizer, steps)
    seen = []
    for _ in range(steps + 1):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step() if len(seen) <= steps else None
    assert seen[:-1] == pytest.approx([by_hand(n, steps, strategy, pct_start, 0.1) for n in range(steps)], rel=1e-6)
    assert seen[-1] == seen[-2] > 0
