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

from nightshift.job_operator import JobOperator

NAME = "^[A-Za-z0-9][A-Za-z0-9_.-]{0,99}$"
SOMETHING = r"\S"
FORM = {
    "weights": Param(
        "", type="string", pattern=rf"^$|{SOMETHING}", title="Weights",
        description="A file (/mnt/weights/best.pth), a key in the bottle (incoming/best.pth), or s3://bucket/best.pth.",
    ),
    "family": Param(
        "classifier", type="string", enum=["classifier", "vit", "head", "torchscript", "factory", "ultralytics"],
        title="Family",
        description="classifier: a state_dict of backbone and fc; vit: of an encoder, which gives an embedding; "
        "head: of linear layers over an embedding; torchscript: an archive of TorchScript; factory: a state_dict of "
        "what a function builds; ultralytics: a detector or segmenter, as Ultralytics saves it.",
    ),
    "architecture": Param(
        None, type=["null", "string"], pattern=NAME, title="Architecture",
        description="For a classifier or vit: timm's name, say efficientnet_b0.ra_in1k or vit_base_patch16_224.",
    ),
    "factory": Param(
        None, type=["null", "string"], pattern=r"^[\w.]+:\w+$", title="Factory",
        description="For a factory: module:function that builds the model.",
    ),
    "activation": Param(
        "none", type="string", enum=["none", "sigmoid", "softmax"], title="Activation",
        description="For a head: what is put behind it; its outputs are then probabilities.",
    ),
    "nms": Param(
        False, type="boolean", title="NMS in the graph",
        description="For ultralytics: non-maximum suppression inside the graph; without it the raw outputs are served.",
    ),
    "confidence_threshold": Param(
        0.25, type="number", minimum=0, maximum=0.99, title="Score",
        description="With NMS: boxes with a lower score are left out.",
    ),
    "iou_threshold": Param(
        0.7, type="number", minimum=0.01, maximum=1, title="Overlap",
        description="With NMS: a box that overlaps a better one of its class by more (IoU) goes.",
    ),
    "max_detections": Param(
        300, type="integer", minimum=1, maximum=3840, title="Boxes", description="With NMS: a picture, at most."
    ),
    "embeddings": Param(
        None, type=["null", "string"], pattern=SOMETHING, title="Embeddings",
        description="For a head: real ones to verify with, .npy, float32 [n, features]; where, as for the weights.",
    ),
    "height": Param(224, type="integer", minimum=8, maximum=4096, title="Height", description="Of the input, pixels."),
    "width": Param(224, type="integer", minimum=8, maximum=4096, title="Width", description="Of the input, pixels."),
    "channels": Param(3, type="integer", enum=[3, 1], minimum=1, maximum=3, title="Channels", description="1: gray."),
    "resize": Param(
        "letterbox", type="string", enum=["letterbox", "stretch"], title="Resizing",
        description="letterbox: the longer side fits, the rest is padded; stretch: both sides fit.",
    ),
    "mean": Param(
        [0.485, 0.456, 0.406], type="array", items={"type": "number"}, title="Mean",
        description="Per channel, of values in 0..1, as the model was trained; here ImageNet's.",
    ),
    "std": Param(
        [0.229, 0.224, 0.225], type="array", items={"type": "number", "exclusiveMinimum": 0}, title="Deviation",
        description="Per channel, of values in 0..1, as the model was trained; here ImageNet's.",
    ),
    "labels": Param(
        "", type="string", pattern=rf"^$|{SOMETHING}", title="Classes",
        description="Their names in the order of the outputs, separated by commas; none for a vit. "
        "For ultralytics: empty takes those of the file.",
    ),
    "group": Param(
        "converted", type="string", pattern=NAME, title="Group", description="The group that the model is for."
    ),
    "model_name": Param(
        "converted", type="string", pattern=NAME, title="Model name", description="In the model storage and in Triton."
    ),
    "pictures": Param(
        None, type=["null", "string"], pattern="^/", title="Folder of pictures",
        description="Real pictures to verify with, on the worker. Or pin a snapshot below.",
    ),
    "snapshot_id": Param(
        None, type=["null", "string"], pattern="^[0-9a-f]{16}$", title="Snapshot",
        description="A snapshot of the group, whose golden pictures verify (16 hex digits).",
    ),
    "opset": Param(17, type="integer", minimum=13, maximum=20, title="Opset", description="Of the ONNX file."),
    "tensorrt": Param(
        False, type="boolean", title="TensorRT", description="Build a plan for the T4, and publish it instead."
    ),
    "serving_tensorrt": Param(
        "11.1.0.106", type="string", pattern=r"^\d+\.\d+\.\d+(\.\d+)?$", title="TensorRT of the serving Triton",
        description="A plan loads only into the very build that made it.",
    ),
    "publish": Param(
        False, type="boolean", title="Publish and deploy",
        description="Without it the run stops after packaging: nothing reaches the model storage or Triton.",
    ),
}  # fmt: skip


