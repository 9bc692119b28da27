"""Build a TensorRT plan on the GPU that will serve it: FP16 (or INT8) if that is accurate, else mixed, else FP32."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import Field

from conversion_jobs.onnx.graph import GraphInterface, interface, read_graph
from conversion_jobs.tensorrt.gpu import Gpu, probe_gpu
from conversion_jobs.tensorrt.half_precision import fp32_layers, to_half
from conversion_jobs.tensorrt.int8 import calibration_inputs, check_int8, to_int8
from conversion_jobs.tensorrt.plan import Attempt, Plan, PlanPaths, plan_paths, timing_cache_key
from conversion_jobs.tensorrt.reference_check import reference_verdicts
from conversion_jobs.tensorrt.trtexec import Trtexec, probe_trtexec, run_plan
from conversion_jobs.tensorrt.trtexec_command import (
    Batches,
    Sizes,
    build_command,
    check_feature,
    check_supported,
    parse_profiles,
    parse_sizes,
    profile_shapes,
)
from conversion_jobs.tensorrt.trtexec_log import skipped_tactics
from conversion_jobs.tensorrt.version import parse_version
from conversion_jobs.triton.served_model import Array, Reference, served_checks
from conversion_jobs.verification.checks import Cosine, Verdict, judge_all, of_output
from conversion_jobs.verification.record import Verification, passed_verification, read_model
from jobkit import job
from jobkit.bottle import Bottle
from jobkit.errors import ConfigurationError, DataValidationError, JobError
from jobkit.experiment import Experiment, read_spec
from jobkit.files import sha256_of
from nightshift_common.options.conversion import PlanOptions, Precision

logger = logging.getLogger("conversion_jobs.build_plan")


class Arguments(job.Arguments, PlanOptions):
    """Build a TensorRT plan from a verified graph, on the GPU and with the TensorRT that will serve it."""

    experiment: str = Field(description="the experiment's folder in the bottle: models/<group>/<experiment>")
    compute_capability: str = Field("7.5", pattern=r"^\d+\.\d$", description="of the GPU that serves; 7.5: T4")
    snapshot_id: str | None = Field(None, description="for int8: snapshot whose pictures calibrate it; no golden ones")
    calibration_samples: int = Field(128, ge=8, le=4096, description="for int8: pictures, of all classes in turn")


class Result(job.Result):
    """The plan; keys in the bottle."""

    plan: str
    record: str
    sha256: str
    precision: Precision
    tensorrt: str
    gpu: str


@dataclass(frozen=True)
class Builder:
    """What every attempt shares."""

    arguments: Arguments
    trtexec: Trtexec
    scratch: Path
    onnx: Path
    model: Any
    graph: GraphInterface
    reference: Reference
    timing_cache: Path
    verification: Verification
    calibration: Array | None

    @property
    def batches(self) -> Batches:
        """The batch sizes of the plan; a graph with a fixed batch has no others."""
        if not self.graph.has_free_batch:
            fixed = self.graph.inputs[0].shape[0] or 1
            return Batches(fixed, fixed, fixed)
        return Batches(self.arguments.min_batch, self.arguments.opt_batch, self.arguments.max_batch)

    @property
    def profiles(self) -> list[Batches]:
        """The batch sizes of every optimization profile; those of the first are `batches`."""
        more = parse_profiles(self.arguments.more_profiles)
        if more and not self.graph.has_free_batch:
            raise ConfigurationError("the graph's batch is fixed: it has one optimization profile")
        return [self.batches, *more]

    @property
    def sizes(self) -> Sizes | None:
        """Of free axes: smallest, best, largest; the verified inputs lie between them."""
        found = parse_sizes(self.arguments.size_profile)
        if found is not None:
            axes = zip(self.graph.inputs[0].shape[1:], self.reference.inputs.shape[1:], strict=True)
            verified = tuple(size for own, size in axes if own is None)
            if len(verified) == len(found[0]) and not all(
                low <= size <= high for low, size, high in zip(found[0], verified, found[2], strict=True)
            ):
                raise ConfigurationError(
                    f"--size_profile {self.arguments.size_profile} leaves out the verified size "
                    f"{'x'.join(map(str, verified))}: nothing could be compared"
                )
        return found

    def attempts(self) -> Iterator[tuple[Precision, list[str]]]:
        """Yield the precisions to try, the fastest first, with the nodes that stay in FP32."""
        if self.arguments.precision == "int8":
            yield "int8", []
        if self.arguments.precision in ("int8", "fp16"):
            yield "fp16", []
        layers = fp32_layers(self.model, self.verification.fp16_risks)
        if self.arguments.precision != "fp32" and layers:
            yield "mixed", layers
        yield "fp32", []

    def build(self, precision: Precision, layers: list[str], plan: Path, *, strip_weights: bool = False) -> str:
        """Build one plan; return trtexec's log."""
        source = self.onnx
        if precision == "int8" and self.calibration is not None:
            source = self.scratch / "int8.onnx"
            to_int8(self.onnx, source, self.calibration, half=self.trtexec.version.major >= 11)
        elif self.trtexec.version.major >= 11 and precision != "fp32":
            source = self.scratch / f"{precision}.onnx"
            to_half(self.onnx, source, self.reference.inputs, layers)
        command = build_command(
            self.trtexec.path, self.trtexec.version, source, plan,
            profile_shapes(self.trtexec.version, self.graph, self.profiles, self.sizes),
            precision=precision, fp32_layers=layers, workspace_mib=self.arguments.workspace,
            timing_cache=self.timing_cache, version_compatible=self.arguments.version_compatible,
            strip_weights=strip_weights,
        )  # fmt: skip
        text = self.trtexec.run(command)
        if not plan.is_file() or plan.stat().st_size == 0:
            raise DataValidationError(f"trtexec says that it passed, but wrote no plan; its log: {self.trtexec.log}")
        return text

    def judge(self, plan: Path) -> list[Verdict]:
        """Compare the plan's outputs on the verified pictures with the source's."""
        known, verdicts = self.reference, []
        checks = served_checks("tensorrt", known.output)
        for index, batches in enumerate(self.profiles):
            size = max(batches.smallest, min(len(known.inputs), batches.largest))
            inputs = np.resize(known.inputs, (size, *known.inputs.shape[1:]))
            profile = index if len(self.profiles) > 1 else None
            outputs, _ = run_plan(self.trtexec, plan, self.graph, inputs, self.scratch, profile=profile)
            source = np.resize(known.outputs, (size, *known.outputs.shape[1:]))
            names = [known.pictures[i % len(known.pictures)] for i in range(size)]
            found = judge_all(checks, source, outputs[0], names)
            for cosine in (check for check in checks if isinstance(check, Cosine)):
                found += reference_verdicts(
                    self.trtexec, plan, self.graph, inputs, source, cosine, self.scratch, profile
                )
            given = dict(zip([tensor.name for tensor in self.graph.outputs], outputs, strict=True))
            for name, wanted in known.further.items():
                further = np.resize(wanted, (size, *wanted.shape[1:]))
                found += of_output(name, judge_all(served_checks("tensorrt", "embedding"), further, given[name], names))
            verdicts += found if profile is None else of_output(f"profile_{index}", found)
        return verdicts


