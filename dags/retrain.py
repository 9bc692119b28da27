"""
## Retrain a model every night, from pictures to what Triton serves

`pull_dataset (→ prepare) → train → evaluate → gate → export_onnx → verify_onnx (→ build_plan → verify_plan)`
`→ package_model → publish_model → deploy_model → report`

Made from `configs/pipelines/<name>.yaml`; change that file, not this one. `docs/pipelines.md` describes its keys. The
pipeline's *kind* (classification, detection, segmentation) says which jobs pull, train and evaluate; the chain and its
task ids are the same for all.

**A success that ends early.** *Nothing new*: no picture, label or setting changed since the last finished run; trigger
with **force** to train all the same. *Rejected*: the gate kept the champion; its task says why. *Undecided*: it kept it
because the golden pictures are too few to tell (`gate.undecided`, `docs/gate.md`).

**Triage.** Open the red task's log: its last error line says what happened, where, and what is valid. Exit code 2: fix
the configuration that it names. 3: the data was refused, look at `meta/<group>/refused.jsonl` in the bottle. 75: a
server was away; it was retried. Anything else is a crash. `report` is red whenever another task is, so that the run
fails. `docs/runbook.md` goes on from there.
With the target tensorrt, `build_plan` and `verify_plan` run on the queue of the GPU; trtexec's log is in the bottle
beside the plan. With two targets, `package_model_onnx` and `publish_model_onnx` publish the graph before the plan.

**Resume.** Clear the failed task: every task is safe to run again. Training goes on from its last checkpoint, the same
content is never published twice, and a bad candidate never replaces the champion. Marking a task as failed ends
its job.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import timedelta
from typing import Any

from airflow.sdk import DAG, CronTriggerTimetable, Param, TaskGroup, chain

from nightshift.errors import RunFailed
from nightshift.fingerprint import Fingerprint
from nightshift.job_operator import JobOperator
from nightshift.kinds.base import EXPERIMENT, SNAPSHOT, Pipeline
from nightshift.pipelines.bundle import pipeline_file
from nightshift.pipelines.files import load_pipeline
from nightshift.run_note import leave_note, run_note
from nightshift.steps import Step, listed_name, task
from nightshift.task_templates import TASK_STATES, output_if_any, output_of, sentences_of, stopped_by
from nightshift_common.options.conversion import MAX_PLAN_SAMPLES, Target

FINGERPRINT = "{{ fingerprint(params) }}"
PARTS = {
    "data": "the night's snapshot",
    "train": "a candidate",
    "judge": "candidate against champion",
    "convert": "the graph, and the plan where one is served",
    "release": "a version, in production",
}


def trigger_form(pipeline: Pipeline) -> dict[str, Param]:
    """Return the fields of the form that starts a run by hand; their defaults are what the schedule uses."""
    return {
        **pipeline.form(),
        "force": Param(
            False, type="boolean", title="Train even if nothing is new",
            description="Without it a run on data that a finished run has seen already ends early.",
        ),
        "snapshot_id": Param(
            None, type=["null", "string"], pattern=r"^[\w.-]+$", title="Pin a snapshot",
            # One that is not there is refused by the job, with a sentence that lists those there are.
            description="Train on this snapshot of the group (16 hex digits). Empty: pull what is there now.",
        ),
        "publish": Param(
            True, type="boolean", title="Publish and deploy",
            description="Without it the run stops after packaging: nothing reaches the model storage or Triton.",
        ),
    }  # fmt: skip


def conclude(context: Any, result: Any) -> None:
    """Leave the run's note, and let the last task fail where an earlier one did: it decides the run's state."""
    leave_note(context["ti"], run_note(result))
    if result["outcome"] == "failed":
        raise RunFailed(result["reason"])


def part(name: str) -> TaskGroup:
    """Return a part of the night, as the UI groups it; task ids do not depend on it."""
    return TaskGroup(f"{name}_part", prefix_group_id=False, group_display_name=name, tooltip=PARTS[name])


def pulling(name: str, pipeline: Pipeline) -> Step:
    """Return the kind's pulling with what it is told in every pipeline."""
    step = pipeline.pull_step()
    return replace(
        step,
        options={"pipeline": name, "fingerprint": FINGERPRINT, **step.options},
        params={**step.params, "force": "force", "snapshot_id": "snapshot_id"},
        not_in_fingerprint=step.not_in_fingerprint | {"pipeline", "fingerprint", "force", "snapshot_id"},
    )


