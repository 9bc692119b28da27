"""A hyperparameter search: what may be varied, what a kill costs, what comes out of it."""

from __future__ import annotations

import csv
import json
import os
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path
from typing import Any

import optuna
import psycopg2
import pytest
import yaml
from optuna.trial import TrialState

from jobkit import job
from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError, TransientError
from tests.training_jobs.classifier.support import TINY, config, draw
from training_jobs.classifier import study as studies
from training_jobs.classifier.config import Config, read_config
from training_jobs.classifier.search_space import read_search
from training_jobs.tune_classifier import Arguments, Result, run

ROOT = Path(__file__).resolve().parents[3]
RATE = {"optimizer.lr": {"low": 1e-5, "high": 1e-1, "log": True}}


def write_search(folder: Path, epochs: int = 2, **values: Any) -> Path:
    """Write a search over drawn pictures, and the configuration that it varies."""
    if not (folder / "pictures").is_dir():
        draw(folder / "pictures", 4)
    content = {**TINY, "experiment_name": "colors", "training": {"epochs": epochs},
               "dataset": {**TINY["dataset"], "label_source": "folders"},
               "directories": {"images": str(folder / "pictures")}}  # fmt: skip
    (folder / "base.yaml").write_text(yaml.safe_dump(content))
    path = folder / "search.yaml"
    search = {"config_filename": "base.yaml", "pruner": "none", "parameters": RATE, **values}
    path.write_text(yaml.safe_dump(search, sort_keys=False))
    return path


def tune(path: Path, context: job.Context, **values: Any) -> Result:
    return run(Arguments(search_filename=path, **{"study_file": path.parent / "study.sqlite3", **values}), context)


def load(path: Path, name: str) -> optuna.Study:
    return optuna.load_study(study_name=name, storage=f"sqlite:///{path.parent / 'study.sqlite3'}")


