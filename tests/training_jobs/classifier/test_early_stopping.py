"""Early stopping: the epoch that a simulation says, in one process, after a kill, and once it is over."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping

from jobkit.bottle import FolderBottle
from jobkit.experiment import Experiment
from tests.training_jobs.classifier.support import config, examples, fit
from tests.training_jobs.classifier.test_resume import Killed, kill_in
from training_jobs.classifier.examples import Examples
from training_jobs.classifier.lightning_module import ClassifierModule
from training_jobs.classifier.training_callback import BEST, TrainingCallback

SCORES = [0.2, 0.5, 0.4, 0.5, 0.6, 0.3, 0.6, 0.1, 0.9, 0.9]
BEST_SO_FAR = [(0.2, 1), (0.5, 2), (0.5, 2), (0.5, 2)]  # of the first four: of equals the first


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples(tmp_path_factory.mktemp("pictures"))


@pytest.fixture
def played(monkeypatch: pytest.MonkeyPatch) -> None:
    """Validation whose scores are those above, one an epoch."""
    original = ClassifierModule.epoch_scores

    def epoch_scores(self: ClassifierModule) -> dict[str, float]:
        return {**original(self), "val_macro_f1": SCORES[self.current_epoch]}

    monkeypatch.setattr(ClassifierModule, "epoch_scores", epoch_scores)


def lightnings(scores: list[float], patience: int, mode: str) -> int:
    """Return how many epochs Lightning's own callback would train."""
    stopper = EarlyStopping("score", patience=patience, mode=mode, min_delta=0.0)
    for epoch, score in enumerate(scores):
        if stopper._evaluate_stopping_criteria(torch.tensor(score))[0]:
            return epoch + 1
    return len(scores)


@pytest.mark.parametrize("best_by", ["macro_f1", "accuracy", "loss"])
def test_it_stops_where_lightnings_own_would(best_by: str) -> None:
    generator = np.random.default_rng(3)
    name, sign = BEST[best_by]
    seen = set()
    for _ in range(50):
        scores = generator.integers(0, 6, 12).tolist()  # with equals
        for patience in (1, 2, 4):
            journal = TrainingCallback(
                config(training__best_by=best_by, training__patience=patience),
                FolderBottle(Path()),
                None,
                None,  # type: ignore[arg-type]
            )
            for epoch, score in enumerate(scores):
                journal.rows.append({"epoch": epoch, name: float(score)})
                if journal.is_stopped:
                    break
            expected = lightnings([float(s) for s in scores], patience, "max" if sign > 0 else "min")
            assert len(journal.rows) == expected
            seen.add(expected)
    assert len(seen) > 5


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize(("patience", "epochs"), [(1, 3), (2, 4), (3, 8), (9, 10)])
def test_a_training_ends_after_so_many_epochs_without_a_better_one(
    patience: int, epochs: int, found: Examples, tmp_path: Path
) -> None:
    journal, _, _ = fit(tmp_path, config(training__epochs=10, training__patience=patience), found)
    assert len(journal.rows) == epochs == lightnings(SCORES, patience, "max")


@pytest.mark.usefixtures("played")
def test_the_log_has_a_line_an_epoch_and_a_resumed_training_goes_on_with_it(
    found: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    chosen = config(training__epochs=4)
    with monkeypatch.context() as patch:
        kill_in(patch, 2, 1)
        with pytest.raises(Killed):
            fit(tmp_path, chosen, found)
    journal, _, _ = fit(tmp_path, chosen, found)
    lines = [record for record in caplog.records if getattr(record, "event", "") == "epoch"]
    assert [line.epoch for line in lines] == [1, 2, 3, 4]
    assert [line.value for line in lines] == SCORES[:4]
    assert [line.loss for line in lines] == [row["train_loss"] for row in journal.rows]
    for line, (best, at) in zip(lines, BEST_SO_FAR, strict=True):
        shown = "the best so far" if at == line.epoch else f"best {best:.4f} at epoch {at}"
        assert f"epoch {line.epoch} of 4: loss " in line.getMessage()
        assert f"validation macro F1 {line.value:.4f} ({shown}), " in line.getMessage()
    progress = [record for record in caplog.records if getattr(record, "event", "") == "progress"]
    assert [line.done for line in progress] == [line.total for line in progress]
    assert float(progress[-1].progress_loss) == pytest.approx(journal.rows[-1]["train_loss"], rel=1e-3)


@pytest.mark.usefixtures("played")
@pytest.mark.parametrize("epoch", [0, 2, 3])
def test_a_resumed_training_stops_where_it_would_have(
    epoch: int, found: Examples, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chosen = config(training__epochs=10, training__patience=2)
    _, expected, _ = fit(tmp_path / "whole", chosen, found)
    with monkeypatch.context() as patch:
        kill_in(patch, epoch, 1)
        with pytest.raises(Killed):
            fit(tmp_path / "parts", chosen, found)
    journal, actual, _ = fit(tmp_path / "parts", chosen, found)
    assert len(journal.rows) == 4
    assert all(torch.equal(actual["state_dict"][name], value) for name, value in expected["state_dict"].items())


@pytest.mark.usefixtures("played")
def test_a_training_that_has_stopped_is_not_trained_further(found: Examples, tmp_path: Path) -> None:
    """As after a kill between the last epoch and the report."""
    chosen: Any = config(training__epochs=10, training__patience=2)
    _, _, bottle = fit(tmp_path, chosen, found)
    last = Experiment("models/colors/v__0").last_checkpoint
    before = bottle.read(last)
    journal, _, _ = fit(tmp_path, chosen, found)
    assert len(journal.rows) == 4
    assert bottle.read(last) == before
