"""The last trained model of a group, all the way to the archives for Triton, in one command: `--group season`.

The steps are the jobs of the same names, one after the other in this process; under Airflow each is a task of its own.
"""

from __future__ import annotations

import logging
import shutil
from typing import Any

from pydantic import Field

from conversion_jobs import build_plan, export_onnx, package_model, verify_onnx, verify_plan
from jobkit import job
from jobkit.bottle import Bottle
from jobkit.errors import ConfigurationError
from jobkit.experiment import Experiment, read_spec
from jobkit.experiment_claim import last_finished
from nightshift_common.names import ModelName
from nightshift_common.options.conversion import (
    SERVING_TENSORRT,
    BuildOptions,
    ExportOptions,
    TensorRTVersion,
    VerifyOptions,
)

logger = logging.getLogger("conversion_jobs.convert_group")


class Arguments(job.Arguments, ExportOptions, VerifyOptions, BuildOptions):
    """Export, verify and package the last trained model of a group; a plan too, where there is trtexec."""

    group: str = Field(description="the group, whose last finished training is taken")
    experiment: str | None = Field(None, description="another training: its folder in the bottle")
    model_name: ModelName | None = Field(None, description="name in the model storage; default: the group's")
    snapshot_id: str | None = Field(None, description="snapshot to verify with; default: the one it was trained on")
    serving_tensorrt: TensorRTVersion = Field(SERVING_TENSORRT, description="TensorRT of the Triton that serves it")


class Result(job.Result):
    """The archives; keys in the bottle."""

    experiment: str
    onnx_archive: str
    tensorrt_archive: str | None = Field(description="None: there is no trtexec on this machine")


def run(arguments: Arguments, context: job.Context) -> Result:
    """Run the jobs of a conversion in their order."""
    experiment = arguments.experiment or last_finished(context.bottle, arguments.group).folder
    logger.info("group %s: %s", arguments.group, experiment)
    which: dict[str, Any] = {
        "experiment": experiment,
        "snapshot_id": snapshot_of(arguments, context.bottle, experiment),
    }
    export_onnx.run(export_onnx.Arguments(experiment=experiment, opset=arguments.opset), context)
    tolerances = arguments.model_dump(include=set(VerifyOptions.model_fields))
    verify_onnx.run(verify_onnx.Arguments(**which, **tolerances), context)
    package: dict[str, Any] = {
        "experiment": experiment, "model_name": arguments.model_name or arguments.group,
        "max_batch_size": arguments.max_batch,
    }  # fmt: skip
    graph = package_model.run(package_model.Arguments(**package), context)
    plan = None
    if shutil.which(arguments.trtexec) is None:
        logger.warning("there is no %s on this machine: only the graph was packaged, no plan", arguments.trtexec)
    else:
        how = arguments.model_dump(include={*BuildOptions.model_fields, "serving_tensorrt"})
        built = build_plan.run(build_plan.Arguments(experiment=experiment, **how), context)
        programs: dict[str, Any] = {"trtexec": arguments.trtexec, "nvidia_smi": arguments.nvidia_smi}
        verify_plan.run(verify_plan.Arguments(**which, record=built.record, **programs), context)
        of_plan = package_model.Arguments(**package, target="tensorrt", record=built.record)
        plan = package_model.run(of_plan, context).archive
    return Result(experiment=experiment, onnx_archive=graph.archive, tensorrt_archive=plan)


def snapshot_of(arguments: Arguments, bottle: Bottle, experiment: str) -> str:
    """Return the snapshot whose golden pictures verify the model.

    Raises:
        ConfigurationError: the model was trained on a folder, and none is named.
    """
    found = arguments.snapshot_id or read_spec(bottle, Experiment(experiment)).snapshot_id
    if found is None:
        raise ConfigurationError(
            f"{experiment} was not trained on a snapshot: --snapshot_id says with which pictures it is verified"
        )
    return found


if __name__ == "__main__":
    job.main(Arguments, run)
