"""What is special about the DAGs that retrain."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from airflow.sdk import TaskGroup
from airflow.sdk.exceptions import AirflowFailException
from pydantic import ValidationError

from nightshift.kinds.classification import ClassificationPipeline


class Left:
    """A task instance that keeps what is left in it."""

    note = ""

    def xcom_push(self, key: str, value: str) -> None:
        assert key == "run_note"
        self.note = value


def test_under_its_own_name_the_file_defines_no_dag(retrain: Any) -> None:
    from airflow.sdk import DAG

    assert not [name for name, value in vars(retrain).items() if isinstance(value, DAG)]


@pytest.mark.parametrize("outcome", ["promoted", "rejected", "nothing_new", "not_published", "pinned"])
def test_a_run_that_came_to_something_succeeds(retrain: Any, outcome: str) -> None:
    run = Left()
    result = {
        "outcome": outcome,
        "reason": "as it is",
        "headline": "macro_f1 0.2 against 0.9",
        "mlflow_url": "http://m",
    }
    retrain.conclude({"ti": run}, result)
    assert run.note == "macro_f1 0.2 against 0.9\n\nas it is\n\n[MLflow run](http://m)"


def test_the_last_task_fails_where_an_earlier_one_did_and_says_which(retrain: Any) -> None:
    run, result = Left(), {"outcome": "failed", "reason": "failed: train", "headline": "failed: train"}
    with pytest.raises(AirflowFailException, match="failed: train"):
        retrain.conclude({"ti": run}, result)
    assert run.note == "failed: train"


def test_a_training_takes_a_slot_and_a_gpu_for_each_that_its_pipeline_asks_for(retrain: Any) -> None:
    content = {
        "description": "Two GPUs", "owner": "me", "data": {"group": "digits"}, "publish": {"model_name": "digits"},
        "train": {"config": "configs/classifier/digits.yaml", "gpus": 2}, "train_pool": "gpu", "train_queue": "gpu",
    }  # fmt: skip
    dag = retrain.retrain_dag("two", ClassificationPipeline.model_validate(content))
    for task in dag.tasks:
        training = task.task_id == "train"
        assert (task.gpus, task.pool_slots, task.options.get("gpus")) == ((2, 2, 2) if training else (1, 1, None))


def test_the_list_of_dags_shows_what_each_is_for(dags: dict[str, Any]) -> None:
    for dag_id, dag in dags.items():
        assert dag.dag_id == dag_id
        assert dag.dag_display_name == f"{dag_id}: {dag.description}"
        assert dag.description


def test_a_long_description_is_cut_where_dags_are_listed(retrain: Any) -> None:
    content = {"description": "word " * 60, "owner": "me", "data": {"group": "a"}, "publish": {"model_name": "a"}}
    content |= {"train": {"config": "configs/classifier/digits.yaml"}}
    dag = retrain.retrain_dag("long", ClassificationPipeline.model_validate(content))
    assert dag.dag_display_name.startswith("retrain_long: word word") and len(dag.dag_display_name) <= 120


def test_the_report_closes_the_run(dags: dict[str, Any], retrain: Any) -> None:
    for dag in (dag for name, dag in dags.items() if name.startswith("retrain_")):
        report = dag.get_task("report")
        assert report.is_teardown and report.on_failure_fail_dagrun
        assert report._post_execute_hook.__name__ == retrain.conclude.__name__


def test_pulling_and_the_record_of_a_run_have_one_fingerprint(of_kinds: dict[str, Any]) -> None:
    for dag in of_kinds.values():
        (template,) = {dag.get_task(task).options["fingerprint"] for task in ("pull_dataset", "report")}

        def rendered(text: str = template, macros: dict[str, Any] = dag.user_defined_macros, **params: int) -> str:
            return jinja2.Template(text).render(params=params, **macros)

        assert rendered(epochs=15, batch=64) == rendered(epochs=15, batch=64)
        assert len({rendered(epochs=15, batch=64), rendered(epochs=1, batch=64), rendered(epochs=1, batch=32)}) == 3


def test_a_kind_changes_no_task_id_and_no_part_of_the_night(of_kinds: dict[str, Any]) -> None:
    orders = {kind: [task.task_id for task in dag.topological_sort()] for kind, dag in of_kinds.items()}
    assert set(map(tuple, orders.values())) == {tuple(orders["classification"])}
    for dag in of_kinds.values():
        groups = {
            group.group_display_name: list(group.children)
            for group in dag.task_group.children.values()
            if isinstance(group, TaskGroup)
        }
        assert groups == {
            "data": ["pull_dataset"], "train": ["train"], "judge": ["evaluate", "gate"],
            "convert": ["export_onnx", "verify_onnx"], "release": ["package_model", "publish_model", "deploy_model"],
        }  # fmt: skip


def test_with_the_target_tensorrt_the_plan_is_built_on_its_gpu_and_served_and_the_graph_published_beside_it(
    with_plan: Any,
) -> None:
    order = [task.task_id for task in with_plan.topological_sort()]
    assert order[order.index("verify_onnx") :] == [
        "verify_onnx", "build_plan", "verify_plan", "package_model_onnx", "package_model", "publish_model_onnx",
        "publish_model", "deploy_model", "report",
    ]  # fmt: skip
    on_the_gpu = [with_plan.get_task(name) for name in ("build_plan", "verify_plan")]
    assert {(task.queue, task.pool) for task in on_the_gpu} == {("a10", "a10")}
    assert not [task.task_id for task in with_plan.tasks if task.queue == "a10" and task not in on_the_gpu]


def test_a_plan_is_built_for_the_pipelines_gpu_and_held_to_the_pipelines_limits(with_plan: Any) -> None:
    built, checked = (with_plan.get_task(name).options for name in ("build_plan", "verify_plan"))
    assert (built["compute_capability"], built["precision"], built["max_batch"]) == ("8.6", "mixed", 4)
    assert built["opt_batch"] == 1, "by default a lone request is fastest"
    assert built["serving_tensorrt"] == "11.1.0.106"
    assert (checked["goal_ms"], checked["limit_ms"], checked["samples"]) == (20, 50, 1024)
    assert "build_plan" in checked["record"]


def test_each_package_is_published_as_what_it_is_and_the_plan_is_deployed(with_plan: Any) -> None:
    def options(name: str) -> dict[str, Any]:
        found: dict[str, Any] = with_plan.get_task(name).options
        return found

    assert (options("package_model_onnx")["target"], options("package_model_onnx")["record"]) == ("onnx", None)
    assert options("package_model")["target"] == options("publish_model")["target"] == "tensorrt"
    assert "build_plan" in options("package_model")["record"]
    assert "'package_model_onnx'" in options("publish_model_onnx")["archive"]
    assert "'publish_model'" in options("deploy_model")["version"]


def test_without_the_section_the_graph_is_served_and_nothing_is_built(dags: dict[str, Any]) -> None:
    tasks = {task.task_id: task for task in dags["retrain_digits"].tasks}
    assert "build_plan" not in tasks and "publish_model_onnx" not in tasks
    assert tasks["package_model"].options["target"] == tasks["publish_model"].options["target"] == "onnx"


def test_what_is_served_is_run_as_the_file_says_and_what_is_published_beside_it_only_waits_so(
    retrain: Any, content: dict[str, Any]
) -> None:
    serve = {"instances": 2, "queue_delay_us": 0, "max_queue_size": 64, "queue_timeout_ms": 50}
    both = {"convert": {"targets": ["onnx", "tensorrt"]}, "serve": serve}
    dag = retrain.retrain_dag("tuned", ClassificationPipeline.model_validate(content | both))
    served, beside = (dag.get_task(name).options for name in ("package_model", "package_model_onnx"))
    assert {name: served[name] for name in serve} == serve
    assert (beside.get("instances"), beside["max_queue_size"]) == (None, 64)
    with pytest.raises(ValidationError, match="intra_op_threads are ONNX Runtime's"):
        ClassificationPipeline.model_validate(content | both | {"serve": {"intra_op_threads": 2}})
    with pytest.raises(ValidationError, match="tuning says what instances should be"):
        ClassificationPipeline.model_validate(content | {"serve": {"tuning": "tuning.json", "instances": 2}})