def run(arguments: Arguments, context: job.Context) -> Result:
    """Probe, refuse what would not be served, build and check in falling speed, write the plan; its record last."""
    experiment, bottle = Experiment(arguments.experiment), context.bottle
    with tempfile.TemporaryDirectory(prefix="nightshift-plan-") as folder:
        scratch = Path(folder)
        log = scratch / "build.log"
        trtexec = replace(
            probe_trtexec(arguments.trtexec, log, arguments.timeout), version_compatible=arguments.version_compatible
        )
        gpu = probe_gpu(arguments.nvidia_smi)
        refuse_wrong_target(arguments, trtexec, gpu)
        paths = plan_paths(experiment.folder, gpu, trtexec.version)
        onnx = bottle.local(experiment.onnx)
        digest = sha256_of(onnx)
        found = passed_verification(bottle, experiment.onnx, experiment.verification, digest, "verify_onnx")
        model = read_graph(onnx)
        builder = Builder(
            arguments, trtexec, scratch, onnx, model, interface(model), Reference(bottle.local(experiment.reference)),
            fetch_timing_cache(bottle, timing_cache_key(gpu, trtexec.version), scratch), found,
            calibration_of(arguments, bottle, experiment),
        )  # fmt: skip
        if (known := built_before(bottle, paths, digest, builder)) is not None:
            logger.info("%s is there already: nothing is built again", paths.plan)
            return result(paths, known)
        try:
            plan, record = build_first_accurate(builder, gpu, digest)
            if arguments.strip_weights:
                record = strip(builder, plan, record)
        finally:
            keep_log(bottle, paths, log)
        bottle.put(paths.plan, plan)
        if record.stripped_sha256 is not None:
            bottle.put(paths.stripped, stripped_path(plan))
        bottle.write(paths.record, record.model_dump_json(indent=2) + "\n")
        if builder.timing_cache.is_file() and builder.timing_cache.stat().st_size:
            bottle.put(timing_cache_key(gpu, trtexec.version), builder.timing_cache)
    if context.is_tracked:
        context.tracking.tags(
            {
                "plan": paths.plan, "tensorrt": record.tensorrt, "precision": record.precision,
                **({"made_by_test_double": "true"} if record.made_by_test_double else {}),
            }
        )  # fmt: skip
        context.tracking.dictionary(record.model_dump(), "plan.json")
    return result(paths, record)


