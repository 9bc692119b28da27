"""Several processes that train together: the same model as one, and one error where one of them fails."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
import uuid
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
import torch

from jobkit import job
from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError, DataValidationError, ExitCode, JobError
from jobkit.experiment import Experiment
from nightshift_common.patience import patience
from tests.support.waiting import wait_for
from tests.training_jobs.classifier import rank_faults
from tests.training_jobs.classifier.support import config, examples, fit
from tests.training_jobs.classifier.test_classifier_job import ROOT, write_config, write_pictures
from training_jobs.classifier import training
from training_jobs.classifier.config import Config
from training_jobs.classifier.data import BatchSampler, Part, validation_loader
from training_jobs.classifier.ddp_launcher import ProcessDied, RemoteTraceback, run_together
from training_jobs.classifier.examples import Examples
from training_jobs.classifier.training_callback import TrainingCallback

EXPERIMENT = Experiment("models/colors/v__0")
SCORES = ("epoch", "train_loss", "val_loss", "val_accuracy", "val_macro_f1", "lr_backbone", "lr_fc")
# No batch norms: on a CPU theirs are the only statistics that processes do not share.
DEMANDING: dict[str, Any] = {
    "model__backbone_name": "test_convnext",
    "dataset__image_size": 32,
    "dataset__train_augmentations": [{"type": "shift_scale_rotate", "p": 0.7}, {"type": "trivialaugment", "p": 0.5}],
    "dataset__data_loaders__train_batch_size": 4,
    "training__epochs": 3,
    "training__accumulate_grad_batches": 2,
    "training__max_grad_norm": 1.0,
    "training__ema_decay": 0.9,
    "training__frozen_epochs": 1,
    "training__patience": 3,
    "criterion__class_weights": [1.0, 4.0, 0.5],
    "criterion__label_smoothing": 0.1,
    "optimizer__type": "sgd",  # adam would blow up differences in the last place of gradients that are almost 0
    "optimizer__lr": 0.05,
}


def fit_together(folder: Path, chosen: Config, found: Examples) -> tuple[TrainingCallback, dict[str, Any]]:
    bottle = FolderBottle(folder)
    journal = TrainingCallback(chosen, bottle, EXPERIMENT, None)
    training._fit_on(2, chosen, found, bottle, EXPERIMENT, journal)
    return journal, torch.load(bottle.path(EXPERIMENT.last_checkpoint), weights_only=True)


@pytest.fixture(autouse=True)
def mark(monkeypatch: pytest.MonkeyPatch) -> str:
    """What everything that the test starts carries in its environment."""
    value = f"together-{uuid.uuid4().hex}"
    monkeypatch.setenv("NIGHTSHIFT_TEST_MARK", value)
    return value


def started_and_left(mark: str) -> list[str]:
    """Return the processes that carry the mark, as their command lines."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            if mark.encode() in (folder / "environ").read_bytes():
                found.append((folder / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        except OSError:  # it has ended, or is a zombie
            continue
    return found


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> Examples:
    return examples(tmp_path_factory.mktemp("pictures"), train=18, val=9)


@pytest.fixture(scope="module")
def trained(found: Examples, tmp_path_factory: pytest.TempPathFactory) -> tuple[TrainingCallback, dict[str, Any]]:
    return fit_together(tmp_path_factory.mktemp("together"), config(**DEMANDING), found)


def test_two_processes_end_with_the_scores_and_the_weights_of_one(
    trained: tuple[TrainingCallback, dict[str, Any]], found: Examples, tmp_path: Path
) -> None:
    chosen = config(**DEMANDING)
    one, expected, _ = fit(tmp_path / "one", chosen, found)
    two, actual = trained
    for part in ("state_dict", "average"):
        assert expected[part].keys() == actual[part].keys()
        for name, value in expected[part].items():
            assert torch.allclose(actual[part][name].float(), value.float(), atol=1e-5, rtol=1e-4), f"{part}.{name}"
    assert expected["global_step"] == actual["global_step"]
    for row, other in zip(one.rows, two.rows, strict=True):
        assert {name: other[name] for name in SCORES} == pytest.approx({name: row[name] for name in SCORES}, rel=1e-4)
    start = training.weights.build(chosen, 3, FolderBottle(tmp_path)).state_dict()
    moved = max(float((actual["state_dict"][f"model.{name}"] - value).abs().max()) for name, value in start.items())
    assert moved > 1e-2  # weights that had hardly changed would be equal in any case


@pytest.mark.slow
def test_a_killed_process_ends_them_all_and_the_retry_resumes(
    trained: tuple[TrainingCallback, dict[str, Any]], found: Examples, tmp_path: Path, mark: str
) -> None:
    chosen = config(**DEMANDING, dataset__data_loaders__num_workers=1)
    arguments = (2, chosen, found, str(tmp_path / "parts"), EXPERIMENT, None)
    with pytest.raises(ProcessDied, match="process 1 of the 2 that train together was killed by SIGKILL") as caught:
        run_together(rank_faults.train_until_killed, 2, 1, *arguments)
    assert caught.value.exit_code == ExitCode.CRASHED  # Airflow tries again
    assert started_and_left(mark) == []
    journal, actual = fit_together(tmp_path / "parts", chosen, found)
    assert [row["epoch"] for row in journal.rows] == [0, 1, 2]
    for name, value in trained[1]["state_dict"].items():
        assert torch.allclose(actual["state_dict"][name], value, atol=1e-6), name


@pytest.mark.slow
def test_batch_norms_judge_by_the_same_statistics_everywhere(found: Examples, tmp_path: Path) -> None:
    journal, content = fit_together(
        tmp_path, config(training__epochs=1, dataset__data_loaders__val_batch_size=2), found
    )
    model = training.weights.build(config(), 3, FolderBottle(tmp_path))
    model.load_state_dict({name.removeprefix("model."): value for name, value in content["state_dict"].items()})
    right = 0
    module = training.ClassifierModule(config(), model.eval(), None)
    for pictures, labels in validation_loader(config(), found.val, gpu=False):
        planes = pictures.permute(0, 3, 1, 2).float()
        right += int((module.logits(model, planes).argmax(1) == labels).sum())
    assert journal.rows[-1]["val_accuracy"] == pytest.approx(right / 9)


def test_batch_norms_that_gpus_share_answer_as_the_model_s_own(tmp_path: Path) -> None:
    """They synchronize only on GPUs; without one, that they compute the same is what can be seen."""
    chosen = config(model__backbone_name="test_efficientnet", dataset__image_size=32)
    model = training.weights.build(chosen, 3, FolderBottle(tmp_path)).eval()
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    expected, names = model(pictures), list(model.state_dict())
    shared = training.convert_sync_batchnorm(model)
    assert any(isinstance(layer, torch.nn.SyncBatchNorm) for layer in shared.modules())
    assert torch.allclose(shared(pictures), expected, atol=1e-6)
    assert list(shared.state_dict()) == names  # so that a checkpoint fits both


def test_the_first_error_is_the_one_that_counts_and_nothing_is_left(mark: str) -> None:
    started = time.monotonic()
    with pytest.raises(DataValidationError, match="a picture is damaged") as caught:
        run_together(rank_faults.refuse, 2)
    assert isinstance(caught.value.__cause__, RemoteTraceback) and "rank_faults.py" in str(caught.value.__cause__)
    with pytest.raises(JobError, match="OwnError: out of luck"):
        run_together(rank_faults.break_down, 2)
    with pytest.raises(ProcessDied, match=r"process 1 .*ended with exit code 7"):
        run_together(rank_faults.leave, 2)
    assert time.monotonic() - started < patience(60)
    assert started_and_left(mark) == []
    assert run_together(rank_faults.answer, 3, "an answer") == "an answer from 0 of 3"


def test_the_one_that_watches_takes_all_with_it_when_it_is_killed(mark: str, tmp_path: Path) -> None:
    code = (
        "import sys; from tests.training_jobs.classifier import rank_faults;"
        "from training_jobs.classifier.ddp_launcher import run_together;"
        "run_together(rank_faults.wait, 2, sys.argv[1])"
    )
    watcher = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], cwd=ROOT)
    wait_for(lambda: len(list(tmp_path.iterdir())) == 2, "both processes", 60)
    watcher.kill()
    watcher.wait()
    wait_for(lambda: started_and_left(mark) == [], "their end", 10)