def judging(pipeline: Pipeline) -> Step:
    """Return the gate: one job, whatever the kind."""
    return Step(
        module="training_jobs.gate",
        options={"report": output_of("evaluate", "report"), **pipeline.gate.model_dump()},
    )


def plan_tasks(pipeline: Pipeline) -> list[JobOperator]:
    """Return the tasks that build and verify a TensorRT plan, on the queue of its GPU."""
    convert, batch = pipeline.convert, pipeline.publish.max_batch_size
    on_the_gpu = {"queue": convert.gpu_queue, "pool": convert.gpu_pool}
    build = Step(
        module="conversion_jobs.build_plan",
        options={
            "experiment": EXPERIMENT, "compute_capability": convert.compute_capability, "max_batch": batch,
            "serving_tensorrt": convert.serving_tensorrt, "precision": convert.precision,
            "opt_batch": min(convert.opt_batch, batch),
            "version_compatible": convert.version_compatible,
            "snapshot_id": SNAPSHOT if convert.precision == "int8" else None,
        },
        timeout=timedelta(hours=3),
    )  # fmt: skip
    verify = Step(
        module="conversion_jobs.verify_plan",
        options={
            "experiment": EXPERIMENT, "record": output_of("build_plan", "record"), "snapshot_id": SNAPSHOT,
            "samples": min(pipeline.verify.samples, MAX_PLAN_SAMPLES), "goal_ms": convert.goal_ms,
            "limit_ms": convert.limit_ms,
        },
        timeout=timedelta(hours=1),
    )  # fmt: skip
    return [task("build_plan", build, **on_the_gpu), task("verify_plan", verify, **on_the_gpu)]


def publishing_tasks(pipeline: Pipeline, target: Target) -> tuple[JobOperator, JobOperator]:
    """Return the tasks that package and publish one target; what is served has the plain names."""
    publish = pipeline.publish
    suffix = "" if target == pipeline.convert.served else f"_{target}"
    package = Step(
        module="conversion_jobs.package_model",
        options={
            "experiment": EXPERIMENT, "model_name": publish.model_name, "max_batch_size": publish.max_batch_size,
            "target": target, "record": output_of("build_plan", "record") if target == "tensorrt" else None,
            **pipeline.serve.options(is_served=not suffix),
        },
    )  # fmt: skip
    packaged = task(f"package_model{suffix}", package)
    upload = Step(
        module="conversion_jobs.publish_model",
        options={
            "model_name": publish.model_name, "archive": output_of(packaged.task_id, "archive"),
            "sha256": output_of(packaged.task_id, "sha256"), "target": target,
            "experiment": EXPERIMENT, "snapshot_id": SNAPSHOT,
            "record": output_of("build_plan", "record") if target == "tensorrt" else None,
            "evaluation": output_of("evaluate", "report"), "decision": output_of("gate", "decision"),
            "reasons": sentences_of("gate", "reasons"),
        },
        connections=("bottle", "mlflow", "storage_publish", "signing", "signing_identity"),
    )  # fmt: skip
    return packaged, task(f"publish_model{suffix}", upload, only_if_param="publish")


def deployment(pipeline: Pipeline) -> Step:
    """Return the switch to the new version."""
    return Step(
        module="conversion_jobs.deploy_model",
        options={
            "model_name": pipeline.publish.model_name, "version": output_of("publish_model", "version"),
            "reference": output_of("verify_onnx", "reference"), "experiment": EXPERIMENT, "snapshot_id": SNAPSHOT,
            "answers": output_if_any("evaluate", "answers"),
            "max_latency_ms": pipeline.publish.max_latency_ms,
        },
        connections=("bottle", "mlflow", "storage_deploy", "triton"),
    )  # fmt: skip


