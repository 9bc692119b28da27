"""A training that is interrupted and resumed ends with the weights of one that was not."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from jobkit.bottle import FolderBottle
from jobkit.classifier import Classifier
from jobkit.experiment import Experiment
from tests.training_jobs.classifier.support import config, examples, fit
from training_jobs.classifier import training_callback as journal_module
from training_jobs.classifier.examples import Examples

EVERYTHING_RANDOM: dict[str, Any] = {
    "training__epochs": 4,
    "training__accumulate_grad_batches": 2,
    "training__max_grad_norm": 1.0,
    "training__ema_decay": 0.9,
    "training__frozen_epochs": 1,
    "model__drop_rate": 0.2,
    "model__drop_path_rate": 0.2,
    "training__mixing__strategy": "mixup",
    "training__mixing__p": 0.5,
    "dataset__train_augmentations": [{"type": "shift_scale_rotate", "p": 0.7}, {"type": "trivialaugment", "p": 0.5}],
    "dataset__augmentation_p_schedule__start_p": 0.2,
    "dataset__data_loaders__train_batch_size": 3,
    "model__backbone_name": "test_efficientnet",
    "dataset__image_size": 32,
}


class Killed(BaseException):
    """What stands for the end of the process: nothing in the trainer handles it."""


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples(tmp_path_factory.mktemp("pictures"))


def kill_in(monkeypatch: pytest.MonkeyPatch, epoch: int, batch: int) -> None:
    original = journal_module.TrainingCallback.on_train_batch_end

    def on_train_batch_end(self: Any, trainer: Any, module: Any, outputs: Any, content: Any, index: int) -> None:
        original(self, trainer, module, outputs, content, index)
        if (trainer.current_epoch, index) == (epoch, batch):
            raise Killed

    monkeypatch.setattr(journal_module.TrainingCallback, "on_train_batch_end", on_train_batch_end)


@pytest.fixture
def dropout(monkeypatch: pytest.MonkeyPatch) -> None:
    """A model that draws random numbers while it trains, as those with dropout or stochastic depth do."""

    def forward(self: Classifier, pictures: torch.Tensor) -> torch.Tensor:
        return self.fc(torch.nn.functional.dropout(self.backbone(pictures), 0.3, self.training))

    monkeypatch.setattr(Classifier, "forward", forward)


@pytest.mark.usefixtures("dropout")
@pytest.mark.parametrize(("epoch", "batch", "workers"), [(0, 1, 0), (2, 2, 0), (2, 2, 1)])
def test_a_resumed_training_ends_with_the_same_weights(
    epoch: int, batch: int, workers: int, found: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(**EVERYTHING_RANDOM, dataset__data_loaders__num_workers=workers)
    whole, expected, _ = fit(tmp_path / "whole", config(**EVERYTHING_RANDOM), found)
    with monkeypatch.context() as patch:
        kill_in(patch, epoch, batch)
        with pytest.raises(Killed):
            fit(tmp_path / "parts", chosen, found)
    torch.manual_seed(99)  # another process would have another state
    resumed, actual, _ = fit(tmp_path / "parts", chosen, found)
    for part in ("state_dict", "average"):
        for name, value in expected[part].items():
            assert torch.equal(actual[part][name], value), f"{part}.{name}"
    scores = ("epoch", "train_loss", "val_loss", "val_macro_f1", "lr_backbone", "lr_fc")
    assert [[row[s] for s in scores] for row in resumed.rows] == [[row[s] for s in scores] for row in whole.rows]


def test_a_finished_training_is_not_trained_again(found: Examples, tmp_path: Path) -> None:
    _, expected, bottle = fit(tmp_path, config(), found)
    before = bottle.read(Experiment("models/colors/v__0").last_checkpoint)
    journal, actual, _ = fit(tmp_path, config(), found)
    assert len(journal.rows) == 2
    assert bottle.read(Experiment("models/colors/v__0").last_checkpoint) == before
    assert all(torch.equal(actual["state_dict"][name], value) for name, value in expected["state_dict"].items())


def test_a_torn_checkpoint_is_refused_with_its_name(found: Examples, tmp_path: Path) -> None:
    from jobkit.errors import DataValidationError

    paths = Experiment("models/colors/v__0")
    _, _, bottle = fit(tmp_path, config(), found)
    bottle.write(paths.last_checkpoint, FolderBottle(tmp_path).read(paths.last_checkpoint)[:1000])
    with pytest.raises(DataValidationError, match=r"last\.ckpt"):
        fit(tmp_path, config(), found)


def test_a_picture_that_breaks_in_a_worker_ends_the_training_as_refused_data(
    found: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old trainer swallowed what went wrong while it trained, and ended with success."""
    from dataclasses import replace

    from jobkit.errors import DataValidationError
    from training_jobs.classifier import data

    monkeypatch.setattr(data, "CACHE_BYTES", 0)
    (tmp_path / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\n cut off")
    broken = replace(found, train=[*found.train[:-1], replace(found.train[-1], path=tmp_path / "broken.png")])
    with pytest.raises(DataValidationError, match=r"broken\.png"):
        fit(tmp_path, config(dataset__data_loaders__num_workers=1), broken)
