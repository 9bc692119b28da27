"""The loss with soft targets and class weights, and mixing."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch.nn import functional
from torchvision.ops import sigmoid_focal_loss

from jobkit.classifier import Classifier
from tests.training_jobs.classifier.support import config
from training_jobs.classifier.lightning_module import ClassifierModule
from training_jobs.classifier.mixing import mix

LOGITS = torch.randn(8, 3, generator=torch.Generator().manual_seed(0))
LABELS = torch.tensor([0, 1, 2, 0, 1, 2, 0, 0])
WEIGHTS = torch.tensor([0.5, 1.0, 4.0])


def loss(targets: torch.Tensor, weights: torch.Tensor | None = None, **values: Any) -> torch.Tensor:
    return ClassifierModule(config(**values), Classifier("test_resnet", 3), weights).loss(LOGITS, targets)


@pytest.mark.parametrize("weights", [None, WEIGHTS])
def test_hard_labels_give_torchs_cross_entropy(weights: torch.Tensor | None) -> None:
    expected = functional.cross_entropy(LOGITS, LABELS, weights)
    assert torch.allclose(loss(functional.one_hot(LABELS, 3).float(), weights), expected)


def test_soft_targets_and_smoothing_give_torchs_cross_entropy() -> None:
    soft = functional.one_hot(LABELS, 3) * 0.7 + functional.one_hot(LABELS.flip(0), 3) * 0.3
    assert torch.allclose(loss(soft), functional.cross_entropy(LOGITS, soft))
    smoothed = loss(soft, criterion__label_smoothing=0.2)
    assert torch.allclose(smoothed, functional.cross_entropy(LOGITS, soft, label_smoothing=0.2))


def test_class_weights_count_soft_targets_by_their_shares() -> None:
    """A mixed picture of two classes weighs as the two, in their shares: a class's weight is not lost by mixing."""
    soft = functional.one_hot(LABELS, 3) * 0.75 + functional.one_hot(LABELS.flip(0), 3) * 0.25
    logs = functional.log_softmax(LOGITS, 1)
    expected = sum(
        share * WEIGHTS[c] * -logs[n, c] for n in range(8) for c, share in enumerate(soft[n])
    ) / sum(share * WEIGHTS[c] for n in range(8) for c, share in enumerate(soft[n]))  # fmt: skip
    assert torch.allclose(loss(soft, WEIGHTS), expected)


