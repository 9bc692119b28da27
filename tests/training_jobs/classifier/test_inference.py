"""What the graph does beside the model: the average over mirror images, and the temperature that calibrates it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.frozen import FrozenEstimator
from torch.nn import functional
from torchmetrics.functional.classification import multiclass_calibration_error

from jobkit.bottle import FolderBottle
from jobkit.classifier import Classifier, load_classifier, served
from jobkit.errors import ConfigurationError
from jobkit.experiment import Experiment
from jobkit.job import Context
from jobkit.model_spec import Calibration, ModelSpec, prepare
from nightshift_common.options.training import FlipTta
from tests.training_jobs.classifier.support import LABELS, config, draw, examples
from training_jobs.classifier import finalize
from training_jobs.classifier.examples import Examples
from training_jobs.classifier.temperature import LEAST_PICTURES, fit_temperature
from training_jobs.classifier.training import train
from training_jobs.scoring.models import load_candidate
from training_jobs.train_classifier import Arguments, run

PATHS = Experiment("models/colors/v__0_train_test_resnet_4_0.01")
SERVED: dict[str, Any] = {"inference__flip_tta": "both", "inference__temperature_scaling": True}
IDENTITY: Callable[[torch.Tensor], torch.Tensor] = torch.clone


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples(tmp_path_factory.mktemp("pictures"), train=12, val=102)


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, found: Examples) -> tuple[FolderBottle, dict[str, Any]]:
    bottle = FolderBottle(tmp_path_factory.mktemp("bottle"))
    return bottle, train(config(**SERVED), found, bottle, PATHS, None)


def spec_of(bottle: FolderBottle) -> ModelSpec:
    return ModelSpec.model_validate_json(bottle.read(PATHS.spec))


def inputs_of(found: Examples, spec: ModelSpec) -> tuple[torch.Tensor, torch.Tensor]:
    pictures = np.stack([prepare(example.path, spec.preprocessing) for example in found.val])
    return torch.from_numpy(pictures), torch.tensor([example.label for example in found.val])


@torch.inference_mode()
def by_hand(bottle: FolderBottle, pictures: torch.Tensor) -> torch.Tensor:
    """Return the mean of the plain model's logits, one call a mirror image, which NumPy makes."""
    plain = load_classifier(bottle.path(PATHS.best_checkpoint), spec_of(bottle))
    views = [pictures.numpy()[:, :, ::up, ::left].copy() for up in (1, -1) for left in (1, -1)]
    return torch.stack([plain(torch.from_numpy(view)) for view in views]).mean(0)


@pytest.mark.parametrize(
    ("flips", "mirrored"),
    [
        ("horizontal", [IDENTITY, lambda x: x[..., range(15, -1, -1)]]),
        ("vertical", [IDENTITY, lambda x: x[..., range(15, -1, -1), :]]),
        (
            "both",
            [
                IDENTITY,
                lambda x: x[..., range(15, -1, -1)],
                lambda x: x[..., range(15, -1, -1), :],
                lambda x: torch.rot90(x, 2, (2, 3)),
            ],
        ),
    ],
)
def test_the_average_is_that_of_the_plain_model_over_each_mirror_image(
    flips: FlipTta, mirrored: list[Callable[[torch.Tensor], torch.Tensor]]
) -> None:
    torch.manual_seed(1)
    model, pictures = Classifier("test_resnet", 3).eval(), torch.randn(5, 3, 16, 16)
    spec = ModelSpec(group="g", architecture="a", labels=LABELS, preprocessing=config().preprocessing, flip_tta=flips)
    with torch.inference_mode():
        expected = torch.stack([model(change(pictures)) for change in mirrored]).mean(0)
        assert not torch.allclose(expected, model(pictures), atol=1e-3)
        assert torch.allclose(served(model, spec)(pictures), expected, atol=1e-5)


