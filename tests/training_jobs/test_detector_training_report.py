"""The report of a detector's training."""

from __future__ import annotations

import pytest

from tests.support.reports import assert_stands_alone, charts_of, series_of, text_of
from training_jobs.detector.training_report import training_page
from training_jobs.scoring.detection import CurvePoint, DetectorScores, DetectorSlice

ROWS = [
    {"epoch": n, "is_last": n == 2, "train_box_loss": 3.0 - n, "val_box_loss": 4.0 - n, "val_f1": 0.25 * n,
     "learning_rate": 0.01 / (n + 1)}
    for n in range(3)
]  # fmt: skip
SCORES = DetectorScores(
    version="v__0", metrics={"f1": 0.6, "precision": 0.75, "recall": 0.5}, notes=[], confidence_threshold=0.375,
    slices={"class/<bee>": DetectorSlice(support=7, score=0.5, precision=0.4, recall=0.6, f1=0.5)},
    true_positives=3, false_positives=1, false_negatives=3,
    curve=[CurvePoint(confidence=0.9, precision=1, recall=0.25), CurvePoint(confidence=0.2, precision=0.5, recall=0.5)],
)  # fmt: skip


def report(rows: list[dict[str, float]], scores: DetectorScores = SCORES) -> str:
    content = {
        "best_epoch": 1, "epochs": 3, "metrics": {"val_f1": 0.6}, "provenance": {"seed": 7, "packages": ["a==1"]}
    }  # fmt: skip
    return training_page("models/g/v__0", rows, content, scores, 0.5, 40)


def test_curves_thresholds_and_classes_are_those_of_the_training() -> None:
    page = report(ROWS)
    assert_stands_alone(page)
    drawn = charts_of(page)
    assert series_of(drawn["Losses"]) == {"train_box_loss": [3, 2, 1], "val_box_loss": [4, 3, 2]}
    assert series_of(drawn["Validation F1"]) == {"val_f1": [0, 0.25, 0.5]}
    assert series_of(drawn["Learning rate"])["learning_rate"] == pytest.approx([0.01, 0.005, 0.01 / 3])
    assert {chart["layout"]["shapes"][0]["x0"] for name, chart in drawn.items() if name == "Losses"} == {2}
    line, mark = drawn["Precision over recall at IoU 0.5"]["data"]
    assert (line["x"], line["y"], mark["x"], mark["y"]) == ([0.25, 0.5], [1, 0.5], [0.5], [0.75])
    text = text_of(page)
    assert "F1 0.6000 on 40 validation pictures with the confidence threshold 0.3750, by epoch 2 of 3." in text
    assert "class/<bee>" in text and "a==1" not in text


def test_a_training_that_found_nothing_and_kept_no_history_has_a_report_too() -> None:
    page = report([], SCORES.model_copy(update={"curve": []}))
    assert charts_of(page) == {} and "No predictions" in text_of(page)