def mixed(
    strategy: str | None, p: float, seed: int, alpha: float = 1.0
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    values = torch.arange(6.0) * 10
    pictures = values.view(6, 1, 1, 1).expand(6, 1, 16, 16).contiguous()
    chosen = config(training__mixing__strategy=strategy, training__mixing__p=p, training__mixing__alpha=alpha)
    changed, targets = mix(chosen.training.mixing, pictures, torch.eye(6), np.random.default_rng(seed))
    return changed, targets, values


@pytest.mark.parametrize("strategy", ["mixup", "cutmix"])
def test_targets_follow_the_pictures(strategy: str) -> None:
    """Each class has one gray value, so that a picture's mean says how much of each class is in it."""
    for seed in range(20):
        changed, targets, values = mixed(strategy, 1.0, seed)
        assert torch.allclose(changed.mean((1, 2, 3)), targets @ values, atol=1e-4)
        assert torch.allclose(targets.sum(1), torch.ones(6))


def test_a_batch_that_is_not_mixed_keeps_one_hot_targets() -> None:
    unchanged = 0
    for seed in range(60):
        _, targets, _ = mixed("mixup", 0.3, seed)
        assert targets.dtype == torch.float32 and targets.shape == (6, 6)
        unchanged += torch.equal(targets, torch.eye(6))
    assert 30 <= unchanged <= 54  # of 60 with probability 0.7
    assert torch.equal(mixed(None, 1.0, 0)[1], torch.eye(6))


def test_alpha_sets_how_strongly_pictures_mix() -> None:
    def strength(alpha: float) -> float:
        return float(np.mean([mixed("mixup", 1.0, seed, alpha)[1].max(1).values.mean() for seed in range(40)]))

    assert strength(0.05) > strength(20.0) + 0.2


@pytest.mark.parametrize("gamma", [0.5, 2.0])
def test_the_focal_loss_of_two_classes_is_torchvisions(gamma: float) -> None:
    """Of logits 0 and z a softmax gives what a sigmoid gives of z."""
    logits, labels = LOGITS[:, 0], (LABELS > 0).long()
    module = ClassifierModule(
        config(criterion__type="focal", criterion__focal_gamma=gamma), Classifier("test_resnet", 2), None
    )
    ours = module.loss(torch.stack([torch.zeros(8), logits], 1), functional.one_hot(labels, 2).float())
    expected = sigmoid_focal_loss(logits, labels.float(), alpha=-1, gamma=gamma, reduction="mean")
    assert torch.allclose(ours, expected)


def test_the_focal_loss_of_many_classes_is_its_formula() -> None:
    p = LOGITS.softmax(1)[torch.arange(8), LABELS]
    targets, expected = functional.one_hot(LABELS, 3).float(), -((1 - p) ** 3) * p.log()
    assert torch.allclose(loss(targets, criterion__type="focal", criterion__focal_gamma=3.0), expected.mean())
    weighted = (expected * WEIGHTS[LABELS]).sum() / WEIGHTS[LABELS].sum()
    assert torch.allclose(loss(targets, WEIGHTS, criterion__type="focal", criterion__focal_gamma=3.0), weighted)
    plain = loss(targets, criterion__type="focal", criterion__focal_gamma=0.0)
    assert torch.allclose(plain, functional.cross_entropy(LOGITS, LABELS))


def test_the_focal_loss_of_a_sure_answer_has_a_gradient() -> None:
    """(1 - p)^gamma has none at p = 1 where gamma is below 1."""
    module = ClassifierModule(
        config(criterion__type="focal", criterion__focal_gamma=0.5), Classifier("test_resnet", 3), None
    )
    logits = torch.tensor([[100.0, 0.0, 0.0]], requires_grad=True)
    module.loss(logits, torch.tensor([[1.0, 0.0, 0.0]])).backward()
    assert logits.grad is not None and logits.grad.isfinite().all()


@pytest.mark.parametrize(("weights", "smoothing"), [(None, 0.0), (WEIGHTS, 0.0), (WEIGHTS, 0.2)])
def test_of_several_labels_each_class_is_judged_by_itself(weights: torch.Tensor | None, smoothing: float) -> None:
    """By the definition: a yes weighs what its class does, a no 1; smoothing moves both towards each other."""
    targets = (torch.rand(8, 3, generator=torch.Generator().manual_seed(1)) > 0.5).float()
    given = loss(targets, weights, criterion__type="binary_cross_entropy", criterion__label_smoothing=smoothing)
    probability, wanted = LOGITS.sigmoid(), targets * (1 - smoothing) + smoothing / 2
    yes = torch.ones(3) if weights is None else weights
    expected = -(yes * wanted * probability.log() + (1 - wanted) * (1 - probability).log()).mean()
    assert torch.allclose(given, expected)


def test_mixed_pictures_of_several_labels_have_the_shares_of_both() -> None:
    targets = torch.tensor([[1.0, 1.0, 0.0], [0.0, 1.0, 0.0]] * 3)
    chosen = config(training__mixing__strategy="mixup", training__mixing__alpha=1.0)
    pictures = targets[:, :, None, None].expand(6, 3, 4, 4).contiguous()  # a channel a class
    changed, mixed_targets = mix(chosen.training.mixing, pictures, targets, np.random.default_rng(0))
    assert torch.allclose(changed.mean((2, 3)), mixed_targets) and not torch.equal(mixed_targets, targets)