def test_nothing_is_put_around_a_model_without_either() -> None:
    model = Classifier("test_resnet", 3)
    kept = Calibration(temperature=1, pictures=3, nll_before=1, nll_after=1, ece_before=0, ece_after=0)
    spec = ModelSpec(group="g", architecture="a", labels=LABELS, preprocessing=config().preprocessing, calibration=kept)
    assert served(model, spec) is model


def test_what_is_handed_over_is_averaged_and_calibrated_and_its_scores_are_those_written_down(
    trained: tuple[FolderBottle, dict[str, Any]], found: Examples
) -> None:
    bottle, content = trained
    spec = spec_of(bottle)
    pictures, truth = inputs_of(found, spec)
    expected = by_hand(bottle, pictures) / spec.temperature
    script = torch.jit.load(str(bottle.path(PATHS.torchscript)))
    assert torch.allclose(script(pictures[:7]), expected[:7], atol=1e-5)
    evaluated = load_candidate(bottle, PATHS.folder, ModelSpec).outputs(pictures.numpy())[0]
    assert np.allclose(evaluated, expected.numpy(), atol=1e-5)
    probabilities = expected.softmax(1)
    right = (expected.argmax(1) == truth).float().mean().item()
    ece = multiclass_calibration_error(probabilities, truth, num_classes=3, n_bins=15, norm="l1").item()
    metrics = content["metrics"]
    assert metrics["val_accuracy"] == pytest.approx(right)
    assert metrics["val_loss"] == pytest.approx(functional.cross_entropy(expected, truth).item(), abs=1e-5)
    assert metrics["val_ece"] == pytest.approx(ece, abs=1e-5)


def test_the_description_says_what_the_temperature_changed(
    trained: tuple[FolderBottle, dict[str, Any]], found: Examples
) -> None:
    bottle, content = trained
    spec = spec_of(bottle)
    pictures, truth = inputs_of(found, spec)
    logits, found_by_us = by_hand(bottle, pictures), spec.calibration
    assert found_by_us is not None and found_by_us.not_fitted is None and found_by_us.pictures == 102

    def loss(temperature: float) -> float:
        return functional.cross_entropy(logits.double() / temperature, truth).item()

    def ece(temperature: float) -> float:
        probabilities = (logits / temperature).softmax(1)
        return multiclass_calibration_error(probabilities, truth, num_classes=3, n_bins=15, norm="l1").item()

    best = minimize_scalar(loss, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-9}).x
    assert found_by_us.temperature == pytest.approx(best, rel=1e-4) and abs(best - 1) > 0.05
    assert found_by_us.nll_before == pytest.approx(loss(1), abs=1e-5)
    assert found_by_us.nll_after == pytest.approx(loss(best), abs=1e-5)
    assert found_by_us.ece_before == pytest.approx(ece(1), abs=1e-4)
    assert found_by_us.ece_after == pytest.approx(ece(best), abs=1e-4)
    assert f"temperature {found_by_us.temperature:.4f}" in bottle.read(f"{PATHS.folder}/report.html").decode()
    row = bottle.read(f"{PATHS.folder}/csv_logs/metrics.csv").decode().splitlines()
    scores = dict(zip(row[0].split(","), row[1 + content["best_epoch"]].split(","), strict=True))
    assert float(scores["val_loss"]) == pytest.approx(loss(1), abs=1e-4), "validation averages, too"


class Killed(BaseException):
    """What stands for the end of the process."""


