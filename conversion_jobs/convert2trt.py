"""An ONNX file to a TensorRT plan, from file to file: `python -m conversion_jobs.convert2trt model.onnx model.plan`.

For people without Airflow; it runs where `trtexec` is, in the TensorRT image (`convertation/run.sh`).
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from pathlib import Path
from typing import Any

from pydantic import Field
from pydantic_settings import CliPositionalArg

from conversion_jobs.onnx.graph import GraphInterface, interface, read_graph
from conversion_jobs.onnx.session import OnnxModel
from conversion_jobs.tensorrt.gpu import probe_gpu
from conversion_jobs.tensorrt.half_precision import fp32_layers, to_half
from conversion_jobs.tensorrt.trtexec import Trtexec, probe_trtexec, run_plan
from conversion_jobs.tensorrt.trtexec_command import (
    Batches,
    build_command,
    load_command,
    parse_profiles,
    parse_sizes,
    profile_shapes,
)
from conversion_jobs.tensorrt.version import TensorRTVersion
from conversion_jobs.test_onnx import read_inputs
from conversion_jobs.torch2onnx import legacy_command_line
from conversion_jobs.triton.served_model import Array, served_checks
from conversion_jobs.verification.checks import Verdict, judge_all, of_output
from conversion_jobs.verify_onnx import fp16_risks
from jobkit import job
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.files import atomic_file, sha256_of
from nightshift_common.options.conversion import BuildOptions, Precision

logger = logging.getLogger("conversion_jobs.convert2trt")


class Arguments(job.Arguments, BuildOptions):
    """Build a plan on this machine's GPU, and compare it with the ONNX file on real inputs where some are given."""

    onnx: CliPositionalArg[Path] = Field(description="the ONNX file")
    plan: CliPositionalArg[Path] = Field(description="the plan to write; trtexec's log goes beside it")
    inputs: Path | None = Field(None, description="folder of pictures, or .npy of inputs, to compare with")


class Result(job.Result):
    """The plan, and what it loads into."""

    plan: Path
    sha256: str
    precision: Precision
    tensorrt: str
    gpu: str
    compute_capability: str
    verdicts: list[Verdict]


def run(arguments: Arguments, _context: job.Context) -> Result:
    """Probe, build, compare, put the plan in its place."""
    log = arguments.plan.absolute().with_suffix(".log")
    log.parent.mkdir(parents=True, exist_ok=True)
    log.unlink(missing_ok=True)
    model = read_graph(arguments.onnx)
    graph = interface(model)
    inputs = read_inputs(arguments.inputs, graph, 32)[0] if arguments.inputs else None
    trtexec, gpu = probe_trtexec(arguments.trtexec, log, arguments.timeout), probe_gpu(arguments.nvidia_smi)
    with tempfile.TemporaryDirectory(prefix="nightshift-plan-") as folder:
        scratch = Path(folder)
        plan = scratch / "model.plan"
        precision = chosen_precision(arguments, trtexec.version, inputs)
        source, layers = prepare(arguments, precision, trtexec.version, model, inputs, scratch)
        command = build_command(
            arguments.trtexec, trtexec.version, source, plan,
            profile_shapes(
                trtexec.version, graph, profiles_of(arguments, graph), parse_sizes(arguments.size_profile)
            ),
            precision=precision, fp32_layers=layers, workspace_mib=arguments.workspace,
            timing_cache=scratch / "timing.cache",
        )  # fmt: skip
        trtexec.run(command)
        verdicts = compare(arguments, trtexec, plan, graph, inputs)
        with atomic_file(arguments.plan.absolute()) as temporary:
            shutil.copyfile(plan, temporary)
    logger.info("%s: for TensorRT %s on %s", arguments.plan, trtexec.version, gpu.name)
    return Result(
        plan=arguments.plan, sha256=sha256_of(arguments.plan), precision=precision, tensorrt=str(trtexec.version),
        gpu=gpu.name, compute_capability=gpu.compute_capability, verdicts=verdicts,
    )  # fmt: skip


