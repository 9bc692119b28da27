"""A whole training: what the experiment folder holds, and trainings that cannot go on."""

from __future__ import annotations

import csv
import io
import json
import re
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch

from jobkit import model_spec
from jobkit.bottle import FolderBottle
from jobkit.classifier import Classifier
from jobkit.errors import ConfigurationError
from jobkit.experiment import Experiment
from jobkit.model_spec import ModelSpec
from tests.support.reports import assert_stands_alone, charts_of, series_of, text_of
from tests.training_jobs.classifier.support import LABELS, config, examples, fit
from training_jobs.classifier import gpu_memory
from training_jobs.classifier.examples import Examples
from training_jobs.classifier.training import train

PATHS = Experiment("models/colors/v__0_train_test_resnet_4_0.01")


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples(tmp_path_factory.mktemp("pictures"))


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, found: Examples) -> tuple[FolderBottle, dict[str, Any]]:
    bottle = FolderBottle(tmp_path_factory.mktemp("bottle"))
    return bottle, train(config(seed=5), found, bottle, PATHS, None)


def test_the_experiment_folder_is_that_of_the_users(trained: tuple[FolderBottle, dict[str, Any]]) -> None:
    bottle, _ = trained
    names = {key.removeprefix(PATHS.folder + "/") for key in bottle.keys(PATHS.folder)}
    assert names == {
        "checkpoints/best.ckpt", "checkpoints/last.ckpt", "csv_logs/metrics.csv", "torchscripts/model.pt",
        "train_batches/0.jpg", "train_batches/1.jpg", "train_batches/2.jpg",
        "model.json", "config.yaml", "metrics.json", "report.html",
    }  # fmt: skip


def test_torchscript_gives_the_scores_that_were_written_down(
    trained: tuple[FolderBottle, dict[str, Any]], found: Examples
) -> None:
    bottle, content = trained
    spec = ModelSpec.model_validate_json(bottle.read(PATHS.spec))
    assert spec.labels == LABELS
    model = torch.jit.load(str(bottle.path(PATHS.torchscript)))
    pictures = torch.from_numpy(np.stack([model_spec.prepare(e.path, spec.preprocessing) for e in found.val]))
    logits = model(pictures)
    assert logits.dtype == torch.float32 and logits.shape == (6, 3)
    right = (logits.argmax(1) == torch.tensor([e.label for e in found.val])).float().mean().item()
    assert right == pytest.approx(content["metrics"]["val_accuracy"])
    loss = torch.nn.functional.cross_entropy(logits, torch.tensor([e.label for e in found.val])).item()
    assert loss == pytest.approx(content["metrics"]["val_loss"], abs=1e-4)


def test_metrics_say_how_to_reproduce_the_training(trained: tuple[FolderBottle, dict[str, Any]]) -> None:
    bottle, content = trained
    assert json.loads(bottle.read(PATHS.metrics)) == content
    made = content["provenance"]
    assert made["seed"] == 5
    assert re.fullmatch("[0-9a-f]{40}(-dirty)?", made["commit"])
    assert re.fullmatch("[0-9a-f]{64}", made["lock_sha256"])
    assert made["libraries"]["torch"] == torch.__version__


def test_the_log_has_a_row_an_epoch(trained: tuple[FolderBottle, dict[str, Any]]) -> None:
    bottle, content = trained
    rows = list(csv.DictReader(io.StringIO(bottle.read(f"{PATHS.folder}/csv_logs/metrics.csv").decode())))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    best = rows[content["best_epoch"]]
    assert float(best["val_macro_f1"]) == pytest.approx(content["metrics"]["val_macro_f1"], rel=1e-4)
    assert float(best["pictures_per_second"]) > 0


def test_the_report_stands_alone_and_shows_mistakes(trained: tuple[FolderBottle, dict[str, Any]]) -> None:
    bottle, content = trained
    page = bottle.read(f"{PATHS.folder}/report.html").decode()
    assert_stands_alone(page)
    drawn = charts_of(page)
    assert len(drawn) == 5
    mistakes = round((1 - content["metrics"]["val_accuracy"]) * 6)
    assert page.count('<figure class="picture">') == mistakes > 0
    assert all(label in text_of(page) for label in LABELS)