def test_a_training_that_was_killed_after_the_fit_ends_with_the_same_temperature(
    found: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def killed(*_: Any) -> str:
        raise Killed

    bottle = FolderBottle(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(finalize.html_report, "page", killed)
        with pytest.raises(Killed):
            train(config(**SERVED), found, bottle, PATHS, None)
    spec, script = spec_of(bottle), torch.jit.load(str(bottle.path(PATHS.torchscript)))
    assert spec.temperature != 1
    torch.manual_seed(99)  # another process would have another state
    train(config(**SERVED), found, bottle, PATHS, None)
    assert spec_of(bottle) == spec
    pictures, _ = inputs_of(found, spec)
    assert torch.equal(torch.jit.load(str(bottle.path(PATHS.torchscript)))(pictures), script(pictures))


def drawn(count: int, temperature: float, classes: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Return logits that are `temperature` times those by which the labels were drawn, and the labels."""
    random = np.random.default_rng(3)
    logits = random.normal(size=(count, classes)) * 2
    shares = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    truth = (shares.cumsum(1) > random.random((count, 1))).argmax(1)
    return (logits * temperature).astype(np.float32), truth


@pytest.mark.parametrize("temperature", [0.4, 1.0, 3.0])
def test_a_temperature_that_is_known_is_found(temperature: float) -> None:
    found = fit_temperature(*drawn(20_000, temperature))
    assert found.temperature == pytest.approx(temperature, rel=0.03)
    assert found.ece_after < 0.015
    assert abs(temperature - 1) < 0.1 or found.ece_before > 0.05


class AsGiven(ClassifierMixin, BaseEstimator):
    """A classifier of scikit-learn whose decision is its input."""

    def __init__(self, classes: int) -> None:
        self.classes, self.classes_ = classes, np.arange(classes)

    def fit(self, *_: Any) -> AsGiven:
        return self

    def decision_function(self, logits: np.ndarray) -> np.ndarray:
        return logits

    def predict(self, logits: np.ndarray) -> np.ndarray:
        return logits.argmax(1)


def test_the_temperature_is_that_of_scikit_learn() -> None:
    logits, truth = drawn(500, 2.5)
    theirs = CalibratedClassifierCV(FrozenEstimator(AsGiven(4)), method="temperature", cv=2, ensemble=False)
    expected = theirs.fit(logits.astype(np.float64), truth).predict_proba(logits.astype(np.float64))
    ours = logits / fit_temperature(logits, truth).temperature
    assert np.allclose(torch.from_numpy(ours).softmax(1).numpy(), expected, atol=1e-4)


def one_of(count: int, right: bool) -> tuple[np.ndarray, np.ndarray]:
    truth = np.arange(count) % 3
    return (np.eye(3)[truth] * (3 if right else -3)).astype(np.float32), truth


@pytest.mark.parametrize(
    ("logits", "truth", "reason"),
    [
        (*drawn(LEAST_PICTURES - 1, 2.0), "there are 99 validation pictures"),
        (*one_of(300, right=True), "below 0.05, since 100.00% of the validation pictures are right"),
        (*one_of(300, right=False), "above 20, since the logits tell next to nothing"),
    ],
    ids=["few", "all right", "all wrong"],
)
def test_a_temperature_that_cannot_be_fitted_stays_one_with_the_reason(
    logits: np.ndarray, truth: np.ndarray, reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    found = fit_temperature(logits, truth)
    assert found.temperature == 1 and reason in str(found.not_fitted)
    assert (found.nll_before, found.ece_before) == (found.nll_after, found.ece_after)
    assert reason in caplog.text


def test_a_mirror_image_of_a_turned_page_is_turned_otherwise(tmp_path: Path) -> None:
    draw(tmp_path / "pages", 2)
    path = tmp_path / "config.yaml"
    path.write_text(f"directories: {{images: {tmp_path}/pages, models: {tmp_path}/models}}\n")
    with pytest.raises(
        ConfigurationError, match=r"inference\.flip_tta is horizontal, but the labels come from rotation"
    ):
        run(Arguments(config_filename=path, flip_tta="horizontal"), Context(tmp_path, None))


def test_options_of_the_job_win_over_the_file(tmp_path: Path, found: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    from training_jobs.classifier.config import inferring

    chosen = config(**SERVED)
    assert inferring(chosen, Arguments(cat="x")) == chosen
    off = inferring(chosen, Arguments(cat="x", flip_tta="off", temperature_scaling=False))
    assert off == config()
