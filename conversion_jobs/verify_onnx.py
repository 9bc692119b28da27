"""Verify a graph: the same real pictures through the source model and ONNX Runtime, at several batch sizes."""

from __future__ import annotations

import dataclasses
import logging
import os
import resource
import tempfile
from pathlib import Path
from resource import RUSAGE_CHILDREN as CHILDREN
from resource import RUSAGE_SELF as SELF
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError, model_validator

from conversion_jobs.detection.export import detector_checks, mask_verdicts
from conversion_jobs.export_onnx import source_file
from conversion_jobs.import_weights import write_pictures
from conversion_jobs.onnx.graph import compact_json, interface, read_graph
from conversion_jobs.onnx.session import FP16_MAX, Latency, OnnxModel, largest_values, measure_latencies
from conversion_jobs.sandboxed.answering import answer_experiment, outputs_of, stored
from conversion_jobs.sandboxed.answering import locate as sandboxed_locate
from conversion_jobs.verification.checks import (
    Check,
    Close,
    Cosine,
    Finite,
    LabelAgreement,
    Top1Agreement,
    Verdict,
    judge_all,
    of_output,
    worst_verdicts,
)
from conversion_jobs.verification.expected import (
    FURTHER,
    NOT_COMPARED,
    OUR_READING,
    RANDOM,
    REFERENCE,
    TRAINED_HERE,
    judge_expected,
    written_expected,
)
from conversion_jobs.verification.golden_inputs import are_random, fitting, golden_inputs, named_inputs
from conversion_jobs.verification.record import FP16Risk, Verification
from jobkit import job
from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.experiment import Experiment, read_spec
from jobkit.files import sha256_of
from jobkit.model_spec import (
    ArraySpec,
    DetectorSpec,
    Preprocessing,
    Spec,
    described_input,
    input_shape,
    judged_as,
    output_names,
)
from jobkit.sandbox import runner
from nightshift_common.options.conversion import VerifyOptions

logger = logging.getLogger("conversion_jobs.verify_onnx")
BATCHES = (1, 2, 8)
REFERENCE_PICTURES = 8
OTHER_SIZE_INPUTS, STEP = 4, 32  # models with strides take sizes in steps of 32
REFERENCE_MEMORY = 2**28  # bytes of inputs that are kept for the smoke test, which sends them over HTTP
MINIMUM_COSINE = 0.9999  # an FP32 graph; plans of half precision are allowed 0.997
WRONG_READING = (
    "the graph is what we read the weights as, and that is not what they are: another activation, or pictures prepared "
    "in another way"
)
FP16_HEADROOM = 4  # other pictures reach further than those that were looked at
Pictures = NDArray[np.float32]


class Arguments(job.Arguments, VerifyOptions):
    """Compare an exported graph with its source model on golden pictures; write the outputs for later smoke tests."""

    experiment: str = Field(description="the experiment's folder in the bottle: models/<group>/<experiment>")
    snapshot_id: str | None = Field(None, description="snapshot of the group, whose golden part verifies pictures")
    pictures: Path | None = Field(None, description="or: a folder of pictures, which become a snapshot")

    @model_validator(mode="after")
    def _one_source(self) -> Arguments:
        if self.pictures is not None and self.snapshot_id is not None:
            raise ValueError("give --snapshot_id or --pictures, not both")
        return self


class Result(job.Result):
    """What was found."""

    verdicts: list[Verdict]
    reference: str = Field(description="npz in the bottle: inputs, outputs and picture names of a few pictures")
    verified_against: str = Field(description="reference outputs of the users' own code, or our reading of the weights")


