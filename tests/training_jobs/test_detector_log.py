"""The log of a detector's training: a line an epoch."""

from __future__ import annotations

from pathlib import Path

import pytest

from jobkit.bottle import FolderBottle
from jobkit.experiment import Experiment
from nightshift_common.detector import EpochEnd
from training_jobs.detector.training_callback import DetectorCallback


def train(bottle: FolderBottle, weights: Path, done: int, f1_of_epochs: list[float]) -> None:
    """Tell a callback of epochs, as the library does; the last of equals is the best."""
    callback = DetectorCallback(bottle, Experiment("models/scenes/v__0"), 4, None)
    callback.go_on_after(done - 1)
    callback.started(done, 2)
    for epoch, f1 in enumerate(f1_of_epochs, done):
        for _ in range(2):
            callback.stepped(lambda: 1.25)
        best = weights if f1 >= max((row["val_f1"] for row in callback.rows), default=0) else None
        metrics = {"train_box": 1.0, "train_cls": 0.25, "val_box": 0.7, "val_f1": f1, "learning_rate": 1e-3}
        callback.ended(EpochEnd(epoch, metrics, weights, best, is_last=epoch == 3))


def test_an_epoch_is_a_line_and_a_resumed_training_goes_on_with_it(
    bottle: FolderBottle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    weights = tmp_path / "weights.pt"
    weights.write_bytes(b"weights")
    train(bottle, weights, 0, [0.5, 0.75])
    train(bottle, weights, 2, [0.5, 0.75])
    lines = [record for record in caplog.records if getattr(record, "event", "") == "epoch"]
    assert [line.getMessage().rpartition(", ")[0] for line in lines] == [
        "epoch 1 of 4: loss 1.25, validation F1 0.5000 (the best so far)",
        "epoch 2 of 4: loss 1.25, validation F1 0.7500 (the best so far)",
        "epoch 3 of 4: loss 1.25, validation F1 0.5000 (best 0.7500 at epoch 2)",
        "epoch 4 of 4: loss 1.25, validation F1 0.7500 (the best so far)",
    ]
    (progress,) = [record for record in caplog.records if getattr(record, "event", "") == "progress"]
    assert "8/8 batches · epoch 4 · loss 1.25" in progress.getMessage()
