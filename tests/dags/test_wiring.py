"""The wiring of the DAGs fits the jobs that they run; each check is shown a DAG that is broken as it looks for."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from airflow.sdk import Param

from nightshift.kinds.classification import ClassificationPipeline
from nightshift.steps import Step
from nightshift.task_templates import output_of, stopped_by
from nightshift_common.options.weights import FAMILIES
from tests.dags.wiring import (
    JobSchemas,
    Reference,
    forgotten_stops,
    outside_the_fingerprint,
    references,
    wrong_form,
    wrong_options,
    wrong_references,
)

NEUTRAL = frozenset({"force", "snapshot_id"})  # whether to go on, and the data itself, which is known by its own id


@pytest.fixture
def with_plan_to_break(with_plan: Any) -> Any:
    return copy.deepcopy(with_plan)


def retraining(dags: dict[str, Any]) -> list[Any]:
    return [dag for name, dag in dags.items() if name.startswith("retrain_")]


def test_a_template_is_read_as_jinja_reads_it() -> None:
    text = "{{ ti.xcom_pull('a')['x'] }}-{{ (ti.xcom_pull('b') or {}).get('y') or '' }}-{{ ti.xcom_pull('c') }}"
    assert set(references(text)) == {Reference("a", "x"), Reference("b", "y"), Reference("c", None)}


def test_every_template_takes_a_field_that_an_earlier_task_returns(all_dags: dict[str, Any], jobs: JobSchemas) -> None:
    assert sum(len(wrong_references(dag, jobs)) for dag in all_dags.values()) == 0
    used = [text for dag in all_dags.values() for task in dag.tasks for text in task.options.values()]
    assert len([found for text in used if isinstance(text, str) for found in references(text)]) > 60


@pytest.mark.parametrize(
    ("task", "option", "template", "words"),
    [
        ("gate", "report", output_of("evaluate", "raport"), "'raport' of 'evaluate', whose result has"),
        ("gate", "report", output_of("evaluation", "report"), "'report' of 'evaluation', which is no task before it"),
        ("train", "snapshot_id", output_of("evaluate", "report"), "'report' of 'evaluate', which is no task before it"),
        ("report", "version", "{{ (ti.xcom_pull('deploy_model') or {}).get('vrsn') }}", "'vrsn' of 'deploy_model'"),
    ],
)  # fmt: skip
def test_a_wrong_field_or_task_in_a_template_is_seen(
    with_plan_to_break: Any, jobs: JobSchemas, task: str, option: str, template: str, words: str
) -> None:
    with_plan_to_break.get_task(task).options[option] = template
    (wrong,) = wrong_references(with_plan_to_break, jobs)
    assert words in wrong


def test_every_option_of_a_task_is_one_of_its_job(all_dags: dict[str, Any], jobs: JobSchemas) -> None:
    assert [wrong for dag in all_dags.values() for wrong in wrong_options(dag, jobs)] == []


def test_a_wrong_or_missing_option_is_seen(with_plan_to_break: Any, jobs: JobSchemas) -> None:
    with_plan_to_break.get_task("export_onnx").options = {"experimnt": "x"}
    wrong = " ".join(wrong_options(with_plan_to_break, jobs))
    assert "has no option experimnt" in wrong and "is not given experiment" in wrong


def test_whatever_reaches_the_model_from_the_form_is_in_the_fingerprint(all_dags: dict[str, Any]) -> None:
    for dag in retraining(all_dags):
        assert outside_the_fingerprint(dag, NEUTRAL) == []
        assert outside_the_fingerprint(dag, frozenset()), "the check sees nothing: it has to see what is neutral"


def test_a_parameter_of_training_gets_into_the_fingerprint_by_being_wired(
    retrain: Any, content: dict[str, Any]
) -> None:
    dag = retrain.retrain_dag("faster", WithLearningRate.model_validate(content))
    assert outside_the_fingerprint(dag, NEUTRAL) == []
    fingerprint = dag.user_defined_macros["fingerprint"]
    assert fingerprint({"epochs": 1, "batch": 1, "lr": 0.1}) != fingerprint({"epochs": 1, "batch": 1, "lr": 0.2})


def test_a_parameter_that_is_wired_past_the_fingerprint_is_seen(retrain: Any, content: dict[str, Any]) -> None:
    dag = retrain.retrain_dag("hidden", Hiding.model_validate(content))
    (wrong,) = outside_the_fingerprint(dag, NEUTRAL)
    assert "retrain_hidden.train: the parameter lr is not in the fingerprint" in wrong
    dag = retrain.retrain_dag("late", ClassificationPipeline.model_validate(content))
    dag.params["late"] = Param(1, type="integer")
    dag.get_task("train").options_from_params["late"] = "late"  # past the step from which the fingerprint is made
    assert len(outside_the_fingerprint(dag, NEUTRAL)) == 1


def test_a_form_has_the_choices_and_bounds_of_the_options_that_it_goes_to(
    all_dags: dict[str, Any], jobs: JobSchemas
) -> None:
    assert [wrong for dag in all_dags.values() for wrong in wrong_form(dag, jobs)] == []
    assert dags_family(all_dags) == list(FAMILIES)


def dags_family(all_dags: dict[str, Any]) -> Any:
    return all_dags["convert_model"].params.get_param("family").schema["enum"]


def test_a_family_that_the_form_lacks_and_a_bound_that_it_has_otherwise_are_seen(
    all_dags: dict[str, Any], jobs: JobSchemas
) -> None:
    dag = copy.deepcopy(all_dags["convert_model"])
    dag.params.get_param("family").schema["enum"] = list(FAMILIES)[:-1]
    dag.params.get_param("opset").schema["allOf"] = [{"minimum": 12, "maximum": 99}]
    wrong = wrong_form(dag, jobs)
    assert len(wrong) == 2 and any("family has enum" in line for line in wrong)


def test_the_record_of_a_run_knows_whichever_task_stopped_it(all_dags: dict[str, Any]) -> None:
    for dag in retraining(all_dags):
        assert forgotten_stops(dag, stopped_by) == []


def test_a_task_whose_word_is_forgotten_is_seen(with_plan: Any) -> None:
    def forgetful(ti: Any, dag: Any) -> dict[str, str]:
        for task_id in ("deploy_model", "gate"):
            if found := ti.xcom_pull(task_id)["stop_here"]:
                return dict(found)
        return {}

    wrong = forgotten_stops(with_plan, forgetful)
    assert "retrain_with_plan: nobody asks pull_dataset whether it stopped the run" in wrong


def test_each_job_is_given_the_storage_s_token_of_its_kind_and_no_other(all_dags: dict[str, Any]) -> None:
    """Which scopes a job needs is tried out in tests/conversion_jobs/test_storage_tokens.py."""
    given = {
        (task.module, name) for dag in all_dags.values() for task in dag.tasks for name in task.connections
        if "storage" in name
    }  # fmt: skip
    assert given == {
        ("training_jobs.evaluate", "storage_evaluate"),
        ("training_jobs.evaluate_detector", "storage_evaluate"),
        ("conversion_jobs.publish_model", "storage_publish"),
        ("conversion_jobs.deploy_model", "storage_deploy"),
        ("training_jobs.clean_models", "storage_retention"),
    }


class WithLearningRate(ClassificationPipeline):
    """A classifier whose learning rate is asked by the form."""

    def train_step(self) -> Step:
        step = super().train_step()
        return Step(step.module, step.options, params={**step.params, "lr": "lr"}, not_in_fingerprint=self.hidden)

    @property
    def hidden(self) -> frozenset[str]:
        return frozenset({"gpus"})

    def form(self) -> dict[str, Param]:
        return {**super().form(), "lr": Param(0.1, type="number", minimum=0, maximum=1)}


class Hiding(WithLearningRate):
    """The same, with the learning rate left out of the fingerprint by mistake."""

    @property
    def hidden(self) -> frozenset[str]:
        return frozenset({"gpus", "lr"})