def test_a_search_goes_on_where_it_ended_and_leaves_a_file_that_trains(
    context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    several = {**RATE, "training.mixing.strategy": {"choices": [None, "mixup"]},
               "training.epochs": {"low": 1, "high": 3},
               "dataset.train_augmentations": {"choices": [[], [{"type": "horizontal_flip"}]]}}  # fmt: skip
    path = write_search(tmp_path, parameters=several)
    first = tune(path, context, trials=2)
    second = tune(path, context, trials=1, output=tmp_path / "best.yaml")
    assert (first.finished_trials, second.trials, second.finished_trials) == (2, 1, 3)
    assert first.best_score is not None and second.best_score is not None and second.best_score >= first.best_score
    best = read_config(tmp_path / "best.yaml")
    assert bottle.read(str(second.config)).decode() == (tmp_path / "best.yaml").read_text()
    chosen = {"optimizer.lr": best.optimizer.lr, "training.mixing.strategy": best.training.mixing.strategy,
              "training.epochs": best.training.epochs,
              "dataset.train_augmentations": [one.model_dump(include={"type"}) for one in
                                              best.dataset.train_augmentations]}  # fmt: skip
    assert chosen == second.best_parameters
    rows = list(
        csv.DictReader(bottle.read(str(second.config).replace("best.yaml", "trials.csv")).decode().splitlines())
    )
    assert [row["state"] for row in rows] == ["COMPLETE"] * 3
    assert max(float(row["score"]) for row in rows) == second.best_score
    assert not list(bottle.keys("models"))  # what trials write is thrown away


def test_a_file_that_is_wrong_is_refused_by_line(tmp_path: Path) -> None:
    path = write_search(
        tmp_path,
        parameters={
            "optimizer.lr": {"low": 0.0, "high": 1.0},
            "optimizer.type": {"choices": ["adamw", "adamm"]},
            "training.epoch": {"low": 1, "high": 2},
            "training.best_by": {"choices": ["loss", "accuracy"]},
            "training.accumulate_grad_batches": {"low": 1.0, "high": 4.0},
        },
    )
    with pytest.raises(ConfigurationError) as refused:
        read_search(path)
    lines = path.read_text().splitlines()
    said = {}
    for text in str(refused.value).splitlines():
        number, key, problem = text.removeprefix(f"{path}:").split(": ", 2)
        assert lines[int(number) - 1].strip().startswith(key.removeprefix("parameters.")), text
        said[key.removeprefix("parameters.")] = problem
    assert "0.0 is not valid" in said["optimizer.lr"] and "'adamm' is not valid" in said["optimizer.type"]
    assert "there is no such key" in said["training.epoch"] and "what is compared" in said["training.best_by"]
    assert "is not valid: Input should be a valid integer" in said["training.accumulate_grad_batches"]
    for wrong, told in (
        ({"low": 2, "high": 1}, "not above low"),
        ({"low": 0, "high": 1, "log": True}, "with log it has to be above 0"),
        ({"low": 1, "high": 8, "log": True, "step": 2}, "does not go with log"),
    ):
        with pytest.raises(ConfigurationError, match=told):
            read_search(write_search(tmp_path, parameters={"training.epochs": wrong}))


def test_trials_that_fall_behind_are_pruned_by_their_scores(
    context: job.Context, bottle: FolderBottle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scores are ours: each trial is worse than the one before."""
    from training_jobs.classifier.lightning_module import ClassifierModule

    trained: list[float] = []
    original = ClassifierModule.epoch_scores

    def epoch_scores(self: ClassifierModule) -> dict[str, float]:
        trained.append(0.0)
        return {**original(self), "val_macro_f1": 1 / len(trained)}

    monkeypatch.setattr(ClassifierModule, "epoch_scores", epoch_scores)
    path = write_search(tmp_path, epochs=4, pruner="median", study="falling")
    tune(path, context, trials=studies.STARTUP_TRIALS + 2)
    trials = load(path, "falling").trials
    assert [t.state for t in trials] == [TrialState.COMPLETE] * studies.STARTUP_TRIALS + [TrialState.PRUNED] * 2
    assert all(len(trial.intermediate_values) == 2 for trial in trials[-2:])
    assert len(trained) == 4 * studies.STARTUP_TRIALS + 2 * 2


def test_a_study_of_something_else_is_refused_and_one_that_is_held_waits(
    context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    path = write_search(tmp_path, study="mine")
    tune(path, context, trials=1)
    other = write_search(tmp_path, study="mine", parameters={"optimizer.lr": {"low": 1e-4, "high": 1e-2}})
    with pytest.raises(ConfigurationError, match="the study mine is of another training set, configuration or space"):
        tune(other, context, trials=1)
    with (
        studies.opened("mine", "x", tmp_path / "other.sqlite3", True, studies.pruner_of("none", 1), 0),
        pytest.raises(TransientError, match="another job works on the study mine"),
    ):
        tune(path, context, trials=1, study_file=tmp_path / "other.sqlite3")
    with pytest.raises(ConfigurationError, match="Give --study_file FILE, or set NIGHTSHIFT_DATABASE_URL"):
        tune(path, context, trials=1, study_file=None)
    assert bottle.root.is_dir()


def test_parameters_that_fail_are_failed_trials_and_three_in_a_row_end_the_search(
    context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    path = write_search(tmp_path, study="steep", parameters={"optimizer.lr": {"low": 1e28, "high": 1e30, "log": True}})
    with pytest.raises(ConfigurationError, match="the loss became"):
        tune(path, context, trials=9)
    assert [trial.state for trial in load(path, "steep").trials] == [TrialState.FAIL] * 3
    assert bottle.root.is_dir()


def test_when_the_time_is_over_the_trial_under_way_is_tried_again_by_the_next_call(
    context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    path = write_search(tmp_path, study="short")
    assert tune(path, context, minutes=1e-5).trials == 0
    assert tune(path, context, trials=1, minutes=60).best_score is not None
    broken, again = load(path, "short").trials
    assert (broken.state, again.state) == (TrialState.FAIL, TrialState.COMPLETE)
    assert again.params == broken.params and again.user_attrs[studies.AGAIN] == 0
    assert bottle.root.is_dir()


@pytest.mark.slow
def test_a_killed_search_goes_on_and_its_trial_is_failed_and_tried_again(tmp_path: Path) -> None:
    """kill -9 of the job, in the middle of a training."""
    path = write_search(tmp_path, epochs=2, study="killed")
    endless = yaml.safe_load((tmp_path / "base.yaml").read_text())
    endless["training"]["epochs"] = 50_000
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(endless))
    search = [sys.executable, "-m", "training_jobs.tune_classifier", "--search_filename", str(path), "--study_file",
              str(tmp_path / "study.sqlite3")]  # fmt: skip
    environment = {
        **os.environ,
        "NIGHTSHIFT_BOTTLE": str(tmp_path / "bottle"),
        "NIGHTSHIFT_JOB_DIR": str(tmp_path / "j"),
    }
    process = subprocess.Popen(search, cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
    try:
        deadline = time.monotonic() + 180
        while not _has_an_epoch(path):
            assert process.poll() is None and time.monotonic() < deadline, process.communicate()[0]
            time.sleep(0.2)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.communicate()
    context = job.Context(tmp_path, None)
    context.__dict__["bottle"] = FolderBottle(tmp_path / "bottle")
    assert tune(path, context, minutes=1e-5).trials == 0  # long enough to see what is dead
    dead, again = load(path, "killed").trials[:2]
    assert dead.state == TrialState.FAIL and dead.intermediate_values
    assert again.params == dead.params and again.user_attrs[studies.AGAIN] == dead.number


def _has_an_epoch(path: Path) -> bool:
    """Ask the file itself: Optuna would take the core from the training that is waited for."""
    with closing(sqlite3.connect(path.parent / "study.sqlite3")) as study, suppress(sqlite3.OperationalError):
        return bool(study.execute("SELECT count(*) FROM trial_intermediate_values").fetchone()[0])
    return False


def test_a_study_lies_in_a_schema_of_its_own_which_a_role_without_more_rights_can_use(
    database_url: str, context: job.Context, bottle: FolderBottle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    connection = psycopg2.connect(database_url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute("DROP ROLE IF EXISTS tuner")
        cursor.execute("CREATE ROLE tuner LOGIN PASSWORD 'tuner'")
        for schema in ("nightshift", "tuning"):
            cursor.execute(f"CREATE SCHEMA {schema} AUTHORIZATION tuner")
        name = database_url.rpartition("/")[2]
        cursor.execute(f"REVOKE ALL ON DATABASE {name} FROM PUBLIC; GRANT CONNECT ON DATABASE {name} TO tuner")
        cursor.execute("REVOKE ALL ON SCHEMA public FROM PUBLIC")
    where = database_url.rpartition("@")[2] if "@" in database_url else database_url.partition("://")[2]
    monkeypatch.setenv("NIGHTSHIFT_DATABASE_URL", f"postgresql://tuner:tuner@{where}")
    path = write_search(tmp_path, study="in_a_database")
    assert tune(path, context, trials=1, study_file=None).finished_trials == 1
    with studies.opened("held", "x", None, True, studies.pruner_of("none", 1), 0), pytest.raises(TransientError):
        tune(write_search(tmp_path, study="held"), context, trials=1, study_file=None)
    assert tune(write_search(tmp_path, study="in_a_database"), context, trials=1, study_file=None).finished_trials == 2
    with connection.cursor() as cursor:
        cursor.execute("SELECT schemaname FROM pg_tables WHERE tablename = 'trials'")
        assert cursor.fetchall() == [("tuning",)]
        cursor.execute("REASSIGN OWNED BY tuner TO CURRENT_USER; DROP OWNED BY tuner; DROP ROLE tuner")
    connection.close()
    assert bottle.root.is_dir()


def test_trials_are_runs_below_the_jobs_in_mlflow(
    mlflow_url: str, context: job.Context, bottle: FolderBottle, tmp_path: Path
) -> None:
    from mlflow import MlflowClient

    path = write_search(tmp_path, study="tracked")
    result = tune(path, context, trials=1)
    context.close(succeeded=True)
    client, parent = MlflowClient(mlflow_url), context.tracking
    [child] = client.search_runs([parent.experiment_id], f"tags.`mlflow.parentRunId` = '{parent.run_id}'")
    assert child.data.params == {"optimizer.lr": str(result.best_parameters["optimizer.lr"])}
    assert child.info.status == "FINISHED" and child.data.tags["optuna.state"] == "COMPLETE"
    assert {"val_macro_f1", "train_loss"} <= child.data.metrics.keys()
    assert client.get_run(parent.run_id).data.metrics["best_val_macro_f1"] == result.best_score
    assert bottle.root.is_dir()


def test_any_key_of_a_configuration_is_known() -> None:
    from tests.training_jobs.classifier.test_every_key import keys
    from training_jobs.classifier.search_space import _keys

    assert _keys(json.loads(config().model_dump_json())) == set(keys(Config))
