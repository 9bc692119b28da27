"""Metrics against libraries and worked examples; the paired comparison against resampling pictures one by one."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, log_loss
from torchmetrics.functional.classification import multiclass_calibration_error

from jobkit.model_spec import ModelSpec, Preprocessing
from training_jobs.scoring.metrics import calibration_error, compare, score
from training_jobs.scoring.predict import align, differences

LABELS = ["ant", "bee", "wasp"]


def random_predictions(seed: int, count: int = 400) -> tuple[np.ndarray, np.ndarray]:
    random = np.random.default_rng(seed)
    truth = random.integers(0, 3, count)
    logits = random.normal(size=(count, 3)) + 2 * np.eye(3)[truth]
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return truth, np.hstack([probabilities, np.zeros((count, 1))])


@pytest.mark.parametrize(("seed", "count"), [(1, 400), (2, 60), (3, 25), (4, 3)])
def test_the_metrics_are_those_of_the_libraries(seed: int, count: int) -> None:
    truth, probabilities = random_predictions(seed, count)
    scores = score("v", LABELS, truth, probabilities)
    predicted = probabilities.argmax(1)
    assert scores.metrics["accuracy"] == pytest.approx(accuracy_score(truth, predicted))
    assert scores.metrics["macro_f1"] == pytest.approx(
        f1_score(truth, predicted, average="macro", labels=[0, 1, 2], zero_division=0)
    )
    assert scores.metrics["log_loss"] == pytest.approx(
        log_loss(truth, probabilities[:, :3], labels=[0, 1, 2]), rel=1e-4
    )
    reference = multiclass_calibration_error(
        torch.from_numpy(probabilities[:, :3]), torch.from_numpy(truth), num_classes=3, n_bins=15, norm="l1"
    )
    assert scores.metrics["ece"] == pytest.approx(float(reference), abs=1e-6)
    assert np.array_equal(np.array(scores.confusion)[:, :3], confusion_matrix(truth, predicted, labels=[0, 1, 2]))
    f1 = f1_score(truth, predicted, average=None, labels=[0, 1, 2], zero_division=0)
    assert [scores.slices[f"class/{label}"].f1 for label in LABELS] == pytest.approx(list(f1))
    assert sum(part.support for part in scores.slices.values()) == len(truth)


def test_a_worked_example() -> None:
    truth = np.array([0, 0, 1, 1])
    probabilities = np.array([[0.9, 0.1, 0, 0], [0.4, 0.6, 0, 0], [0.2, 0.8, 0, 0], [0, 0, 0, 1.0]])
    scores = score("v", LABELS, truth, probabilities)
    assert scores.metrics["accuracy"] == 0.5
    assert scores.confusion == [[1, 1, 0, 0], [0, 1, 0, 1], [0, 0, 0, 0]]
    ant, bee, wasp = (scores.slices[f"class/{label}"] for label in LABELS)
    assert (ant.precision, ant.recall, ant.f1, ant.support) == (1.0, 0.5, pytest.approx(2 / 3), 2)
    assert (bee.precision, bee.recall, bee.support) == (0.5, 0.5, 2)
    assert (wasp.f1, wasp.support) == (0.0, 0)
    assert calibration_error(truth, probabilities) == pytest.approx((0.1 + 0.6 + 0.2 + 1.0) / 4)
    assert np.isfinite(scores.metrics["log_loss"])


def test_the_standard_error_is_that_of_resampled_pictures() -> None:
    truth, ours = random_predictions(2, 300)
    _, theirs = random_predictions(3, 300)
    ours, theirs = ours.argmax(1), np.where(np.arange(300) % 3, ours.argmax(1), theirs.argmax(1))
    found = compare(LABELS, truth, ours, theirs, np.arange(300))
    random = np.random.default_rng(9)
    draws = [random.integers(0, 300, 300) for _ in range(400)]
    for name, metric in (
        ("accuracy", accuracy_score),
        ("macro_f1", lambda t, p: f1_score(t, p, average="macro", zero_division=0)),
    ):
        gain = metric(truth, ours) - metric(truth, theirs)
        resampled = [metric(truth[d], ours[d]) - metric(truth[d], theirs[d]) for d in draws]
        assert found.gains[name].value == pytest.approx(gain)
        assert found.gains[name].standard_error == pytest.approx(float(np.std(resampled)), rel=0.15)
    # the closed form for paired proportions
    b, c, n = found.only_candidate_right, found.only_champion_right, 300
    closed = np.sqrt(b + c - (b - c) ** 2 / n) / n
    assert found.gains["accuracy"].standard_error == pytest.approx(closed, rel=0.1)


def test_mcnemar_is_the_exact_test() -> None:
    truth = np.zeros(100, int)
    ours, theirs = np.zeros(100, int), np.zeros(100, int)
    theirs[:9] = 1
    ours[99] = 1
    found = compare(LABELS[:2], truth, ours, theirs, np.arange(100))
    assert (found.only_candidate_right, found.only_champion_right) == (9, 1)
    assert found.p_value == pytest.approx(22 / 1024)  # 2 * (C(10,0) + C(10,1)) / 2**10
    same = compare(LABELS[:2], truth, ours, ours, np.arange(100))
    assert (same.p_value, same.gains["accuracy"].value, same.gains["accuracy"].standard_error) == (1.0, 0.0, 0.0)


def test_the_comparison_of_equal_inputs_is_equal() -> None:
    truth, ours = random_predictions(2)
    _, theirs = random_predictions(3)
    inputs = LABELS, truth, ours.argmax(1), theirs.argmax(1), np.arange(len(truth))
    assert compare(*inputs) == compare(*inputs)


def test_classes_are_matched_by_name() -> None:
    probabilities = np.array([[0.5, 0.2, 0.3], [0.1, 0.6, 0.3]])
    aligned = align(probabilities, ["wasp", "hornet", "ant"], LABELS)
    assert aligned.tolist() == [[0.3, 0.0, 0.5, 0.2], [0.3, 0.0, 0.1, 0.6]]


def test_other_classes_do_not_add_up_to_the_likeliest() -> None:
    aligned = align(np.array([[0.4, 0.3, 0.3]]), ["ant", "x", "y"], LABELS)
    assert aligned.argmax() == 0


def test_differing_classes_are_told_in_sentences() -> None:
    spec = ModelSpec(
        group="g", architecture="a", labels=["ant", "hornet"], preprocessing=Preprocessing(height=8, width=8)
    )
    unknown, extra = differences(spec, LABELS, {"bee": 12, "wasp": 3}, "the champion 0.0.2")
    assert "does not know the class 'bee' (12 golden pictures), 'wasp' (3 golden pictures)" in unknown
    assert "also knows the class 'hornet'" in extra
    assert differences(spec.model_copy(update={"labels": LABELS}), LABELS, {}, "x") == []
