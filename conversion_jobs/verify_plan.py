"""Verify a TensorRT plan on its GPU: the same golden pictures through the plan and the ONNX graph, and its latency."""

from __future__ import annotations

import dataclasses
import logging
import tempfile
from pathlib import Path

import numpy as np
from pydantic import Field

from conversion_jobs.onnx.graph import GraphInterface, interface, read_graph
from conversion_jobs.onnx.session import Latency, OnnxModel
from conversion_jobs.tensorrt.gpu import Gpu, probe_gpu
from conversion_jobs.tensorrt.plan import Plan, PlanPaths
from conversion_jobs.tensorrt.reference_check import reference_verdicts
from conversion_jobs.tensorrt.trtexec import Trtexec, probe_trtexec, run_plan
from conversion_jobs.tensorrt.version import parse_version
from conversion_jobs.triton.served_model import Array, served_checks
from conversion_jobs.verification.checks import Cosine, Verdict, judge_all, of_output, worst_verdicts
from conversion_jobs.verification.golden_inputs import golden_inputs
from conversion_jobs.verification.record import Verification, passed_verification, read_model
from jobkit import job
from jobkit.bottle import Bottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment, read_spec
from jobkit.files import sha256_of
from jobkit.model_spec import judged_as, output_names
from nightshift_common.options.conversion import LatencyOptions, PlanSamples, TrtexecOptions

logger = logging.getLogger("conversion_jobs.verify_plan")
RUNS = 4  # of trtexec for one batch size: each is a start of several seconds
TIMED_SECONDS = 3.0


class Arguments(job.Arguments, LatencyOptions, TrtexecOptions):
    """Compare a plan with its graph on golden pictures at its smallest, best and largest batch, and time it."""

    experiment: str = Field(description="the experiment's folder in the bottle: models/<group>/<experiment>")
    record: str = Field(description="the plan's record in the bottle, as build_plan gives it")
    snapshot_id: str | None = Field(None, description="snapshot of the group, whose golden part verifies pictures")
    samples: PlanSamples = Field(32, description="golden pictures")
    timeout: float = Field(600, gt=0, description="seconds that one run of trtexec may take")


class Result(job.Result):
    """What was found."""

    verdicts: list[Verdict]
    verification: str = Field(description="key in the bottle")
    latency_ms: dict[str, float] = Field(description="of the smallest batch: median, p90, p99, with transfers")


def run(arguments: Arguments, context: job.Context) -> Result:
    """Compare, time, write what was found, refuse a plan that differs or is too slow."""
    experiment, bottle = Experiment(arguments.experiment), context.bottle
    record = read_model(bottle, arguments.record, Plan, "run build_plan")
    paths = PlanPaths(arguments.record.rpartition("/")[0])
    plan, onnx = bottle.local(paths.plan), bottle.local(experiment.onnx)
    refuse_stale_plan(bottle, experiment, record, plan, onnx)
    spec = read_spec(bottle, experiment)
    profiles = record.profiles or [record.batches]
    inputs, pictures = golden_inputs(bottle, experiment, spec, arguments.snapshot_id, arguments.samples)
    with tempfile.TemporaryDirectory(prefix="nightshift-verify-") as folder:
        scratch = Path(folder)
        trtexec = dataclasses.replace(
            probe_trtexec(arguments.trtexec, scratch / "run.log", arguments.timeout),
            version_compatible=record.version_compatible,
        )
        refuse_other_machine(record, trtexec, probe_gpu(arguments.nvidia_smi))
        graph = interface(read_graph(onnx))
        names = output_names(spec)  # a segmenter's further outputs are judged by its masks alone
        sources = OnnxModel(onnx).run_all(inputs, 8)[: len(names)]
        by_batch: list[dict[int, list[Verdict]]] = [{} for _ in names]
        latencies: list[Latency] = []
        # A batch that two profiles take is run by the one that stands first.
        runs = {size: index for index, profile in reversed([*enumerate(profiles)]) for size in profile}
        sizes = sorted(runs)
        for size in sizes:
            profile = runs[size] if record.profiles else None
            outputs, latency = run_batches(trtexec, plan, graph, inputs, size, scratch, profile)
            for number, source in enumerate(sources):
                checks = served_checks("tensorrt", judged_as(spec) if not number else "embedding")
                count = len(outputs[number])
                by_batch[number][size] = judge_all(checks, source[:count], outputs[number], pictures[:count])
            latencies.append(latency)
        seconded = second_opinion(
            trtexec, plan, graph, inputs, sources[0], sizes[-1], judged_as(spec), scratch,
            runs[sizes[-1]] if record.profiles else None,
        )  # fmt: skip
    slow = judge_latency(latencies[0], arguments.limit_ms)
    verdicts = worst_verdicts(by_batch[0])
    for name, found in zip(names[1:], by_batch[1:], strict=True):
        verdicts += of_output(name, worst_verdicts(found))
    verdicts += [*seconded, slow]
    verification = Verification(
        sha256=record.sha256,
        passed=all(verdict.passed for verdict in verdicts),
        snapshot_id=arguments.snapshot_id,
        pictures=len(inputs),
        batch_sizes=sizes,
        verdicts=verdicts,
        latency_ms=[dataclasses.asdict(latency) for latency in latencies],
    )
    bottle.write(paths.verification, verification.model_dump_json(indent=2) + "\n")
    report(verification, arguments, context)
    if not verification.passed:
        failed = "; ".join(f"{v.sentence} (worst: {v.worst_picture})" for v in verdicts if not v.passed)
        raise DataValidationError(f"{paths.plan} is not to be served: {failed}")
    timed = latencies[0]
    return Result(
        verdicts=verdicts,
        verification=paths.verification,
        latency_ms={"median": timed.median, "p90": timed.p90, "p99": timed.p99},
    )