def profiles_of(arguments: Arguments, graph: GraphInterface) -> list[Batches]:
    """Return the batch sizes of every optimization profile; a graph with a fixed batch has no others."""
    if not graph.has_free_batch:
        fixed = graph.inputs[0].shape[0] or 1
        return [Batches(fixed, fixed, fixed)]
    first = Batches(arguments.min_batch, arguments.opt_batch, arguments.max_batch)
    return [first, *parse_profiles(arguments.more_profiles)]


def chosen_precision(arguments: Arguments, version: TensorRTVersion, inputs: Array | None) -> Precision:
    """Return the precision to build with: the one that is asked for; nobody asked for one and it cannot be had: FP32.

    Raises:
        ConfigurationError: it was asked for, takes real inputs, and none were given.
    """
    precision = arguments.precision
    if precision == "int8":
        raise ConfigurationError("--precision int8 is calibrated with pictures of a snapshot: build_plan does that")
    if inputs is not None or precision == "fp32" or (precision == "fp16" and version.major < 11):
        return precision
    why = (
        f"--precision {precision} with TensorRT {version} needs --inputs: which values half precision can hold is "
        "found out with real ones"
    )
    if "precision" in arguments.model_fields_set:
        raise ConfigurationError(why)
    logger.warning("the plan is built in FP32, which is slower: %s", why)
    return "fp32"


def prepare(
    arguments: Arguments, precision: Precision, version: TensorRTVersion, model: Any, inputs: Array | None,
    scratch: Path,
) -> tuple[Path, list[str]]:  # fmt: skip
    """Return the graph to build from, in half precision where TensorRT wants it so, and the nodes kept in FP32."""
    if inputs is None or precision == "fp32" or (precision == "fp16" and version.major < 11):
        return arguments.onnx, []
    layers = fp32_layers(model, fp16_risks(model, inputs[:8], arguments.onnx.parent)) if precision == "mixed" else []
    if version.major < 11:
        return arguments.onnx, layers
    half = scratch / "half.onnx"
    to_half(arguments.onnx, half, inputs[:8], layers)
    return half, layers


def compare(
    arguments: Arguments, trtexec: Trtexec, plan: Path, graph: GraphInterface, inputs: Array | None
) -> list[Verdict]:
    """Compare the plan's outputs with the graph's on real inputs; without any, see that the plan loads.

    Raises:
        DataValidationError: they differ.
    """
    if inputs is None:
        trtexec.run(load_command(arguments.trtexec, plan), loads=True)
        logger.warning("the plan loads, but its outputs were not compared: that needs --inputs")
        return []
    batch = inputs[: arguments.max_batch]
    profile = 0 if arguments.more_profiles else None
    outputs, latency = run_plan(trtexec, plan, graph, batch, plan.parent, seconds=3.0, profile=profile)
    sources = OnnxModel(arguments.onnx).run_all(batch, len(batch))
    names = [f"input {number}" for number in range(len(batch))]
    verdicts = judge_all(served_checks("tensorrt", graph.judged_as), sources[0], outputs[0], names)
    if graph.outputs[0].name not in ("raw", "detections"):
        for tensor, source, output in zip(graph.outputs[1:], sources[1:], outputs[1:], strict=True):
            verdicts += of_output(tensor.name, judge_all(served_checks("tensorrt", "embedding"), source, output, names))
    if failed := [verdict.sentence for verdict in verdicts if not verdict.passed]:
        raise DataValidationError(f"the plan is not accurate: {'; '.join(failed)}; try --precision mixed or fp32")
    logger.info("batch %d: median %.2f ms, p99 %.2f ms", latency.batch, latency.median, latency.p99)
    return verdicts


if __name__ == "__main__":
    sys.argv[1:] = legacy_command_line(sys.argv[1:])
    job.main(Arguments, run)