@pytest.mark.parametrize(("size", "batch", "accumulated", "world"), [(20, 4, 1, 2), (23, 6, 2, 3), (5, 8, 1, 2)])
def test_the_parts_of_a_batch_are_the_batch(size: int, batch: int, accumulated: int, world: int) -> None:
    whole = BatchSampler(size, max(min(batch, size) // world, 1) * world, 7, accumulated)
    parts = [BatchSampler(size, batch, 7, accumulated, Part(rank, world)) for rank in range(world)]
    for epoch in (0, 1):
        for sampler in (whole, *parts):
            sampler.set_epoch(epoch)
        shares = [list(part) for part in parts]
        assert len({len(share) for batches in shares for share in batches}) == 1
        assert [list(chain(*group)) for group in zip(*shares, strict=True)] == list(whole)


def test_each_validation_picture_is_seen_once(found: Examples) -> None:
    loaders = [validation_loader(config(), found.val, False, Part(rank, 2)) for rank in range(2)]
    seen = [index for loader in loaders for indices in loader.sampler for _, index in indices]
    assert sorted(seen) == list(range(9))


def test_what_cannot_be_shared_is_refused(found: Examples, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="--gpus 3: a batch of 4 pictures has no equal shares; 3 or 6 would"):
        training.check_shares(config(), found, 3)
    with pytest.raises(ConfigurationError, match="--gpus 12: 18 pictures to train on and 9 to validate are too few"):
        training.check_shares(config(dataset__data_loaders__train_batch_size=12), found, 12)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigurationError, match="--gpus 2: this process sees 1"):
        training.check_shares(config(), found, 2)


@pytest.mark.slow
def test_the_job_writes_everything_once(
    context: job.Context, bottle: FolderBottle, tmp_path: Path, mlflow_url: str
) -> None:
    import mlflow

    snapshot_id = write_pictures(bottle, tmp_path / "source")
    file = write_config(tmp_path)
    command = [
        sys.executable, "-m", "training_jobs.train_classifier", "--config_filename", str(file), "--cat", "colors",
        "--snapshot_id", snapshot_id, "--epochs", "2", "--gpus", "2",
    ]  # fmt: skip
    environment = {**os.environ, "NIGHTSHIFT_JOB_DIR": str(tmp_path / "job"), "NIGHTSHIFT_LOG_FORMAT": "json"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    lines = [json.loads(line) for line in done.stdout.splitlines()]
    assert [line["done"] for line in lines if line.get("event") == "progress" and "train:" in line["message"]][-1] == 8
    assert len([line for line in lines if "2 processes train together" in line["message"]]) == 1
    result = json.loads((tmp_path / "job" / "result.json").read_text())["result"]
    assert result["epochs"] == 2
    table = bottle.read(f"{result['experiment']}/csv_logs/metrics.csv").decode().splitlines()
    assert len(table) == 3
    tracked = next(line for line in lines if line.get("event") == "tracking")
    api = mlflow.MlflowClient(mlflow_url)
    assert [m.step for m in api.get_metric_history(tracked["run_id"], "val_macro_f1")] == [0, 1]
    assert api.get_run(tracked["run_id"]).data.tags["gpus"] == "2"
    assert not [name for name in bottle.keys(result["experiment"]) if "not_finite" in name]