def calibration_of(arguments: Arguments, bottle: Bottle, experiment: Experiment) -> Array | None:
    """Return the inputs that INT8 is calibrated with; None where it is not asked for."""
    if arguments.precision != "int8":
        return None
    spec = read_spec(bottle, experiment)
    return calibration_inputs(bottle, experiment, spec, arguments.snapshot_id, arguments.calibration_samples)


def refuse_wrong_target(arguments: Arguments, trtexec: Trtexec, gpu: Gpu) -> None:
    """Refuse to build where the plan would not load in the Triton that is to serve it.

    Raises:
        ConfigurationError: another GPU, another TensorRT, or a version that is not known.
    """
    check_supported(trtexec.version)
    wanted = {"versionCompatible": arguments.version_compatible, "stripWeights": arguments.strip_weights}
    for name in (name for name, is_wanted in wanted.items() if is_wanted):
        check_feature(trtexec.version, name)
    if arguments.precision == "int8":
        check_int8(trtexec.version)
    if gpu.compute_capability != arguments.compute_capability:
        raise ConfigurationError(
            f"this is a {gpu.name} (compute {gpu.compute_capability}), the plan is for compute "
            f"{arguments.compute_capability}: it would not load there; run this task on the queue of that GPU"
        )
    serving = parse_version(arguments.serving_tensorrt)
    if arguments.version_compatible:
        if not serving.loads_compatible_plans_of(trtexec.version):
            raise ConfigurationError(
                f"this is TensorRT {trtexec.version}, the serving Triton has {serving}: version-compatible plans load "
                "in the same or a later version, up to the next major one"
            )
    elif not serving.loads_plans_of(trtexec.version):
        raise ConfigurationError(
            f"this is TensorRT {trtexec.version}, the serving Triton has {serving}: it loads plans of its own build "
            "only; use the tensorrt and tritonserver images of the same month"
        )


def build_first_accurate(builder: Builder, gpu: Gpu, onnx_sha256: str) -> tuple[Path, Plan]:
    """Build in falling speed until a plan is accurate; return it with its record.

    Only a plan that was built and is not accurate makes the next precision's turn: a build that fails, say on a full
    GPU, fails the job, or a slow plan would be served without anybody's noticing.

    Raises:
        ConfigurationError, DataValidationError, TransientError: a build failed; or not even FP32 is accurate (data).
    """
    attempts: list[Attempt] = []
    for precision, layers in builder.attempts():
        started = time.monotonic()
        plan = builder.scratch / f"{precision}.plan"
        text = builder.build(precision, layers, plan)
        verdicts = builder.judge(plan)
        failed = [verdict.sentence for verdict in verdicts if not verdict.passed]
        accepted = not failed
        attempts.append(
            Attempt(
                precision=precision, fp32_layers=layers, accepted=accepted, verdicts=verdicts,
                reason="; ".join(failed) or "accurate on the verified pictures",
                seconds=round(time.monotonic() - started, 1),
            )
        )  # fmt: skip
        logger.log(logging.INFO if accepted else logging.WARNING, "%s: %s", precision, attempts[-1].reason)
        if accepted:
            return plan, record_of(builder, gpu, onnx_sha256, plan, attempts, text)
    tried = "; ".join(f"{attempt.precision}: {attempt.reason}" for attempt in attempts)
    raise DataValidationError(f"no precision gives an accurate plan: {tried}")


