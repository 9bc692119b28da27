"""The job: its command line, what it answers, and a kill in the middle."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import cv2
import pytest
import torch
import yaml

from jobkit import job
from jobkit.bottle import Bottle, FolderBottle, open_bottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment
from jobkit.paths import picture
from jobkit.snapshot import Sample, write_snapshot
from jobkit.tracking import training_run
from nightshift_common.patience import patience
from nightshift_common.task_instance import TaskInstanceKey
from tests.support.waiting import wait_for
from tests.training_jobs.classifier.support import TINY, draw
from training_jobs import train_classifier
from training_jobs.train_classifier import Arguments, Result, run

ROOT = Path(__file__).resolve().parents[3]
TASK_INSTANCE = TaskInstanceKey(dag_id="retrain_colors", run_id="run_1", task_id="train")


def write_config(folder: Path, **sections: Any) -> Path:
    path = folder / "config.yaml"
    path.write_text(yaml.safe_dump({**TINY, "experiment_name": "colors", **sections}))
    return path


def write_pictures(bottle: Bottle, folder: Path, per_class: int = 8) -> str:
    import hashlib

    samples = []
    for number, path in enumerate(draw(folder, per_class)):
        content = path.read_bytes()
        digest = hashlib.sha256(content).hexdigest()
        bottle.write(picture(digest, ".png"), content)
        split = "val" if number % 4 == 3 else "train"
        samples.append(
            Sample(sha256=digest, path=picture(digest, ".png"), label=path.parent.name, split=split,  # type: ignore[arg-type]
                   width=24, height=20, split_group=digest, source=path.name)
        )  # fmt: skip
    return write_snapshot(bottle, "colors", samples, []).snapshot_id


def train(context: job.Context, config: Path, **values: Any) -> Result:
    return run(Arguments(config_filename=config, **values), context)


def test_a_training_answers_with_its_experiment(context: job.Context, bottle: FolderBottle, tmp_path: Path) -> None:
    snapshot_id = write_pictures(bottle, tmp_path / "source")
    config = write_config(tmp_path)
    result = train(context, config, cat="colors", snapshot_id=snapshot_id, epochs=1, batch=6)
    assert result.experiment == "models/colors/v__0_train_test_resnet_6_0.01"
    assert result.checkpoint == f"{result.experiment}/checkpoints/best.ckpt"
    assert bottle.exists(result.checkpoint)
    assert (result.epochs, result.best_epoch) == (1, 0)
    assert result.metrics["val_macro_f1"] == pytest.approx(result.metrics["val_macro_f1"], abs=1)
    spec = json.loads(bottle.read(f"{result.experiment}/model.json"))
    assert (spec["group"], spec["snapshot_id"]) == ("colors", snapshot_id)
    assert "epochs: 1" in bottle.read(f"{result.experiment}/config.yaml").decode()
    second = train(context, config, cat="colors", epochs=1, batch=6)  # the group's only snapshot
    assert second.experiment == "models/colors/v__1_train_test_resnet_6_0.01"


def test_without_a_file_a_group_trains_by_its_own_or_the_default_one(
    context: job.Context, bottle: FolderBottle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the older `train.py --cat GROUP --epochs 1 --batch 4`."""
    monkeypatch.setattr(train_classifier, "CONFIGS", tmp_path)
    write_pictures(bottle, tmp_path / "source")
    write_config(tmp_path).rename(tmp_path / "default.yaml")
    assert run(Arguments(cat="colors", epochs=1, batch=4), context).experiment.endswith("_4_0.01")
    write_config(tmp_path, optimizer={"weight_decay": 0.5}).rename(tmp_path / "colors.yaml")
    assert run(Arguments(cat="colors", epochs=1, batch=4), context).experiment.endswith("_4_0.5")
    with pytest.raises(ConfigurationError, match="--config_filename or --cat is missing"):
        run(Arguments(epochs=1), context)


def test_a_fine_tuning_is_named_so(context: job.Context, bottle: FolderBottle, tmp_path: Path) -> None:
    write_pictures(bottle, tmp_path / "source")
    first = train(context, write_config(tmp_path), cat="colors", epochs=1)
    tuned = write_config(tmp_path, model={"backbone_name": "test_resnet", "load_from": first.checkpoint})
    assert train(context, tuned, cat="colors", epochs=1).experiment.startswith("models/colors/v__1_finetune_")


