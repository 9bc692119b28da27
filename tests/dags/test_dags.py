"""What every DAG has, and that its wiring fits the jobs that it runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
KNOWN_FILES = {"retrain.py", "convert_model.py", "clean_models.py"}
PIPELINES = sorted(path.stem for path in (ROOT / "configs" / "pipelines").glob("*.yaml"))
CHAIN = [
    "pull_dataset", "train", "evaluate", "gate", "export_onnx", "verify_onnx", "package_model",
    "publish_model", "deploy_model", "report",
]  # fmt: skip


def every(dags: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(f"{dag_id}.{task.task_id}", task) for dag_id, dag in dags.items() for task in dag.tasks]


def retraining(dags: dict[str, Any]) -> dict[str, Any]:
    return {name: dag for name, dag in dags.items() if name.startswith("retrain_")}


def test_every_file_of_dags_is_known_here() -> None:
    assert {path.name for path in (ROOT / "dags").glob("*.py")} == KNOWN_FILES


def test_every_pipeline_file_is_a_dag(dags: dict[str, Any]) -> None:
    assert PIPELINES
    assert set(retraining(dags)) == {f"retrain_{name}" for name in PIPELINES}


def test_every_dag_says_what_it_is_for_and_what_to_do_when_it_fails(all_dags: dict[str, Any]) -> None:
    for name, dag in all_dags.items():
        assert dag.description, name
        assert dag.tags, name
        for heading in ("## ", "**Triage.**", "**Resume.**", "docs/runbook.md"):
            assert heading in dag.doc_md, f"{name} lacks {heading}"


def test_every_task_has_an_owner_and_is_tried_again(all_dags: dict[str, Any]) -> None:
    for name, task in every(all_dags):
        assert task.owner and task.owner != "airflow", name
        assert task.retries >= 1, name
        assert task.retry_delay.total_seconds() > 0, name


def test_every_field_of_a_trigger_form_is_named_described_and_bounded(dags: dict[str, Any]) -> None:
    for name, dag in dags.items():
        assert dag.params, name
        for key in dag.params:
            param = dag.params.get_param(key)
            schema, where = param.schema, f"{name}.{key}"
            assert schema.get("title") and param.description, where
            kinds = [schema["type"]] if isinstance(schema["type"], str) else schema["type"]
            if "integer" in kinds or "number" in kinds:
                bounds = [{"minimum", "exclusiveMinimum", "enum"}, {"maximum", "exclusiveMaximum", "enum"}]
                keywords = {keyword for part in (schema, *schema.get("allOf", [])) for keyword in part}
                assert all(keywords & either for either in bounds), where
                assert not {"minimum", "maximum"} & set(schema), f"{where}: the form would turn 0 into the minimum"
                if "enum" not in schema:
                    assert any(word in param.description for word in ("At least", "Above")), where
            if "string" in kinds:
                assert {"pattern", "enum"} & set(schema), where


def test_one_run_of_a_pipeline_at_a_time(dags: dict[str, Any]) -> None:
    for name, dag in dags.items():
        assert dag.max_active_runs == 1, name
        assert dag.catchup is False, name


def test_the_tasks_follow_each_other_and_the_report_comes_whatever_happened(dags: dict[str, Any]) -> None:
    for name, dag in retraining(dags).items():
        assert [task.task_id for task in dag.topological_sort()] == CHAIN, name
        assert dag.get_task("report").is_teardown, name


def test_what_an_early_end_skips_is_what_follows(all_dags: dict[str, Any]) -> None:
    for name, task in every(all_dags):
        assert set(task.skips) <= task.downstream_task_ids, name
    assert {task.task_id for _, task in every(all_dags) if task.skips} == {"pull_dataset", "gate"}


def test_who_signs_packages_reaches_publishing_alone(all_dags: dict[str, Any]) -> None:
    for name, task in every(all_dags):
        for connection in ("signing", "signing_identity"):
            assert (connection in task.connections) == task.task_id.startswith("publish_model"), name


def test_no_task_is_given_a_secret(all_dags: dict[str, Any]) -> None:
    for name, task in every(all_dags):
        assert not [key for key in task.options if "password" in key or "token" in key], name
        assert task.connections, name