def test_the_reports_charts_have_the_numbers_of_the_log_and_the_metrics(
    trained: tuple[FolderBottle, dict[str, Any]],
) -> None:
    bottle, content = trained
    drawn = charts_of(bottle.read(f"{PATHS.folder}/report.html").decode())
    rows = list(csv.DictReader(io.StringIO(bottle.read(f"{PATHS.folder}/csv_logs/metrics.csv").decode())))
    losses = series_of(drawn["Loss"])
    for name in ("train_loss", "val_loss"):
        assert losses[name] == pytest.approx([float(row[name]) for row in rows], rel=1e-4)
    assert drawn["Loss"]["layout"]["shapes"][0]["x0"] == content["best_epoch"] + 1
    (heat,) = drawn["Validation pictures by class and answer"]["data"]
    counts = [[cell[0] for cell in row] for row in heat["customdata"]]
    assert [sum(row) for row in counts] == [content["per_class"][label]["support"] for label in LABELS]
    right = sum(counts[n][n] for n in range(len(LABELS)))
    assert right / sum(map(sum, counts)) == pytest.approx(content["metrics"]["val_accuracy"])
    *_, bins = drawn["Share right by confidence"]["data"]
    gaps = [abs(x - y) * count for x, y, count in zip(bins["x"], bins["y"], bins["customdata"], strict=True)]
    assert sum(bins["customdata"]) == sum(map(sum, counts))
    assert sum(gaps) / sum(bins["customdata"]) == pytest.approx(content["metrics"]["val_ece"], abs=1e-4)


def test_training_batches_are_shown_as_the_model_gets_them(trained: tuple[FolderBottle, dict[str, Any]]) -> None:
    bottle, _ = trained
    shown = cv2.imread(str(bottle.path(f"{PATHS.folder}/train_batches/0.jpg")))
    assert shown.shape == (32, 32, 3)  # four pictures of 16 pixels
    assert shown.std() > 20


def test_a_loss_that_is_not_finite_ends_the_training_and_keeps_the_batch(found: Examples, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"the loss became (nan|inf) in epoch 1, batch \d; .*\.npz") as error:
        fit(tmp_path, config(optimizer__lr=1e30, scheduler__div_factor=1.0, optimizer__type="sgd"), found)
    key = str(error.value).rsplit(" ", 1)[1]
    with np.load(tmp_path / key) as kept:
        assert kept["pictures"].shape == (4, 16, 16, 3) and kept["labels"].shape == (4,)
    assert (tmp_path / key).with_suffix(".jpg").is_file()
    assert not (tmp_path / "models/colors/v__0/checkpoints").exists()


@pytest.fixture
def small_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that holds two pictures. A test double: there is no GPU to fill on a development machine."""
    original = Classifier.forward

    def forward(self: Classifier, pictures: torch.Tensor) -> torch.Tensor:
        if self.training and len(pictures) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")
        return original(self, pictures)

    monkeypatch.setattr(Classifier, "forward", forward)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU half of what fits is left free")
def test_a_batch_that_does_not_fit_is_an_error_that_says_which_would(
    small_memory: None, found: Examples, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match=r"batch of 4; 2 fits.*accumulate_grad_batches 2"):
        train(config(), found, FolderBottle(tmp_path), PATHS, None)


@pytest.mark.skipif(torch.cuda.is_available(), reason="on a GPU half of what fits is left free")
def test_a_batch_that_does_not_fit_can_be_accumulated(small_memory: None, found: Examples, tmp_path: Path) -> None:
    bottle = FolderBottle(tmp_path)
    train(config(training__out_of_memory="accumulate"), found, bottle, PATHS, None)
    state = torch.load(bottle.path(PATHS.last_checkpoint), weights_only=True)
    assert state["global_step"] == 6  # 12 pictures, 4 an update, 2 epochs
    assert "train_batch_size: 2" in bottle.read(PATHS.config).decode()


def test_one_picture_that_does_not_fit_is_said(
    found: Examples, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(gpu_memory, "largest_that_fits", lambda *_: None)
    with pytest.raises(ConfigurationError, match="one picture of 16 pixels does not fit either"):
        gpu_memory.smaller_batch(config(), Classifier("test_resnet", 3), torch.OutOfMemoryError("out"))


def test_gradients_are_clipped_after_they_are_accumulated(found: Examples, tmp_path: Path) -> None:
    """With plain SGD a clipped update moves the weights by lr * max_grad_norm at most, however many batches it has."""
    common = {"optimizer__type": "sgd", "optimizer__betas": [0.0, 0.0], "optimizer__weight_decay": 0.0,
              "optimizer__lr": 0.5, "scheduler__div_factor": 1.0,
              "scheduler__final_div_factor": 1.0, "training__epochs": 1}  # fmt: skip
    moved = []
    for accumulated in (1, 3):
        chosen = config(**common, training__max_grad_norm=0.01, training__accumulate_grad_batches=accumulated)
        torch.manual_seed(0)
        start = Classifier("test_resnet", 3)
        _, content, _ = fit(tmp_path / str(accumulated), chosen, found)
        squares = sum(
            float((content["state_dict"][f"model.{name}"] - value.detach()).square().sum())
            for name, value in start.named_parameters()
        )
        moved.append(squares**0.5)
    assert moved[1] <= 0.5 * 0.01 * 1.001  # one update
    assert moved[0] > 1.5 * moved[1]  # three updates


def test_sixteen_bits_without_a_gpu_are_said_and_trained_in_thirty_two(
    found: Examples, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    fit(tmp_path, config(training__precision=16, training__epochs=1), found)
    assert "precision 16 needs a GPU" in caplog.text
