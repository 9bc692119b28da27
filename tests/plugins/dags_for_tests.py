"""DAGs of jobs that end in all ways; the tests link this file into the folder of DAGs."""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, Param, chain, task

from nightshift.errors import RunFailed
from nightshift.job_operator import JobOperator
from nightshift.run_note import leave_note

PARAMS = {
    "how": Param("succeed", type="string"),
    "marks": Param("/nowhere", type="string"),
    "tracking": Param(None, type=["null", "string"]),
    "epochs": Param(3, type="integer", minimum=1),
    "force": Param(False, type="boolean"),
    "publish": Param(True, type="boolean"),
}
EXAMPLE = "jobs_for_tests.example"
MARKS = "{{ params.marks }}"

with DAG("one_job", params=PARAMS, schedule=None):
    JobOperator(
        task_id="job",
        module=EXAMPLE,
        options={"how": "{{ params.how }}", "marks": MARKS, "tracking": "{{ params.tracking or '' }}"},
        options_from_params={"epochs": "epochs", "force": "force"},
        connections=["collect"],
        retries=1,
        retry_delay=timedelta(seconds=0.1),
    )

with DAG("chain_of_jobs", params=PARAMS, schedule=None):
    first = JobOperator(
        task_id="first",
        module=EXAMPLE,
        options={"how": "{{ params.how }}", "marks": MARKS, "text": "täxt"},
        skips=["second"],
    )
    second = JobOperator(task_id="second", module=EXAMPLE, options={"marks": MARKS, "text": first.output["text"]})
    third = JobOperator(task_id="third", module=EXAMPLE, options={"marks": MARKS}, only_if_param="publish")
    fourth = JobOperator(task_id="fourth", module=EXAMPLE, options={"marks": MARKS})
    last = JobOperator(task_id="last", module=EXAMPLE, options={"marks": MARKS, "text": "{{ params.how }}"})
    chain(first, second, third, fourth, last)
    last.as_teardown()

with DAG("closed_by_last", params={**PARAMS, "last": Param("succeed", type="string")}, schedule=None):
    work = JobOperator(task_id="work", module=EXAMPLE, options={"how": "{{ params.how }}", "marks": MARKS})
    more = JobOperator(task_id="more", module=EXAMPLE, options={"marks": MARKS})
    close = JobOperator(task_id="close", module=EXAMPLE, options={"how": "{{ params.last }}", "marks": MARKS})
    chain(work, more, close)
    close.as_teardown(on_failure_fail_dagrun=True)

with DAG("never_again", params=PARAMS, schedule=None):
    JobOperator(task_id="job", module=EXAMPLE, options={"how": "{{ params.how }}", "marks": MARKS}, retries=0)

with DAG("missing_connection", schedule=None):
    JobOperator(task_id="undefined", module=EXAMPLE, connections=["triton"], retries=1)
    JobOperator(task_id="incomplete", module=EXAMPLE, connections=["mlflow"], retries=1)

with DAG("pulled_data", params={"left_out": Param("", type="string")}, schedule=None):

    @task
    def pull_dataset(params: dict[str, str]) -> dict[str, str]:
        """Return of a pull's result what the page reads."""
        return {"snapshot_id": "0123456789abcdef", "left_out": params["left_out"]}

    pull_dataset()

with DAG("noted", params={"note": Param("", type="string"), "fail": Param(False, type="boolean")}, schedule=None):

    @task
    def report(params: dict[str, str], ti: Any = None) -> None:
        """Leave a note, as the last task of a night does, then end as it is told."""
        leave_note(ti, params["note"])
        if params["fail"]:
            raise RunFailed("as it was told")

    report()
