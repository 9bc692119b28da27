"""A frozen backbone stays as it was, to the bit; dropout and stochastic depth are the architecture's own."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError
from jobkit.experiment import Experiment
from tests.training_jobs.classifier.support import config, examples, fit
from tests.training_jobs.classifier.test_resume import Killed, kill_in
from training_jobs.classifier.config import Config
from training_jobs.classifier.examples import Examples
from training_jobs.classifier.weights import build

MOVING: dict[str, Any] = {"optimizer__weight_decay": 0.5, "optimizer__lr": 0.1, "scheduler__div_factor": 1.0}


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples(tmp_path_factory.mktemp("pictures"))


def start(chosen: Config) -> dict[str, torch.Tensor]:
    torch.manual_seed(chosen.seed)
    return build(chosen, 3, FolderBottle(Path())).state_dict()


def changed(chosen: Config, content: dict[str, Any]) -> set[str]:
    """Return what of the model is no longer what it started from, by the first part of its name."""
    state = content["state_dict"]
    before = start(chosen)
    return {name.split(".")[0] for name, value in before.items() if not torch.equal(value, state[f"model.{name}"])}


@pytest.mark.parametrize("optimizer", ["adamw", "adam", "sgd"])
def test_a_frozen_backbone_stays_as_it_was_with_its_norms_while_its_classes_learn(
    optimizer: str, found: Examples, tmp_path: Path
) -> None:
    chosen = config(**MOVING, optimizer__type=optimizer, training__frozen_epochs=2)
    assert changed(chosen, fit(tmp_path / "frozen", chosen, found)[1]) == {"fc"}
    free = config(**MOVING, optimizer__type=optimizer)
    assert changed(free, fit(tmp_path / "free", free, found)[1]) == {"fc", "backbone"}


def test_it_learns_from_the_named_epoch_on(found: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    chosen = config(**MOVING, training__frozen_epochs=1, training__ema_decay=0.5)
    with monkeypatch.context() as patch:
        kill_in(patch, 1, 0)
        with pytest.raises(Killed):
            fit(tmp_path, chosen, found)
    last = FolderBottle(tmp_path).path(Experiment("models/colors/v__0").last_checkpoint)
    assert changed(chosen, torch.load(last, weights_only=True)) == {"fc"}
    assert changed(chosen, fit(tmp_path, chosen, found)[1]) == {"fc", "backbone"}


# A new ResNet's blocks add nothing, and test_efficientnet has none that could be left out.
@pytest.mark.parametrize(
    ("rate", "name"),
    [
        *(("drop_rate", name) for name in ("test_resnet", "test_efficientnet", "test_convnext", "test_vit")),
        *(("drop_path_rate", name) for name in ("test_convnext", "test_vit")),
    ],
)
def test_the_rates_reach_the_architecture_in_training_alone(name: str, rate: str) -> None:
    pictures = torch.rand(8, 3, 160, 160)

    def differ(training: bool, **values: Any) -> bool:
        model = build(config(model__backbone_name=name, **values), 3, FolderBottle(Path())).train(training)
        return not torch.equal(model(pictures), model(pictures))

    assert differ(True, **{f"model__{rate}": 0.5})
    assert not differ(False, **{f"model__{rate}": 0.5})
    assert not differ(True, model__drop_rate=0.0, model__drop_path_rate=0.0)


def test_a_rate_that_the_architecture_does_not_take_is_refused_by_name() -> None:
    with pytest.raises(ConfigurationError, match=r"model\.drop_path_rate: vgg11 does not take it"):
        build(config(model__backbone_name="vgg11", model__drop_path_rate=0.1), 3, FolderBottle(Path()))