def run(arguments: Arguments, context: job.Context) -> Result:
    """Compare, write what was found, refuse a graph that differs."""
    experiment = Experiment(arguments.experiment)
    bottle = context.bottle
    if arguments.pictures is not None:
        made = write_pictures(bottle, experiment.group, arguments.pictures)
        arguments = arguments.model_copy(update={"snapshot_id": made})
    spec = read_spec(bottle, experiment)
    path = bottle.local(experiment.onnx)
    graph = read_graph(path)
    refuse_stale_metadata(interface(graph).metadata, spec, experiment)
    inputs, pictures = golden_inputs(bottle, experiment, spec, arguments.snapshot_id, arguments.samples)
    model = OnnxModel(path, os.cpu_count() or 1)
    is_own = bottle.exists(experiment.own_graph)
    script = experiment.torchscript
    sources = model.run_all(inputs, 1) if is_own else source_outputs(bottle.local(script), inputs, spec)
    if model.batch and model.batch != getattr(spec, "batch", None):
        raise DataValidationError(
            f"{experiment.onnx} fails on a batch of 1: it takes {model.batch} at once, and its model takes any number"
        )
    batches = [model.batch] if model.batch else sorted({min(size, len(inputs)) for size in BATCHES})
    worst = judge_outputs(model, spec, sources, inputs, pictures, batches, arguments)
    if is_own:
        worst = of_batches(worst)
    elif None in interface(graph).inputs[0].shape[1:]:
        larger, count = of_another_size(inputs[:OTHER_SIZE_INPUTS]), OTHER_SIZE_INPUTS
        others = source_outputs(bottle.local(script), larger, spec)
        found = judge_outputs(model, spec, others, larger, pictures[:count], [min(2, len(larger))], arguments)
        worst += of_output("other_size", found)
    if isinstance(spec, DetectorSpec):
        worst += mask_verdicts(spec, sources, model.run_all(inputs, 1), pictures)
    against, expected = verified_against(bottle, experiment, spec, model, arguments)
    agrees = all(verdict.passed for verdict in worst)
    worst += expected
    del model  # one session at a time
    passed = all(verdict.passed for verdict in worst)
    where = WRONG_READING if agrees and not passed else None
    if not agrees and is_own:
        where = "the graph gives something else for one input than for several at once"
    elif not agrees:
        where = locate(bottle, experiment, spec, _picture(worst, inputs, pictures), arguments)
    verification = Verification(
        sha256=sha256_of(path), passed=passed, snapshot_id=arguments.snapshot_id, pictures=len(inputs),
        batch_sizes=batches, verdicts=worst, where=where,
        latency_ms=[dataclasses.asdict(timed) for timed in latencies(path, inputs, batches if passed else [])],
        fp16_risks=fp16_risks(graph, inputs[:REFERENCE_PICTURES], path.parent),
        peak_memory_mib=peak_memory_mib(), verified_against=against,
    )  # fmt: skip
    bottle.write(experiment.verification, verification.model_dump_json(indent=2) + "\n")
    report(verification, context)
    if not passed:
        failed = "; ".join(f"{v.sentence} (worst: {v.worst_picture})" for v in worst if not v.passed)
        raise DataValidationError(f"{experiment.onnx} is not the model that was trained: {failed}. Where: {where}")
    write_reference(bottle, experiment, spec, inputs, sources, pictures)
    return Result(verdicts=worst, reference=experiment.reference, verified_against=against)


def verified_against(
    bottle: Bottle, experiment: Experiment, spec: Spec, model: OnnxModel, arguments: Arguments
) -> tuple[str, list[Verdict]]:
    """Return what proves that the model is the right one, and the verdicts on it where reference outputs came."""
    against = OUR_READING if experiment.is_imported else TRAINED_HERE
    if bottle.exists(experiment.own_graph):
        against = NOT_COMPARED
    if not bottle.exists(experiment.expected):
        return (f"{against}, {RANDOM}" if are_random(bottle, experiment, spec) else against), []
    expected = written_expected(bottle.local(experiment.expected))
    count = min(arguments.samples, len(expected.names))
    if isinstance(spec, ArraySpec):
        count = fitting(count, input_shape(spec))
    chosen = np.linspace(0, len(expected.names) - 1, count).astype(int)
    names = [expected.names[index] for index in chosen]
    if expected.inputs is None:
        inputs = named_inputs(bottle, experiment, spec, arguments.snapshot_id, names)
    else:
        inputs = expected.inputs[chosen]
    top1 = arguments.top1_agreement if spec.labels and not isinstance(spec, DetectorSpec) else None
    outputs = model.run_all(inputs, 8)
    verdicts = judge_expected(expected.outputs[chosen], outputs[0], names, top1)
    known = output_names(spec)
    for name, values in expected.further.items():
        further = judge_expected(values[chosen], outputs[known.index(name)], names, None)
        verdicts += of_output(name, further)
    unproven = [name for name in known[1:] if name not in expected.further]
    return REFERENCE + (f", but of {', '.join(unproven)}" if unproven else ""), verdicts


