"""DAGs of jobs that only a cluster can show: a pool with one slot, an image that is nowhere."""

from airflow.sdk import DAG

from nightshift.job_operator import JobOperator

with DAG("one_gpu", schedule=None):
    for name in ("left", "right"):
        JobOperator(
            task_id=name,
            module="jobs_for_tests.example",
            options={"how": "wait", "marks": "/marks"},
            pool="gpu",
        )

with DAG("no_image", schedule=None):
    JobOperator(task_id="job", module="no_image.job")
