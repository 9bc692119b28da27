"""What is said before a training: that it runs, what it takes, which rate suits it."""

from __future__ import annotations

import csv
import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml

from jobkit import job
from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError, DataValidationError
from tests.support.reports import charts_of, series_of
from tests.training_jobs.classifier.support import TINY, config, draw, examples
from training_jobs.classifier import rehearsal
from training_jobs.classifier.examples import Examples
from training_jobs.classifier.rehearsal import RATES, check, find_rate, rate_of, suggestion
from training_jobs.train_classifier import Arguments, start

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples(tmp_path_factory.mktemp("pictures"), 30, 9)


def write_config(folder: Path, **sections: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**TINY, "directories": {"images": str(folder / "pictures")}, **sections}))
    return path


FOLDERS = {**TINY["dataset"], "label_source": "folders"}


def test_a_check_counts_what_a_training_would_do_and_writes_nothing(found: Examples, bottle: FolderBottle) -> None:
    chosen = config(training__epochs=7, training__accumulate_grad_batches=2)
    estimate = check(chosen, found, bottle)
    assert (estimate.train_pictures, estimate.val_pictures) == (30, 9)
    assert estimate.updates_per_epoch == 3  # 7 batches of 4; those that fill no update wait
    epoch = 6 * estimate.step_seconds + 3 * estimate.val_step_seconds
    assert estimate.epoch_seconds == pytest.approx(epoch)
    assert estimate.total_seconds >= 7 * epoch and 0.05 < estimate.memory_gib < 64
    assert not list(bottle.keys("models"))


def test_a_check_looks_at_a_few_batches_only(
    found: Examples, bottle: FolderBottle, monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = []
    original = rehearsal.ClassifierModule.training_step
    monkeypatch.setattr(rehearsal.ClassifierModule, "training_step", lambda *a: (steps.append(a[2]), original(*a))[1])
    check(config(), found, bottle)
    assert len(steps) == rehearsal.UPDATES


def test_a_check_ends_as_the_training_would(found: Examples, bottle: FolderBottle, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match="fetch_weights --name test_resnet"):
        check(config(model__pretrained=True), found, bottle)
    with pytest.raises(ConfigurationError, match="the loss became"):
        check(config(optimizer__lr=1e30, optimizer__type="sgd", scheduler__div_factor=1.0), found, bottle)
    with pytest.raises(ConfigurationError, match="no equal shares"):
        check(config(), found, bottle, gpus=3)
    torn = tmp_path / "torn.png"
    torn.write_bytes(b"\x89PNG\r\n\x1a\n")
    broken = replace(found, train=[replace(found.train[0], path=torn), *found.train[1:]])
    with pytest.raises(DataValidationError, match=r"torn\.png"):
        check(config(), broken, bottle)


@pytest.mark.slow
def test_the_job_checks_and_says_so_in_its_result(tmp_path: Path) -> None:
    """As a person starts it, with its exit codes."""
    draw(tmp_path / "pictures", 4)
    path = write_config(tmp_path, dataset=FOLDERS)

    def started(*options: str) -> tuple[int, str]:
        environment = {
            **os.environ,
            "NIGHTSHIFT_JOB_DIR": str(tmp_path / "job"),
            "NIGHTSHIFT_BOTTLE": str(tmp_path / "b"),
        }
        command = [sys.executable, "-m", "training_jobs.train_classifier", "--config_filename", str(path), *options]
        done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
        return done.returncode, done.stdout + done.stderr

    code, said = started("--check")
    result = json.loads((tmp_path / "job" / "result.json").read_text())["result"]
    assert code == 0 and result["updates_per_epoch"] >= 1 and "it trains: " in said
    assert not (tmp_path / "b" / "models").exists()
    code, said = started("--check", "--find_learning_rate")
    assert code == 2 and "do not go together" in said


@pytest.mark.slow
def test_rates_are_tried_and_the_table_and_chart_are_left(context: job.Context, tmp_path: Path) -> None:
    draw(tmp_path / "pictures", 6)
    two = {"lr_type": "two_lrs", "backbone_lr": 1e-4, "fc_lr": 1e-2}
    path = write_config(tmp_path, dataset=FOLDERS, optimizer=two)
    result: Any = start(Arguments(config_filename=path, find_learning_rate=True), context)
    rows = list(csv.DictReader(result.table.read_text().splitlines()))
    assert [float(row["rate"]) for row in rows] == pytest.approx([rate_of(n) for n in range(len(rows))], rel=1e-4)
    drawn = charts_of(result.chart.read_text())["Loss by learning rate"]
    assert drawn["data"][0]["x"] == pytest.approx([float(row["rate"]) for row in rows], rel=1e-4)
    for name, values in series_of(drawn).items():
        assert values == pytest.approx([float(row[name]) for row in rows], rel=1e-4)
    assert set(series_of(drawn)) == {"loss", "smoothed"} and 20 < len(rows) <= RATES
    assert result.suggestion["optimizer.fc_lr"] == pytest.approx(100 * result.suggestion["optimizer.backbone_lr"])
    losses = {float(row["rate"]): float(row["loss"]) for row in rows}
    assert all(math.isfinite(loss) for loss in losses.values())


def test_each_update_has_its_rate(found: Examples, bottle: FolderBottle, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[float]] = []
    original = torch.optim.AdamW.step
    monkeypatch.setattr(
        torch.optim.AdamW,
        "step",
        lambda self, closure=None: (seen.append([g["lr"] for g in self.param_groups]), original(self, closure))[1],
    )
    monkeypatch.setattr(rehearsal, "DIVERGED", math.inf)
    chosen = config(training__accumulate_grad_batches=2, training__epochs=1, training__frozen_epochs=1,
                    optimizer__layer_decay=0.5)  # fmt: skip
    rates = find_rate(chosen, found, bottle)
    assert len(rates.losses) == len(seen) == RATES
    assert [step[-1] for step in seen] == pytest.approx(rates.rates)
    assert all(np.ptp([step[0] / step[-1] for step in seen]) < 1e-9 for step in seen)


def test_the_suggestion_is_where_the_loss_falls_fastest() -> None:
    rates = [rate_of(step) for step in range(RATES)]
    falls_at = 1e-3
    losses = [2 - 1 / (1 + (falls_at / rate) ** 2) for rate in rates]
    assert suggestion(rates, losses) == pytest.approx(falls_at, rel=0.2)
    for flat in ([1.0] * RATES, [1.0 + n / RATES for n in range(RATES)], [1.0] * 5):
        with pytest.raises(ConfigurationError, match="none makes the loss fall"):
            suggestion(rates[: len(flat)], flat)