def refuse_stale_plan(bottle: Bottle, experiment: Experiment, record: Plan, plan: Path, onnx: Path) -> None:
    """Refuse a plan that is not the recorded one, or was built from another graph than the verified one.

    Raises:
        DataValidationError: with both checksums.
    """
    if (actual := sha256_of(plan)) != record.sha256:
        raise DataValidationError(f"{plan.name} is {actual}, but {record.sha256} was built: run build_plan again")
    digest = sha256_of(onnx)
    passed_verification(bottle, experiment.onnx, experiment.verification, digest, "verify_onnx")
    if digest != record.onnx_sha256:
        raise DataValidationError(
            f"the plan was built from the graph {record.onnx_sha256}, now it is {digest}: build it again"
        )


def refuse_other_machine(record: Plan, trtexec: Trtexec, gpu: Gpu) -> None:
    """Refuse to run where the plan does not load.

    Raises:
        ConfigurationError: another TensorRT, or another GPU.
    """
    built = parse_version(record.tensorrt)
    version = trtexec.version
    if not (version.loads_compatible_plans_of(built) if record.version_compatible else version.loads_plans_of(built)):
        raise ConfigurationError(f"the plan is for TensorRT {record.tensorrt}, this is {trtexec.version}")
    if gpu.compute_capability != record.compute_capability:
        raise ConfigurationError(
            f"the plan is for a {record.gpu} (compute {record.compute_capability}), this is a {gpu.name} "
            f"({gpu.compute_capability}): run this task on the queue of that GPU"
        )


def run_batches(
    trtexec: Trtexec, plan: Path, graph: GraphInterface, inputs: Array, size: int, scratch: Path, profile: int | None
) -> tuple[list[Array], Latency]:
    """Run `inputs` [n, ...] through the plan in batches of `size`, at most `RUNS` of them; time the first.

    Returns each output of the pictures that were run (the last batch is filled up, its filling is cut off).
    """
    outputs: list[list[Array]] = []
    latencies: list[Latency] = []
    for start in range(0, min(len(inputs), RUNS * size), size):
        batch = np.resize(inputs[start : start + size], (size, *inputs.shape[1:]))
        given, latency = run_plan(trtexec, plan, graph, batch, scratch, 0 if latencies else TIMED_SECONDS, profile)
        latencies.append(latency)
        outputs.append([output[: len(inputs) - start] for output in given])
    return [np.concatenate(column) for column in zip(*outputs, strict=True)], latencies[0]


def second_opinion(
    trtexec: Trtexec,
    plan: Path,
    graph: GraphInterface,
    inputs: Array,
    source: Array,
    size: int,
    output: str,
    scratch: Path,
    profile: int | None,
) -> list[Verdict]:
    """Return what trtexec itself says of the plan's largest batch; nothing before 11.1, or where no cosine is asked."""
    count = min(size, len(inputs))
    batch, expected = (np.resize(array[:count], (size, *array.shape[1:])) for array in (inputs, source))
    cosines = [check for check in served_checks("tensorrt", output) if isinstance(check, Cosine)]
    found: list[Verdict] = []
    for cosine in cosines:
        found += reference_verdicts(trtexec, plan, graph, batch, expected, cosine, scratch, profile)
    return found


def judge_latency(latency: Latency, limit: float) -> Verdict:
    """Return the verdict on the 99th percentile."""
    sentence = f"batch {latency.batch} takes {latency.p99:g} ms (p99), at most {limit:g} ms are allowed"
    return Verdict(name="latency", passed=latency.p99 <= limit, value=latency.p99, limit=limit, sentence=sentence)


def report(verification: Verification, arguments: Arguments, context: job.Context) -> None:
    """Say what was found in the log, and in MLflow where the job is tracked."""
    for verdict in verification.verdicts:
        logger.log(logging.INFO if verdict.passed else logging.ERROR, "%s: %s", verdict.name, verdict.sentence)
    for latency in verification.latency_ms:
        logger.info("batch %(batch)d: median %(median).2f ms, p90 %(p90).2f ms, p99 %(p99).2f ms", latency)
    if (p99 := verification.latency_ms[0]["p99"]) > arguments.goal_ms:
        logger.warning("p99 %.1f ms is above the goal of %g ms", p99, arguments.goal_ms)
    if context.is_tracked:
        metrics = {f"plan.{verdict.name}": verdict.value for verdict in verification.verdicts}
        context.tracking.metrics({key: value for key, value in metrics.items() if np.isfinite(value)})
        context.tracking.dictionary(verification.model_dump(), "plan_verification.json")


if __name__ == "__main__":
    job.main(Arguments, run)
