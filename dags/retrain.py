"""
## Retrain a classifier, from collected pictures to a served model

`pull_dataset → train_classifier → evaluate → gate → export_onnx → verify_onnx (→ build_plan → verify_plan)`
`→ package_model → publish_model → deploy_model → report`

Made from `configs/pipelines/<name>.yaml`; change that file, not this one. `docs/pipelines.md` describes its keys.

**A success that ends early.** *Nothing new*: no picture, label or setting changed since the last finished run; trigger
with **force** to train all the same. *Rejected*: the gate kept the champion; its task says why.

**Triage.** Open the red task's log: its last error line says what happened, where, and what is valid. Exit code 2: fix
the configuration that it names. 3: the data was refused, look at the snapshot's `refused.jsonl`. 75: a server was away;
it was retried. Anything else is a crash. `report` is red whenever another task is, so that the run fails.
`docs/runbook.md` goes on from there.
With the target tensorrt, `build_plan` and `verify_plan` run on the queue of the GPU; trtexec's log is in the bottle
beside the plan. With two targets, `package_model_onnx` and `publish_model_onnx` publish the graph before the plan.

**Resume.** Clear the failed task: every task is safe to run again. Training goes on from its last checkpoint, the same
content is never published twice, and a bad candidate never replaces the champion. Marking a task as failed ends
its job.
"""

from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, Param, chain

from nightshift.errors import RunFailed
from nightshift.job_operator import JobOperator
from nightshift.pipelines.bundle import pipeline_file
from nightshift.pipelines.pipeline_file import Pipeline, load_pipeline
from nightshift.task_templates import TASK_STATES, output_of, stopped_by

BATCH_LIMIT, EPOCH_LIMIT = 4096, 1000
PLAN_SAMPLES = 1024  # the most that verify_plan takes


def trigger_form(pipeline: Pipeline) -> dict[str, Param]:
    """Return the fields of the form that starts a run by hand; their defaults are what the schedule uses."""
    return {
        "epochs": Param(
            pipeline.train.epochs, type="integer", minimum=1, maximum=EPOCH_LIMIT, title="Epochs",
            description="Passes over the training pictures.",
        ),
        "batch": Param(
            pipeline.train.batch, type="integer", minimum=1, maximum=BATCH_LIMIT, title="Batch size",
            description="Pictures a training step. Halve it if the GPU runs out of memory.",
        ),
        "force": Param(
            False, type="boolean", title="Train even if nothing is new",
            description="Without it a run on data that a finished run has seen already ends early.",
        ),
        "snapshot_id": Param(
            None, type=["null", "string"], pattern="^[0-9a-f]{16}$", title="Pin a snapshot",
            description="Train on this snapshot of the group (16 hex digits). Empty: pull what is there now.",
        ),
        "publish": Param(
            True, type="boolean", title="Publish and deploy",
            description="Without it the run stops after packaging: nothing reaches the model storage or Triton.",
        ),
    }  # fmt: skip


def fail_with_the_run(_context: Any, result: Any) -> None:
    """Let the last task fail where an earlier one did: Airflow takes a run's state from its last task."""
    if result["outcome"] == "failed":
        raise RunFailed(result["reason"])


def plan_tasks(pipeline: Pipeline, experiment: str, snapshot: str) -> list[JobOperator]:
    """Return the tasks that build and verify a TensorRT plan, on the queue of its GPU."""
    convert, batch = pipeline.convert, pipeline.publish.max_batch_size
    on_the_gpu = {"queue": convert.queue, "pool": convert.pool, "connections": ["bottle", "mlflow"]}
    built = JobOperator(
        task_id="build_plan",
        module="conversion_jobs.build_plan",
        options={
            "experiment": experiment, "compute_capability": convert.compute_capability, "max_batch": batch,
            "serving_tensorrt": convert.serving_tensorrt, "precision": convert.precision,
        },
        execution_timeout=timedelta(hours=3),
        **on_the_gpu,
    )  # fmt: skip
    checked = JobOperator(
        task_id="verify_plan",
        module="conversion_jobs.verify_plan",
        options={
            "experiment": experiment, "record": output_of("build_plan", "record"), "snapshot_id": snapshot,
            "samples": min(pipeline.verify.samples, PLAN_SAMPLES), "goal_ms": convert.goal_ms,
            "limit_ms": convert.limit_ms,
        },
        execution_timeout=timedelta(hours=1),
        **on_the_gpu,
    )  # fmt: skip
    return [built, checked]


def publishing_tasks(
    pipeline: Pipeline, target: str, experiment: str, snapshot: str
) -> tuple[JobOperator, JobOperator]:
    """Return the tasks that package and publish one target; what is served has the plain names."""
    publish = pipeline.publish
    suffix = "" if target == pipeline.convert.served else f"_{target}"
    packaged = JobOperator(
        task_id=f"package_model{suffix}",
        module="conversion_jobs.package_model",
        options={
            "experiment": experiment, "model_name": publish.model_name, "max_batch_size": publish.max_batch_size,
            "target": target, "record": output_of("build_plan", "record") if target == "tensorrt" else None,
        },
        connections=["bottle", "mlflow"],
    )  # fmt: skip
    published = JobOperator(
        task_id=f"publish_model{suffix}",
        module="conversion_jobs.publish_model",
        options={
            "model_name": publish.model_name, "archive": output_of(packaged.task_id, "archive"),
            "sha256": output_of(packaged.task_id, "sha256"), "target": target,
            "experiment": experiment, "snapshot_id": snapshot,
        },
        only_if_param="publish",
        connections=["bottle", "mlflow", "storage"],
    )  # fmt: skip
    return packaged, published