def refuse_stale_metadata(metadata: dict[str, str], spec: Spec, experiment: Experiment) -> None:
    """Refuse a graph that says of itself that it belongs to other labels, preprocessing or another experiment."""
    wanted = {
        "experiment": experiment.folder,
        "labels": compact_json(spec.labels),
        **{name: compact_json(value) for name, value in described_input(spec).items()},
    }
    if "preprocessing" in metadata:  # a file of an earlier version says nothing of keys that came later
        metadata = metadata | {"preprocessing": _in_full(metadata["preprocessing"])}
    wrong = [
        f"{key} {metadata[key]}, not {value}" for key, value in wanted.items() if metadata.get(key, value) != value
    ]
    if wrong:
        raise DataValidationError(
            f"{experiment.onnx} was exported from something else: it has the " + "; the ".join(wrong)
        )


def _in_full(preprocessing: str) -> str:
    try:
        return compact_json(Preprocessing.model_validate_json(preprocessing).model_dump())
    except ValidationError:
        return preprocessing


def checks_of(spec: Spec, arguments: Arguments, number: int = 0) -> list[Check]:
    """Return what an output of the graph is held to; classes are those of the first."""
    if isinstance(spec, DetectorSpec):
        return detector_checks(spec, arguments.atol, arguments.rtol)
    checks: list[Check] = [Finite(), Close(arguments.atol, arguments.rtol), Cosine(MINIMUM_COSINE)]
    if not spec.labels or number:
        return checks
    same = LabelAgreement if judged_as(spec) == "multi_label" else Top1Agreement
    return [*checks, same(arguments.top1_agreement)]


def judge_outputs(
    model: OnnxModel, spec: Spec, sources: list[Pictures], inputs: Pictures, pictures: list[str], batches: list[int],
    arguments: Arguments,
) -> list[Verdict]:  # fmt: skip
    """Return for each output and each check its verdict at the batch size where it is worst."""
    names = output_names(spec)
    if len(sources) < len(names) or len(model.outputs) < len(names):
        raise DataValidationError(f"{len(names)} outputs are known, and the graph gives {len(model.outputs)}")
    by_batch: list[dict[int, list[Verdict]]] = [{} for _ in names]
    for size in batches:
        count = len(inputs) if size == batches[-1] else min(len(inputs), 4 * size)
        given = model.run_all(inputs[:count], size, model.outputs[: len(names)])
        for number, outputs in enumerate(given):
            checks = checks_of(spec, arguments, number)
            by_batch[number][size] = judge_all(checks, sources[number][:count], outputs, pictures[:count])
    verdicts = worst_verdicts(by_batch[0])
    for name, found in zip(names[1:], by_batch[1:], strict=True):
        verdicts += of_output(name, worst_verdicts(found))
    return verdicts