def strip(builder: Builder, plan: Path, record: Plan) -> Plan:
    """Build the accurate plan once more without its weights; return the record with its checksum.

    What it answers cannot be checked here: trtexec runs it as it is, gives zeros and says that it passed.
    """
    accepted = record.attempts[-1]
    stripped = stripped_path(plan)
    builder.build(accepted.precision, accepted.fp32_layers, stripped, strip_weights=True)
    logger.info("without weights: %d of %d bytes", stripped.stat().st_size, plan.stat().st_size)
    return record.model_copy(update={"stripped_sha256": sha256_of(stripped)})


def stripped_path(plan: Path) -> Path:
    """Return where the plan without weights is built."""
    return plan.with_suffix(".stripped.plan")


def record_of(builder: Builder, gpu: Gpu, onnx_sha256: str, plan: Path, attempts: list[Attempt], text: str) -> Plan:
    """Return what is known of a plan that was built."""
    batches, is_int8 = builder.batches, attempts[-1].precision == "int8"
    if skipped := skipped_tactics(text):
        logger.warning(
            "%d kernels were left out for want of GPU memory: the plan may be slower than it could be", skipped
        )
    return Plan(
        sha256=sha256_of(plan),
        onnx_sha256=onnx_sha256,
        tensorrt=str(builder.trtexec.version),
        gpu=gpu.name,
        compute_capability=gpu.compute_capability,
        driver=gpu.driver,
        asked_precision=builder.arguments.precision,
        precision=attempts[-1].precision,
        batches=(batches.smallest, batches.best, batches.largest),
        profiles=[(p.smallest, p.best, p.largest) for p in builder.profiles] if len(builder.profiles) > 1 else [],
        sizes=builder.sizes,
        workspace_mib=builder.arguments.workspace,
        attempts=attempts,
        skipped_tactics=skipped,
        calibration_snapshot_id=builder.arguments.snapshot_id if is_int8 else None,
        calibration_pictures=len(builder.calibration) if is_int8 and builder.calibration is not None else 0,
        version_compatible=builder.arguments.version_compatible,
        made_by_test_double=builder.trtexec.is_test_double,
    )


def built_before(bottle: Bottle, paths: PlanPaths, onnx_sha256: str, builder: Builder) -> Plan | None:
    """Return the record of a plan that was built from the same graph in the same way; None where there is none."""
    if not bottle.exists(paths.record) or not bottle.exists(paths.plan):
        return None
    try:
        known = read_model(bottle, paths.record, Plan, "build it again")
    except DataValidationError:
        return None
    batches = builder.batches
    profiles = [(p.smallest, p.best, p.largest) for p in builder.profiles] if len(builder.profiles) > 1 else []
    wanted = (onnx_sha256, builder.arguments.precision, (batches.smallest, batches.best, batches.largest), profiles)
    same = (known.onnx_sha256, known.asked_precision, known.batches, known.profiles) == wanted
    same = same and known.sizes == builder.sizes
    same = same and known.version_compatible == builder.arguments.version_compatible
    if known.precision == "int8":
        same = same and known.calibration_snapshot_id == builder.arguments.snapshot_id
    if builder.arguments.strip_weights:
        same = same and bottle.exists(paths.stripped)
        same = same and sha256_of(bottle.local(paths.stripped)) == known.stripped_sha256
    return known if same and sha256_of(bottle.local(paths.plan)) == known.sha256 else None


def fetch_timing_cache(bottle: Bottle, key: str, scratch: Path) -> Path:
    """Return a local timing cache: what earlier builds on this GPU and TensorRT have measured, if any have."""
    path = scratch / "timing.cache"
    if bottle.exists(key):
        path.write_bytes(bottle.read(key))
    return path


def keep_log(bottle: Bottle, paths: PlanPaths, log: Path) -> None:
    """Keep trtexec's log in the bottle, whatever the build came to; the build's own error is never hidden."""
    try:
        bottle.put(paths.log, log)
    except (OSError, JobError) as error:
        logger.warning("trtexec's log could not be kept: %s", error)


def result(paths: PlanPaths, record: Plan) -> Result:
    """Return the job's result for a plan."""
    return Result(
        plan=paths.plan, record=paths.record, sha256=record.sha256, precision=record.precision,
        tensorrt=record.tensorrt, gpu=record.gpu,
    )  # fmt: skip


if __name__ == "__main__":
    job.main(Arguments, run)
