"""What is special about the DAG that converts without training."""

from __future__ import annotations

from typing import Any

import jinja2
import pytest
from airflow.sdk import TriggerRule
from airflow.sdk.exceptions import ParamValidationError


@pytest.fixture
def dag(dags: dict[str, Any]) -> Any:
    return dags["convert_model"]


def test_the_plan_is_built_between_verification_and_packaging_on_the_queue_of_its_gpu(dag: Any) -> None:
    assert [task.task_id for task in dag.topological_sort()] == [
        "import_weights", "export_onnx", "verify_onnx", "build_plan", "verify_plan", "package_model", "publish_model",
        "deploy_model",
    ]  # fmt: skip
    assert {task.task_id for task in dag.tasks if task.queue == "t4"} == {"build_plan", "verify_plan"}


def test_without_tensorrt_the_graph_is_packaged_and_published(dag: Any) -> None:
    assert dag.get_task("build_plan").only_if_param == "tensorrt"
    packaging = dag.get_task("package_model")
    assert packaging.trigger_rule == TriggerRule.NONE_FAILED, "else the skipped plan would skip it too"

    class NoPlan:
        def xcom_pull(self, task: str) -> None:
            return None

    def rendered(option: str, *, tensorrt: bool) -> str:
        return jinja2.Template(packaging.options[option]).render(params={"tensorrt": tensorrt}, ti=NoPlan())

    assert (rendered("target", tensorrt=False), rendered("target", tensorrt=True)) == ("onnx", "tensorrt")
    assert rendered("record", tensorrt=False) == "", "an empty option is left out"


def test_nothing_is_published_unless_it_is_asked_for(dag: Any) -> None:
    assert dag.params["publish"] is False
    assert dag.get_task("publish_model").only_if_param == "publish"


def test_other_inputs_several_outputs_and_profiles_reach_their_jobs(dag: Any) -> None:
    wired = {task.task_id: {*task.options_from_params, *task.options} for task in dag.tasks}
    assert wired["import_weights"] >= {"input_shape", "inputs", "output_names", "expected"}
    assert "dynamic_size" in wired["export_onnx"]
    assert wired["build_plan"] >= {"opt_batch", "max_batch", "more_profiles", "size_profile"}
    assert "max_batch_size" in wired["package_model"]
    built = jinja2.Template(dag.get_task("build_plan").options["max_batch"]).render(params={"max_batch_size": 4})
    assert built == "4", "the plan takes what Triton puts together"
    assert dag.params.get_param("input_shape").resolve([1, 240, 480, 480]) == [1, 240, 480, 480]
    assert dag.params.get_param("input_shape").resolve(None) is None


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("family", "resnet"), ("height", 4), ("model_name", "../up"), ("snapshot_id", "latest"),
        ("factory", "import os"), ("pictures", "relative/folder"), ("serving_tensorrt", "newest"),
        ("input_shape", []), ("input_shape", [0, 8]), ("output_names", " "), ("more_profiles", "8"),
        ("size_profile", "large"), ("opt_batch", 0), ("max_batch_size", 0),
    ],
)  # fmt: skip
def test_the_form_refuses_what_the_jobs_would_refuse(dag: Any, field: str, value: object) -> None:
    with pytest.raises(ParamValidationError):
        dag.params.get_param(field).resolve(value)