def closing(name: str, pipeline: Pipeline) -> Step:
    """Return the record of what the run came to."""
    return Step(
        module="training_jobs.report",
        options={
            "pipeline": name,
            "fingerprint": FINGERPRINT,
            "snapshot_id": output_if_any("pull_dataset", "snapshot_id"),
            "outcome": "{{ stopped_by(ti, dag).get('outcome', '') }}",
            "reason": "{{ stopped_by(ti, dag).get('reason', '') }}",
            "version": output_if_any("deploy_model", "version"),
            "report": output_if_any("evaluate", "report"),
            "metric": pipeline.gate.metric,
            "verdict": output_if_any("gate", "sentence"),
            "states": TASK_STATES,
            "started_at": "{{ dag_run.start_date.isoformat() }}",
        },
        connections=("bottle", "database", "mlflow"),
    )


def in_parts(name: str, pipeline: Pipeline, steps: dict[str, Step]) -> Sequence[JobOperator]:
    """Return the tasks of a night in the order in which they run, each in the part of the night that it belongs to."""
    prepare = pipeline.prepare_steps()
    on_the_gpu = {"pool": pipeline.train_pool, "queue": pipeline.train_queue}
    with part("data"):
        pulled = task("pull_dataset", steps["pull_dataset"], skips=[next(iter(prepare), "train")])
        prepared = [task(task_id, steps[task_id]) for task_id in prepare]
    with part("train"):
        trained = task("train", steps["train"], **on_the_gpu)
    with part("judge"):
        evaluated = task("evaluate", steps["evaluate"])
        gated = task("gate", steps["gate"], skips=["export_onnx"])
    with part("convert"):
        opset, verify = {"opset": pipeline.publish.opset}, pipeline.verify.model_dump()
        exported = task("export_onnx", Step("conversion_jobs.export_onnx", {"experiment": EXPERIMENT, **opset}))
        compared = {"experiment": EXPERIMENT, "snapshot_id": SNAPSHOT, **verify}
        verified = task("verify_onnx", Step("conversion_jobs.verify_onnx", compared))
        planned = plan_tasks(pipeline) if pipeline.convert.served == "tensorrt" else []
    with part("release"):
        # The graph before the plan: what is published last is deployed.
        pairs = [publishing_tasks(pipeline, target) for target in sorted(pipeline.convert.targets)]
        released = [one for step in zip(*pairs, strict=True) for one in step]
        deployed = task("deploy_model", deployment(pipeline))
    return [pulled, *prepared, trained, evaluated, gated, exported, verified, *planned, *released, deployed]


def retrain_dag(name: str, pipeline: Pipeline) -> DAG:
    """Return the DAG of one pipeline."""
    steps = {
        "pull_dataset": pulling(name, pipeline),
        **pipeline.prepare_steps(),
        "train": pipeline.train_step(),
        "evaluate": pipeline.evaluate_step(),
        "gate": judging(pipeline),
    }
    dag_id = f"retrain_{name}"
    with DAG(
        dag_id=dag_id,
        dag_display_name=listed_name(dag_id, pipeline.description),
        description=pipeline.description,
        doc_md=__doc__,
        # Without a start date and with no run in the past: a new pipeline waits for its next night.
        schedule=pipeline.schedule
        and CronTriggerTimetable(pipeline.schedule, timezone="UTC", run_immediately=timedelta()),
        catchup=False,
        max_active_runs=1,  # two nights of one pipeline would train on the same GPU and race for the next version
        tags=["retrain", pipeline.kind, *(tag for tag in pipeline.tags if tag != pipeline.kind)],
        params=trigger_form(pipeline),
        # What a run by hand trains otherwise must not pass for what the schedule would have trained.
        user_defined_macros={"stopped_by": stopped_by, "fingerprint": Fingerprint(list(steps.values()))},
        default_args={
            "owner": pipeline.owner,
            "retries": pipeline.retries.attempts,
            "retry_delay": pipeline.retries.delay,
            "retry_exponential_backoff": 2.0,
            "max_retry_delay": pipeline.retries.max_delay,
        },
    ) as dag:
        tasks = in_parts(name, pipeline, steps)
        reported = task("report", closing(name, pipeline), post_execute=conclude)
        chain(*tasks, reported)
        # A teardown runs whatever happened before it, also in a run that a person has marked as failed.
        reported.as_teardown(on_failure_fail_dagrun=True)
    return dag


if file := pipeline_file(__file__):
    dag = retrain_dag(file.stem, load_pipeline(file))