with DAG(
    dag_id="convert_model",
    description="Convert weights that are at hand to ONNX and TensorRT, verify, publish and deploy them",
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
    imported = JobOperator(
        task_id="import_weights",
        module="conversion_jobs.import_weights",
        # Ultralytics is AGPL and in an environment of its own; what is imported needs it no more.
        runtime="{{ 'detection' if params.family == 'ultralytics' else 'jobs' }}",
        options={"img_size": "[{{ params.height }},{{ params.width }}]"},
        options_from_params={
            name: name
            for name in (
                "weights",
                "family",
                "architecture",
                "factory",
                "activation",
                "nms",
                "confidence_threshold",
                "iou_threshold",
                "max_detections",
                "embeddings",
                "channels",
                "resize",
                "mean",
                "std",
                "labels",
                "group",
                "pictures",
                "snapshot_id",
            )
        },
        connections=["bottle", "mlflow"],
    )
    experiment = imported.output["experiment"]
    snapshot = "{{ ti.xcom_pull('import_weights')['snapshot_id'] or '' }}"  # a head has none
    exported = JobOperator(
        task_id="export_onnx",
        module="conversion_jobs.export_onnx",
        options={"experiment": experiment},
        options_from_params={"opset": "opset"},
        connections=["bottle", "mlflow"],
    )
    verified = JobOperator(
        task_id="verify_onnx",
        module="conversion_jobs.verify_onnx",
        options={"experiment": experiment, "snapshot_id": snapshot},
        connections=["bottle", "mlflow"],
    )
    built = JobOperator(
        task_id="build_plan",
        module="conversion_jobs.build_plan",
        options={"experiment": experiment},
        options_from_params={"serving_tensorrt": "serving_tensorrt"},
        only_if_param="tensorrt",
        connections=["bottle", "mlflow"],
        queue="t4",
        execution_timeout=timedelta(hours=3),
    )
    checked = JobOperator(
        task_id="verify_plan",
        module="conversion_jobs.verify_plan",
        options={"experiment": experiment, "record": built.output["record"], "snapshot_id": snapshot},
        connections=["bottle", "mlflow"],
        queue="t4",
        execution_timeout=timedelta(hours=1),
    )
    packaged = JobOperator(
        task_id="package_model",
        module="conversion_jobs.package_model",
        options={
            "experiment": experiment,
            "target": "{{ 'tensorrt' if params.tensorrt else 'onnx' }}",
            "record": "{{ ti.xcom_pull('build_plan', key='record') or '' }}",
        },
        options_from_params={"model_name": "model_name"},
        connections=["bottle", "mlflow"],
        trigger_rule=TriggerRule.NONE_FAILED,  # without TensorRT the two tasks before it are skipped
    )
    published = JobOperator(
        task_id="publish_model",
        module="conversion_jobs.publish_model",
        options={
            "archive": packaged.output["archive"],
            "sha256": packaged.output["sha256"],
            "target": "{{ 'tensorrt' if params.tensorrt else 'onnx' }}",
            "experiment": experiment,
            "snapshot_id": snapshot,
        },
        options_from_params={"model_name": "model_name"},
        only_if_param="publish",
        connections=["bottle", "mlflow", "storage"],
    )
    deployed = JobOperator(
        task_id="deploy_model",
        module="conversion_jobs.deploy_model",
        options={
            "version": published.output["version"],
            "reference": verified.output["reference"],
            "experiment": experiment,
            "snapshot_id": snapshot,
        },
        options_from_params={"model_name": "model_name"},
        connections=["bottle", "mlflow", "storage", "triton"],
    )
    chain(imported, exported, verified, built, checked, packaged, published, deployed)
