"""What is special about the DAGs that retrain."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
from airflow.sdk.exceptions import AirflowFailException

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="session")
def retrain() -> Any:
    """The module `dags/retrain.py`, read under its own name."""
    spec = importlib.util.spec_from_file_location("retrain", ROOT / "dags" / "retrain.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_under_its_own_name_the_file_defines_no_dag(retrain: Any) -> None:
    from airflow.sdk import DAG

    assert not [name for name, value in vars(retrain).items() if isinstance(value, DAG)]


@pytest.mark.parametrize("outcome", ["promoted", "rejected", "nothing_new", "not_published", "pinned"])
def test_a_run_that_came_to_something_succeeds(retrain: Any, outcome: str) -> None:
    retrain.fail_with_the_run({}, {"outcome": outcome, "reason": "as it is"})


def test_the_last_task_fails_where_an_earlier_one_did_and_says_which(retrain: Any) -> None:
    with pytest.raises(AirflowFailException, match="failed: train_classifier"):
        retrain.fail_with_the_run({}, {"outcome": "failed", "reason": "failed: train_classifier"})


def test_a_training_takes_a_slot_and_a_gpu_for_each_that_its_pipeline_asks_for(retrain: Any) -> None:
    content = {
        "description": "Two GPUs", "owner": "me", "data": {"group": "digits"}, "publish": {"model_name": "digits"},
        "train": {"config": "configs/classifier/digits.yaml", "gpus": 2}, "train_pool": "gpu", "train_queue": "gpu",
    }  # fmt: skip
    dag = retrain.retrain_dag("two", retrain.Pipeline.model_validate(content))
    for task in dag.tasks:
        training = task.task_id == "train_classifier"
        assert (task.gpus, task.pool_slots, task.options.get("gpus")) == ((2, 2, 2) if training else (1, 1, None))


def test_the_report_closes_the_run(dags: dict[str, Any], retrain: Any) -> None:
    for dag in (dag for name, dag in dags.items() if name.startswith("retrain_")):
        report = dag.get_task("report")
        assert report.is_teardown and report.on_failure_fail_dagrun
        assert report._post_execute_hook.__name__ == retrain.fail_with_the_run.__name__


def test_a_run_with_other_epochs_is_recorded_under_another_fingerprint(dags: dict[str, Any]) -> None:
    for dag in (dag for name, dag in dags.items() if name.startswith("retrain_")):
        recorded = {dag.get_task(task).options["fingerprint"] for task in ("pull_dataset", "report")}
        assert len(recorded) == 1
        (template,) = recorded

        def rendered(text: str = template, **params: int) -> str:
            for name, value in params.items():
                text = text.replace(f"{{{{ params.{name} }}}}", str(value))
            return text

        assert rendered(epochs=15, batch=64) != rendered(epochs=1, batch=64) != rendered(epochs=1, batch=32)