def retrain_dag(name: str, pipeline: Pipeline) -> DAG:
    """Return the DAG of one pipeline."""
    # What a run by hand trains otherwise must not pass for what the schedule would have trained.
    fingerprint = pipeline.fingerprint + "-{{ params.epochs }}x{{ params.batch }}"
    data, train, gate, verify, publish = pipeline.data, pipeline.train, pipeline.gate, pipeline.verify, pipeline.publish
    convert = pipeline.convert
    with DAG(
        dag_id=f"retrain_{name}",
        description=pipeline.description,
        doc_md=__doc__,
        # Without a start date and with no run in the past: a new pipeline waits for its next night.
        schedule=pipeline.schedule
        and CronTriggerTimetable(pipeline.schedule, timezone="UTC", run_immediately=timedelta()),
        catchup=False,
        max_active_runs=1,  # two nights of one pipeline would train on the same GPU and race for the next version
        tags=["retrain", *pipeline.tags],
        params=trigger_form(pipeline),
        user_defined_macros={"stopped_by": stopped_by},
        default_args={
            "owner": pipeline.owner,
            "retries": pipeline.retries.attempts,
            "retry_delay": pipeline.retries.delay,
            "retry_exponential_backoff": 2.0,
            "max_retry_delay": pipeline.retries.max_delay,
        },
    ) as dag:
        pulled = JobOperator(
            task_id="pull_dataset",
            module="training_jobs.pull_dataset",
            options={
                "pipeline": name, "fingerprint": fingerprint,
                **data.model_dump(exclude={"table"}), "table": data.table,
            },
            options_from_params={"force": "force", "snapshot_id": "snapshot_id"},
            connections=["bottle", "database", "mlflow", *(["collect"] if data.source == "collect" else [])],
            skips=["train_classifier"],
        )  # fmt: skip
        snapshot = output_of("pull_dataset", "snapshot_id")
        trained = JobOperator(
            task_id="train_classifier",
            module="training_jobs.train_classifier",
            options={
                "config_filename": train.config, "cat": data.group, "snapshot_id": snapshot, "gpus": train.gpus
            },
            options_from_params={"epochs": "epochs", "batch": "batch"},
            connections=["bottle", "database", "mlflow"],
            execution_timeout=train.timeout,
            gpus=train.gpus,
            pool=pipeline.train_pool,
            queue=pipeline.train_queue,
        )  # fmt: skip
        experiment = output_of("train_classifier", "experiment")
        evaluated = JobOperator(
            task_id="evaluate",
            module="training_jobs.evaluate",
            options={
                "group": data.group,
                "snapshot_id": snapshot,
                "experiment": experiment,
                "model_name": publish.model_name,
            },
            connections=["bottle", "mlflow", "storage"],
        )
        gated = JobOperator(
            task_id="gate",
            module="training_jobs.gate",
            options={"report": output_of("evaluate", "report"), **gate.model_dump()},
            connections=["bottle", "mlflow"],
            skips=["export_onnx"],
        )
        exported = JobOperator(
            task_id="export_onnx",
            module="conversion_jobs.export_onnx",
            options={"experiment": experiment, "opset": publish.opset},
            connections=["bottle", "mlflow"],
        )
        verified = JobOperator(
            task_id="verify_onnx",
            module="conversion_jobs.verify_onnx",
            options={"experiment": experiment, "snapshot_id": snapshot, **verify.model_dump()},
            connections=["bottle", "mlflow"],
        )
        planned = plan_tasks(pipeline, experiment, snapshot) if convert.served == "tensorrt" else []
        # The graph before the plan: what is published last is deployed.
        pairs = [publishing_tasks(pipeline, target, experiment, snapshot) for target in sorted(convert.targets)]
        published = [task for step in zip(*pairs, strict=True) for task in step]
        deployed = JobOperator(
            task_id="deploy_model",
            module="conversion_jobs.deploy_model",
            options={
                "model_name": publish.model_name, "version": output_of("publish_model", "version"),
                "reference": output_of("verify_onnx", "reference"), "experiment": experiment, "snapshot_id": snapshot,
                "max_latency_ms": publish.max_latency_ms,
            },
            connections=["bottle", "mlflow", "storage", "triton"],
        )  # fmt: skip
        reported = JobOperator(
            task_id="report",
            module="training_jobs.report",
            options={
                "pipeline": name,
                "fingerprint": fingerprint,
                "snapshot_id": "{{ (ti.xcom_pull('pull_dataset') or {}).get('snapshot_id', '') }}",
                "outcome": "{{ stopped_by(ti).get('outcome', '') }}",
                "reason": "{{ stopped_by(ti).get('reason', '') }}",
                "version": "{{ (ti.xcom_pull('deploy_model') or {}).get('version', '') }}",
                "report": "{{ (ti.xcom_pull('evaluate') or {}).get('report', '') }}",
                "states": TASK_STATES,
                "started_at": "{{ dag_run.start_date.isoformat() }}",
            },
            post_execute=fail_with_the_run,
            connections=["bottle", "database", "mlflow"],
        )
        chain(pulled, trained, evaluated, gated, exported, verified, *planned, *published, deployed, reported)
        # A teardown runs whatever happened before it, also in a run that a person has marked as failed.
        reported.as_teardown(on_failure_fail_dagrun=True)
    return dag


if file := pipeline_file(__file__):
    dag = retrain_dag(file.stem, load_pipeline(file))