def of_another_size(inputs: Pictures) -> Pictures:
    """Return inputs [n, C, ...] whose sizes behind the channels are other ones, half as large again: wrapped around."""
    widths = [(0, 0), (0, 0), *((0, size // 2 // STEP * STEP or STEP) for size in inputs.shape[2:])]
    return np.pad(inputs, widths, mode="wrap")


def of_batches(verdicts: list[Verdict]) -> list[Verdict]:
    """Return the verdicts on a graph of one's own: there is nothing to compare it with but itself, input by input."""
    return [
        verdict
        if verdict.name.endswith("finite")
        else verdict.model_copy(
            update={"name": f"batches_{verdict.name}", "sentence": f"several at once as one by one? {verdict.sentence}"}
        )
        for verdict in verdicts
    ]


def latencies(path: Path, inputs: Pictures, batches: list[int]) -> list[Latency]:
    """Time the graph as it is served: on one thread."""
    return measure_latencies(OnnxModel(path), inputs, batches) if batches else []


def peak_memory_mib() -> float:
    """Return the most memory that this process, or one that it has started, has held at once, MiB."""
    return round(max(resource.getrusage(who).ru_maxrss for who in (SELF, CHILDREN)) / 1024, 1)


def source_outputs(script: Path, inputs: Pictures, spec: Spec) -> list[Pictures]:
    """Return what the graph should give for `inputs` [n, ...], by the TorchScript model `script`: a list of outputs.

    Raises:
        DataValidationError: the file is not a TorchScript model, or the model itself gives NaN.
    """
    with stored(inputs) as path:
        how = {"script": script, "spec": spec, "inputs": path}
        with runner.run(answer_experiment, how, reads=[script, path]) as done:
            return outputs_of(done, len(inputs))


def _picture(verdicts: list[Verdict], inputs: Pictures, pictures: list[str]) -> Pictures:
    names = [v.worst_picture for v in verdicts if not v.passed and v.worst_picture in pictures]
    picture: Pictures = inputs[pictures.index(str(names[0])) if names else 0]
    return picture


def locate(bottle: Bottle, experiment: Experiment, spec: Spec, picture: Pictures, how: Arguments) -> str:
    """Say where the checkpoint's model and the graph part, for one picture [C, H, W]."""
    if isinstance(spec, DetectorSpec) or not bottle.exists(experiment.best_checkpoint):
        return "not known, since there is no checkpoint to look into"
    source, graph = source_file(bottle, experiment, spec), bottle.local(experiment.onnx)
    with stored(picture) as path:
        options = {"source": source, "spec": spec, "graph": graph, "picture": path, "atol": how.atol, "rtol": how.rtol}
        with runner.run(sandboxed_locate, options, reads=[source.path, graph, path], modules=source.modules) as done:
            return done.value


def fp16_risks(graph: Any, inputs: Pictures, folder: Path | None = None) -> list[FP16Risk]:
    """Return the nodes whose output, on real inputs, comes near what half precision can hold, or beyond it.

    Weights outside of the graph are in `folder`.
    """
    return [
        FP16Risk(node=found.node, operator=found.operator, largest=found.largest, overflows=found.largest > FP16_MAX)
        for found in largest_values(graph, inputs, folder)
        if found.largest > FP16_MAX / FP16_HEADROOM
    ]


def write_reference(
    bottle: Bottle, experiment: Experiment, spec: Spec, inputs: Pictures, outputs: list[Pictures], pictures: list[str]
) -> None:
    """Write the inputs and the source's outputs of the first pictures, for the smoke test of what is deployed."""
    count = fitting(REFERENCE_PICTURES, inputs.shape[1:], REFERENCE_MEMORY)
    further = zip(output_names(spec)[1:], outputs[1:], strict=False)  # a segmenter's are judged by its masks
    with tempfile.TemporaryDirectory(prefix="nightshift-verify-") as folder:
        path = Path(folder) / "verified.npz"
        arrays: dict[str, Any] = {f"{FURTHER}{name}": values[:count] for name, values in further}
        names, kind = np.array(pictures[:count]), np.array(judged_as(spec))
        np.savez(path, inputs=inputs[:count], outputs=outputs[0][:count], pictures=names, output=kind, **arrays)
        bottle.put(experiment.reference, path)


def report(verification: Verification, context: job.Context) -> None:
    """Say what was found in the log, and in MLflow where the job is tracked."""
    for verdict in verification.verdicts:
        logger.log(logging.INFO if verdict.passed else logging.ERROR, "%s: %s", verdict.name, verdict.sentence)
    proven = str(verification.verified_against).startswith((REFERENCE, TRAINED_HERE))
    logger.log(
        logging.INFO if proven else logging.WARNING,
        "verified against %s", verification.verified_against,
    )  # fmt: skip
    for risk in verification.fp16_risks:
        logger.warning("half precision %s: %s", "would overflow" if risk.overflows else "is close to its end", risk)
    for latency in verification.latency_ms:
        logger.info("batch %(batch)d: median %(median).2f ms, p90 %(p90).2f ms, p99 %(p99).2f ms", latency)
    if context.is_tracked:
        metrics = {f"verify.{verdict.name}": verdict.value for verdict in verification.verdicts}
        for latency in verification.latency_ms:
            metrics[f"latency_ms.batch_{latency['batch']}.p99"] = latency["p99"]
        context.tracking.metrics({key: value for key, value in metrics.items() if np.isfinite(value)})
        context.tracking.dictionary(verification.model_dump(), "verification.json")
        context.tracking.tags({"verified_against": verification.verified_against})


if __name__ == "__main__":
    job.main(Arguments, run)
