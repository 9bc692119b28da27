"""
## Delete the versions in the model storage that nothing needs

`clean_models`, every night at 04:30 UTC, once somebody has turned this DAG on: what is deleted is gone.

Of each model stay the version in production, a pinned one, a canary, the one that a rollback goes to, the first that
was in production, the best so far, what Triton serves, and what is younger than `older_than_days`. Trigger it by hand
with **Dry run** first: the task's log says of each version why it stays, or that it would be deleted.

**Triage.** Open the red task's log: its last error line says what happened and where. The storage being away is tried
again by itself; a 403 names the connection whose token lacks the scope `delete`. `docs/runbook.md` goes on from there.

**Resume.** Clear the task, or leave it to the next night: what was deleted stays deleted, and what was not is found
again.
"""

from datetime import timedelta

from airflow.sdk import DAG

from nightshift.forms import form_field
from nightshift.steps import Step, listed_name, task
from nightshift_common.options.retention import RetentionOptions

DESCRIPTION = "Delete the versions in the model storage that nothing needs"
FORM = {name: form_field(RetentionOptions, name) for name in RetentionOptions.model_fields}

with DAG(
    dag_id="clean_models",
    dag_display_name=listed_name("clean_models", DESCRIPTION),
    description=DESCRIPTION,
    doc_md=__doc__,
    schedule="30 4 * * *",
    is_paused_upon_creation=True,  # deleting is for somebody to decide
    catchup=False,
    max_active_runs=1,
    tags=["retention"],
    params=FORM,
    default_args={
        "owner": "ml-team",
        "retries": 2,
        "retry_delay": timedelta(minutes=5),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=30),
    },
):
    task(
        "clean_models",
        Step(
            "training_jobs.clean_models",
            options={},
            params={name: name for name in FORM},
            connections=("bottle", "storage_retention"),
            timeout=timedelta(hours=1),
        ),
    )
