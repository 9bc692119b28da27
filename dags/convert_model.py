"""
## Convert weights that are at hand, without training

`import_weights → export_onnx → verify_onnx → (build_plan → verify_plan) → package_model → publish_model → deploy_model`

Trigger it by hand: the form asks where the weights are, what they are of, and whether to publish. The weights become
an experiment in the bottle (`models/<group>/imported_…`), and from there on go the way of every model that is trained
here. With **TensorRT** a plan is built on the queue `t4`, in the TensorRT image, and it is the plan that is published.

**Triage.** Open the red task's log: its last error line says what happened, where, and what is valid. `import_weights`
is red where the file is not what the form says; `verify_onnx` where the graph does not compute what the weights do (it
names the picture and the module); `build_plan` says the likely cause of trtexec's failure and the next step, and the
whole log is in the bottle beside the plan. `docs/runbook.md` goes on from there.

**Resume.** Clear the failed task: every task is safe to run again. The same weights are the same experiment, a plan
that was built is not built again, and the same content is never published twice.
"""

from datetime import timedelta

from airflow.sdk import DAG, Param, TriggerRule, chain

from nightshift.forms import form_field
from nightshift.steps import Step, listed_name, task
from nightshift.task_templates import output_if_any, output_of
from nightshift_common.gpus import GPUS
from nightshift_common.options.conversion import (
    SERVING_TENSORRT,
    ExportOptions,
    ModelOptions,
    PackageOptions,
    PlanOptions,
)
from nightshift_common.options.weights import RUNTIMES, ImportOptions, InputSizeOptions

PROFILE = ("opt_batch", "more_profiles", "size_profile")
DESCRIPTION = "Convert weights that are at hand to ONNX and TensorRT, verify, publish and deploy them"
GPU = GPUS["T4"]  # for which plans are built here
IMPORTED = {name: form_field(ImportOptions, name) for name in ImportOptions.model_fields if name != "img_size"}
FORM = {
    **IMPORTED,
    "family": form_field(ImportOptions, "family", "classifier"),
    "pictures": form_field(ImportOptions, "pictures", pattern="^/"),
    **{name: form_field(InputSizeOptions, name) for name in InputSizeOptions.model_fields},
    "model_name": form_field(ModelOptions, "model_name", "converted"),
    **{name: form_field(ExportOptions, name) for name in ("opset", "dynamic_size")},
    "tensorrt": Param(
        False, type="boolean", title="TensorRT", description=f"Build a plan for the {GPU.name}, and publish it instead."
    ),
    "serving_tensorrt": form_field(PlanOptions, "serving_tensorrt", SERVING_TENSORRT),
    "max_batch_size": form_field(PackageOptions, "max_batch_size"),
    **{name: form_field(PlanOptions, name) for name in PROFILE},
    "publish": Param(
        False, type="boolean", title="Publish and deploy",
        description="Without it the run stops after packaging: nothing reaches the model storage or Triton.",
    ),
}  # fmt: skip
EXPERIMENT = output_of("import_weights", "experiment")
SNAPSHOT = output_if_any("import_weights", "snapshot_id")  # a head has none
TARGET = "{{ 'tensorrt' if params.tensorrt else 'onnx' }}"
RUNTIME = f"{{{{ {RUNTIMES!r}.get(params.family, 'jobs') }}}}"

with DAG(
    dag_id="convert_model",
    dag_display_name=listed_name("convert_model", DESCRIPTION),
    description=DESCRIPTION,
    doc_md=__doc__,
    schedule=None,
    catchup=False,
    max_active_runs=1,  # conversions for one group write to one folder of packages
    tags=["convert"],
    params=FORM,
    default_args={
        "owner": "ml-team",
        "retries": 2,
        "retry_delay": timedelta(minutes=1),
        "retry_exponential_backoff": 2.0,
        "max_retry_delay": timedelta(minutes=10),
    },
):
    experiment = {"experiment": EXPERIMENT}
    verified_with = {"experiment": EXPERIMENT, "snapshot_id": SNAPSHOT}
    model_name = {"model_name": "model_name"}
    on_the_gpu = {"queue": GPU.queue, "pool": GPU.pool}
    chain(
        task(
            "import_weights",
            Step(
                "conversion_jobs.import_weights",
                options={"img_size": "[{{ params.height }},{{ params.width }}]"},
                params={name: name for name in IMPORTED},
                runtime=RUNTIME,
            ),
        ),
        task(
            "export_onnx",
            Step("conversion_jobs.export_onnx", experiment, params={name: name for name in ("opset", "dynamic_size")}),
        ),
        task("verify_onnx", Step("conversion_jobs.verify_onnx", verified_with)),
        task(
            "build_plan",
            Step(
                "conversion_jobs.build_plan",
                options={
                    **experiment,
                    "compute_capability": GPU.compute_capability,
                    "max_batch": "{{ params.max_batch_size }}",  # of the plan, as it is served
                },
                params={name: name for name in ("serving_tensorrt", *PROFILE)},
                timeout=timedelta(hours=3),
            ),
            only_if_param="tensorrt",
            **on_the_gpu,
        ),
        task(
            "verify_plan",
            Step(
                "conversion_jobs.verify_plan",
                options={**verified_with, "record": output_of("build_plan", "record")},
                timeout=timedelta(hours=1),
            ),
            **on_the_gpu,
        ),
        task(
            "package_model",
            Step(
                "conversion_jobs.package_model",
                options={**experiment, "target": TARGET, "record": output_if_any("build_plan", "record")},
                params={**model_name, "max_batch_size": "max_batch_size"},
            ),
            trigger_rule=TriggerRule.NONE_FAILED,  # without TensorRT the two tasks before it are skipped
        ),
        task(
            "publish_model",
            Step(
                "conversion_jobs.publish_model",
                options={
                    **verified_with,
                    "archive": output_of("package_model", "archive"),
                    "sha256": output_of("package_model", "sha256"),
                    "target": TARGET,
                    "record": output_if_any("build_plan", "record"),
                },
                params=model_name,
                connections=("bottle", "mlflow", "storage_publish", "signing", "signing_identity"),
            ),
            only_if_param="publish",
        ),
        task(
            "deploy_model",
            Step(
                "conversion_jobs.deploy_model",
                options={
                    **verified_with,
                    "version": output_of("publish_model", "version"),
                    "reference": output_of("verify_onnx", "reference"),
                },
                params=model_name,
                connections=("bottle", "mlflow", "storage_deploy", "triton"),
            ),
        ),
    )