def test_without_a_bottle_a_users_file_trains_beside_its_models(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As the older trainer's `main.py --config_filename FILE`: pages turned by quarter turns."""
    monkeypatch.delenv("NIGHTSHIFT_BOTTLE", raising=False)
    draw(tmp_path / "pages", 4)
    config = write_config(
        tmp_path, directories={"images": str(tmp_path / "pages"), "models": str(tmp_path / "data" / "models")}
    )
    result = train(job.Context(tmp_path, None), config, epochs=1)
    folder = tmp_path / "data" / result.experiment
    assert folder.parent == tmp_path / "data" / "models" / "colors"
    assert json.loads((folder / "model.json").read_text())["labels"] == ["0", "90", "180", "270"]


def test_folders_are_classes_where_the_file_says_so(context: job.Context, bottle: FolderBottle, tmp_path: Path) -> None:
    draw(tmp_path / "pictures", 5)
    config = write_config(
        tmp_path,
        directories={"images": str(tmp_path / "pictures")},
        dataset={**TINY["dataset"], "label_source": "folders", "val_part": 0.4},
    )
    result = train(context, config, epochs=1)
    assert json.loads(bottle.read(f"{result.experiment}/model.json"))["labels"] == ["blue", "green", "red"]
    with pytest.raises(ConfigurationError, match="takes its labels from folders"):
        train(context, config, snapshot_id="0123456789abcdef")


def test_several_snapshots_are_listed_where_none_is_named(
    context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    with pytest.raises(ConfigurationError, match="group colors has no snapshots: pull the dataset first"):
        train(context, write_config(tmp_path), cat="colors")
    ids = [write_pictures(bottle, tmp_path / str(count), count) for count in (4, 5)]
    with pytest.raises(ConfigurationError, match=f"group colors has {', '.join(sorted(ids))}"):
        train(context, write_config(tmp_path), cat="colors")
    with pytest.raises(DataValidationError, match="there is no snapshot 0123456789abcdef of group colors"):
        train(context, write_config(tmp_path), cat="colors", snapshot_id="0123456789abcdef")


def test_the_same_task_instance_never_trains_twice(bottle: FolderBottle, tmp_path: Path, mlflow_url: str) -> None:
    write_pictures(bottle, tmp_path / "source")
    config = write_config(tmp_path)
    first = train(job.Context(tmp_path, TASK_INSTANCE), config, cat="colors", epochs=1)
    written = bottle.path(first.checkpoint).stat().st_mtime_ns
    again = train(
        job.Context(tmp_path, dataclasses.replace(TASK_INSTANCE, try_number=2)), config, cat="colors", epochs=1
    )
    assert again == first
    assert bottle.path(first.checkpoint).stat().st_mtime_ns == written
    others = dataclasses.replace(TASK_INSTANCE, run_id="run_2")
    assert train(job.Context(tmp_path, others), config, cat="colors", epochs=1).experiment != first.experiment
    more = train(job.Context(tmp_path, TASK_INSTANCE), config, cat="colors", epochs=2)
    assert more.experiment != first.experiment  # cleared and triggered with other parameters


def test_the_run_in_mlflow_has_parameters_metrics_and_the_report(
    bottle: FolderBottle, tmp_path: Path, mlflow_url: str
) -> None:
    from mlflow import MlflowClient

    write_pictures(bottle, tmp_path / "source")
    context = job.Context(tmp_path, dataclasses.replace(TASK_INSTANCE, run_id="tracked"))
    result = train(context, write_config(tmp_path), cat="colors", epochs=2)
    context.close(succeeded=True)
    client = MlflowClient(mlflow_url)
    run_id = context.tracking.run_id
    found = training_run(client, str(bottle), result.experiment)
    assert found is not None and found.run_id == run_id
    night = client.get_run(context.tracking.parent_run().run_id)
    told = {name: night.data.params[name] for name in ("group", "architecture", "epochs", "batch", "experiment")}
    batch = client.get_run(run_id).data.params["dataset.data_loaders.train_batch_size"]
    assert told == {
        "group": "colors", "architecture": "test_resnet", "epochs": "2", "batch": batch,
        "experiment": result.experiment,
    }  # fmt: skip
    assert [used.dataset.digest for used in night.inputs.dataset_inputs] == [night.data.params["snapshot_id"]]
    data = client.get_run(run_id).data
    assert data.params["model.backbone_name"] == "test_resnet"
    assert [point.step for point in client.get_metric_history(run_id, "val_macro_f1")] == [0, 1]
    assert "best_val_macro_f1" in data.metrics
    assert {item.path for item in client.list_artifacts(run_id)} >= {"report.html", "config.yaml", "metrics.json"}


def test_trainings_at_the_same_time_get_folders_of_their_own(bottle: FolderBottle, tmp_path: Path) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from training_jobs.classifier.config import read_config
    from training_jobs.classifier.experiment import claim

    config = read_config(write_config(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        claims = list(pool.map(lambda _: claim(bottle, config, "colors", None, "x").folder, range(16)))
        shared = {claim.folder for claim in pool.map(lambda _: claim_shared(bottle, config), range(16))}
    assert len({folder.split("__")[1].split("_")[0] for folder in claims}) == 16
    assert len(shared) == 1


def claim_shared(bottle: FolderBottle, config: Any) -> Experiment:
    from training_jobs.classifier.experiment import claim

    return claim(bottle, config, "colors", TASK_INSTANCE, "x")


def test_a_training_can_be_resumed_by_hand_where_nothing_else_changed(
    context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    write_pictures(bottle, tmp_path / "source")
    config = write_config(tmp_path)
    first = train(context, config, cat="colors", epochs=1)
    bottle.delete(Experiment(first.experiment).metrics)
    again = train(context, config, cat="colors", epochs=1, resume=first.experiment)
    assert again.metrics == first.metrics
    with pytest.raises(DataValidationError, match="started with another configuration"):
        train(context, config, cat="colors", epochs=3, resume=first.experiment)
    with pytest.raises(DataValidationError, match="is no experiment"):
        train(context, config, cat="colors", epochs=1, resume="models/colors/v__77")


def test_a_bottle_on_s3_holds_the_same_experiment(s3_bottle: str, tmp_path: Path) -> None:
    bottle = open_bottle()
    write_pictures(bottle, tmp_path / "source", 4)
    result = train(job.Context(tmp_path, None), write_config(tmp_path), cat="colors", epochs=1)
    names = {key.removeprefix(f"{result.experiment}/") for key in bottle.keys(result.experiment)}
    assert {"checkpoints/best.ckpt", "checkpoints/last.ckpt", "metrics.json", "torchscripts/model.pt"} <= names


def start(
    config: Path, folder: Path, bottle: Path, task_instance: TaskInstanceKey, mlflow_url: str
) -> subprocess.Popen[str]:
    folder.mkdir(exist_ok=True)
    environment = {
        **os.environ,
        "NIGHTSHIFT_BOTTLE": str(bottle),
        "NIGHTSHIFT_JOB_DIR": str(folder),
        "NIGHTSHIFT_TASK_INSTANCE": task_instance.to_json(),
        "MLFLOW_TRACKING_URI": mlflow_url,
        "OMP_NUM_THREADS": "1",
    }
    command = [sys.executable, "-m", "training_jobs.train_classifier", f"--config_filename={config}", "--cat=colors"]
    return subprocess.Popen(command, cwd=ROOT, env=environment, stdout=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_in_its_folder(
    bottle: FolderBottle, tmp_path: Path, mlflow_url: str
) -> None:
    write_pictures(bottle, tmp_path / "source")
    config = write_config(tmp_path, training={"epochs": 12}, model={"backbone_name": "test_resnet"})
    killed = dataclasses.replace(TASK_INSTANCE, run_id="killed")
    first = start(config, tmp_path / "job", bottle.root, killed, mlflow_url)
    log = bottle.path("models/colors/v__0_train_test_resnet_4_0.01/csv_logs/metrics.csv")

    def in_the_third_epoch() -> bool:
        assert first.poll() is None, first.communicate()[0]
        return log.exists() and len(log.read_text().splitlines()) >= 3

    wait_for(in_the_third_epoch, "the third epoch", 60)
    first.send_signal(signal.SIGKILL)
    first.wait()
    assert not (tmp_path / "job" / "result.json").exists()
    second = start(config, tmp_path / "job", bottle.root, dataclasses.replace(killed, try_number=2), mlflow_url)
    output = second.communicate(timeout=patience(120))[0]
    assert second.returncode == 0, output
    assert "resuming after epoch" in output
    result = json.loads((tmp_path / "job" / "result.json").read_text())["result"]
    assert result["experiment"] == "models/colors/v__0_train_test_resnet_4_0.01"
    assert result["epochs"] == 12
    whole = train(job.Context(tmp_path, None), config, cat="colors")
    assert whole.metrics["val_loss"] == pytest.approx(result["metrics"]["val_loss"], abs=1e-6)
    one, other = (
        torch.load(bottle.path(Experiment(name).last_checkpoint), weights_only=True)["state_dict"]
        for name in (result["experiment"], whole.experiment)
    )
    assert all(torch.equal(one[name], value) for name, value in other.items())


def test_a_corrupt_picture_ends_the_job_as_refused_data(
    context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    write_pictures(bottle, tmp_path / "source")
    victim = next(bottle.keys("pictures"))
    bottle.write(victim, cv2.imencode(".png", cv2.imread(str(bottle.path(victim))))[1].tobytes()[:60])
    with pytest.raises(DataValidationError, match=Path(victim).name):
        train(context, write_config(tmp_path), cat="colors", epochs=1)


def test_a_loss_for_several_labels_is_refused_where_a_picture_has_one(
    context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    snapshot_id = write_pictures(bottle, tmp_path / "drawn", 4)
    config = write_config(tmp_path, criterion={"type": "binary_cross_entropy"})
    with pytest.raises(ConfigurationError, match=r"snapshot \w+ of group colors have one label each; valid: cross"):
        train(context, config, cat="colors", snapshot_id=snapshot_id)
    folders = write_config(tmp_path, criterion={"type": "binary_cross_entropy"}, directories={"images": str(tmp_path)})
    with pytest.raises(ConfigurationError, match="pictures of a folder have one label each"):
        train(context, folders)
