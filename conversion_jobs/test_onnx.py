"""Compare an ONNX file of `torch2onnx` with its weights on real inputs: `python -m conversion_jobs.test_onnx --onnx M`.

The earlier script compared outputs of different random inputs; this one gives both models the same real ones.
"""

from __future__ import annotations

import json
import logging
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from conversion_jobs.families.archives import opened_weights
from conversion_jobs.onnx.graph import GraphInterface, interface, read_graph
from conversion_jobs.onnx.session import OnnxModel, measure_latency
from conversion_jobs.sandboxed.answering import answer_file, outputs_of, stored
from conversion_jobs.torch2onnx import legacy_command_line
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
from conversion_jobs.verification.expected import OUR_READING, REFERENCE, judge_expected, read_expected
from jobkit import job
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.files import sha256_of
from jobkit.model_spec import Preprocessing, prepare, renamed
from jobkit.sandbox import runner
from nightshift_common.options.conversion import VerifyOptions
from nightshift_common.options.weights import SourceOptions
from nightshift_common.picture_files import SUFFIXES

__test__ = False  # a command, not a test: its name is that of the earlier script
logger = logging.getLogger("conversion_jobs.test_onnx")
Inputs = NDArray[np.float32]


class Arguments(job.Arguments, VerifyOptions):
    """Check an ONNX file; with --weights and --inputs, compare it with the model that it was exported from."""

    onnx: Path = Field(description="the ONNX file, as torch2onnx wrote it")
    weights: Path | None = Field(None, description="the weights that it was exported from")
    inputs: Path | None = Field(None, description="folder of pictures; for a head, .npy of embeddings [n, features]")
    expected: Path | None = Field(
        None,
        description="what your own code gives for all of --inputs, .npy in their order, or .npz of outputs and inputs",
    )


class Result(job.Result):
    """What was found; `compared` is 0 where no weights or no inputs were given."""

    compared: int
    verdicts: list[Verdict]
    verified_against: str | None = Field(description="reference outputs, or our reading of the weights; None: nothing")
    latency_ms: dict[str, float]


def run(arguments: Arguments, _context: job.Context) -> Result:
    """Check the file, run it at several batch sizes, compare."""
    found = interface(read_graph(arguments.onnx))
    logger.info("%s: %s -> %s, opset %d", arguments.onnx, found.inputs[0], found.outputs[0], found.opset)
    model = OnnxModel(arguments.onnx)
    checks: list[Check] = [Finite()]
    compared: list[Verdict] = []
    if arguments.inputs is None or arguments.weights is None:
        logger.warning("nothing is compared: that needs --weights and --inputs")
        inputs, names = np.zeros((2, *_sizes(found)), np.float32), ["zeros", "zeros"]
        sources = model.run_all(inputs, 2)
    elif found.outputs[0].name in ("raw", "detections"):
        from conversion_jobs.detection.file_conversion import compare_detector_file

        inputs, names = read_inputs(arguments.inputs, found, arguments.samples)
        compared = compare_detector_file(
            arguments.weights.absolute(), source_options(arguments.weights, found), model, inputs, names,
            arguments.atol, arguments.rtol,
        )  # fmt: skip
    else:
        inputs, names = read_inputs(arguments.inputs, found, arguments.samples)
        sources, checks = source_outputs(arguments.weights.absolute(), found, inputs), all_checks(arguments, found)
    sizes = [model.batch] if model.batch else sorted({1, min(2, len(inputs)), len(inputs)})
    verdicts = compared or judge_outputs(model, sources, checks, inputs, names, sizes)
    against = OUR_READING if arguments.weights and arguments.inputs else None
    if arguments.expected is not None:
        against = REFERENCE
        verdicts += as_expected(arguments, found, model)
    for verdict in verdicts:
        logger.log(logging.INFO if verdict.passed else logging.ERROR, "%s: %s", verdict.name, verdict.sentence)
    failed = [f"{verdict.sentence} (worst: {verdict.worst_picture})" for verdict in verdicts if not verdict.passed]
    if failed:
        wanted = arguments.weights or arguments.expected
        raise DataValidationError(f"{arguments.onnx} is not the model of {wanted}: {'; '.join(failed)}")
    logger.log(logging.INFO if against == REFERENCE else logging.WARNING, "verified against %s", against or "nothing")
    latency = measure_latency(model, inputs, 1)
    logger.info("one input: median %.2f ms, p90 %.2f ms, p99 %.2f ms", latency.median, latency.p90, latency.p99)
    return Result(
        compared=len(inputs) if arguments.weights and arguments.inputs else 0,
        verdicts=verdicts,
        verified_against=against,
        latency_ms={"median": latency.median, "p90": latency.p90, "p99": latency.p99},
    )


def judge_outputs(
    model: OnnxModel, sources: list[Inputs], checks: list[Check], inputs: Inputs, names: list[str], sizes: list[int]
) -> list[Verdict]:
    """Return for each output and check its verdict at the batch size where it is worst; classes are of the first.

    Raises:
        DataValidationError: the weights give another number of outputs than the graph.
    """
    given = {size: model.run_all(inputs, size) for size in sizes}
    if len(sources) != len(model.outputs):
        raise DataValidationError(f"the weights give {len(sources)} outputs, the graph {len(model.outputs)}")
    verdicts: list[Verdict] = []
    for number, (name, source) in enumerate(zip(model.outputs, sources, strict=True)):
        of_one = [check for check in checks if not number or not isinstance(check, Top1Agreement | LabelAgreement)]
        found = worst_verdicts(
            {size: judge_all(of_one, source, outputs[number], names) for size, outputs in given.items()}
        )
        verdicts += of_output(name, found) if number else found
    return verdicts


def as_expected(arguments: Arguments, found: GraphInterface, model: OnnxModel) -> list[Verdict]:
    """Return the verdicts on the graph's outputs by the reference outputs of the users' own code.

    Raises:
        ConfigurationError: they came without inputs, and there are no --inputs.
        DataValidationError: they are of other inputs.
    """
    path = Path(str(arguments.expected))
    names = [] if arguments.inputs is None else input_names(arguments.inputs)
    further = [tensor.name for tensor in found.outputs[1:]]
    expected = read_expected(path, names, further) if names or path.suffix == ".npz" else None
    if expected is None:
        raise ConfigurationError("--expected needs --inputs: of what are these the outputs?")
    if expected.inputs is not None:
        inputs = expected.inputs[: arguments.samples]
    else:
        inputs, _ = read_inputs(Path(str(arguments.inputs)), found, arguments.samples)
    top1 = arguments.top1_agreement if found.judged_as in ("logits", "probabilities") else None
    count = len(inputs)
    outputs, of_these = model.run_all(inputs, 8), expected.names[:count]
    verdicts = judge_expected(expected.outputs[:count], outputs[0], of_these, top1)
    for name, values in expected.further.items():
        verdicts += of_output(name, judge_expected(values[:count], outputs[model.outputs.index(name)], of_these, None))
    return verdicts


def input_names(path: Path) -> list[str]:
    """Return the names of all inputs in a folder of pictures or an .npy file, in the order in which they are read."""
    if path.suffix == ".npy":
        return [f"{path.name}[{index}]" for index in range(len(np.load(path, allow_pickle=False, mmap_mode="r")))]
    return [str(file.relative_to(path)) for file in sorted(path.rglob("*")) if file.suffix.lower() in SUFFIXES]


def all_checks(arguments: Arguments, found: GraphInterface) -> list[Check]:
    """Return the thresholds; the first class is compared where there are classes."""
    checks: list[Check] = [Finite(), Close(arguments.atol, arguments.rtol), Cosine(0.9999)]
    if found.outputs[0].name == "embedding":
        return checks
    same = LabelAgreement if found.judged_as == "multi_label" else Top1Agreement
    return [*checks, same(arguments.top1_agreement)]


def source_outputs(weights: Path, found: GraphInterface, inputs: Inputs) -> list[Inputs]:
    """Return each output that the model of `weights` gives for `inputs`, which are prepared as the graph wants them.

    Raises:
        DataValidationError: the file was exported from other weights.
        ConfigurationError: the file does not say how its model is built.
    """
    options, inside = source_options(weights, found), None
    # "normalised": files of earlier versions
    if found.metadata.get("normalized", found.metadata.get("normalised")) == "true":
        inside = Preprocessing.model_validate_json(found.metadata["inside"])
    with stored(inputs) as path, opened_weights(weights) as given:
        how = {"weights": given.path, "options": options, "inside": inside, "inputs": path}
        with runner.run(answer_file, how, reads=[given.path, path], modules=options.modules) as done:
            return outputs_of(done, len(inputs))


def source_options(weights: Path, found: GraphInterface) -> SourceOptions:
    """Return the options with which the file was exported, if it was from `weights`; errors as `source_outputs`."""
    if "source" not in found.metadata:
        raise ConfigurationError("the ONNX file does not say what it was exported from: export it with torch2onnx")
    if (actual := sha256_of(weights)) != found.metadata["weights"]:
        raise DataValidationError(f"{weights} is {actual}, the file was exported from {found.metadata['weights']}")
    return SourceOptions.model_validate(renamed(json.loads(found.metadata["source"])))


def read_inputs(path: Path, found: GraphInterface, count: int) -> tuple[Inputs, list[str]]:
    """Return real inputs for a graph, and their names.

    Raises:
        DataValidationError: there are none, or they have another shape.
    """
    if path.suffix == ".npy":
        try:
            values = np.load(path, allow_pickle=False).astype(np.float32)[:count]
        except (OSError, ValueError) as error:
            raise DataValidationError(f"{path} is no array that can be read: {error}") from error
        names = [f"{path.name}[{index}]" for index in range(len(values))]
    else:
        if "preprocessing" not in found.metadata:
            raise ConfigurationError("the graph does not take pictures: give --inputs an .npy file")
        how = Preprocessing.model_validate_json(found.metadata["preprocessing"])
        files = sorted(file for file in path.rglob("*") if file.suffix.lower() in SUFFIXES)[:count]
        if not files:
            raise DataValidationError(f"{path} has no pictures ({', '.join(SUFFIXES)})")
        values = np.stack([prepare(file, how) for file in files])
        names = [str(file.relative_to(path)) for file in files]
    declared = found.inputs[0].shape[1:]
    fits = len(declared) == values.ndim - 1 and all(
        own in (None, size) for own, size in zip(declared, values.shape[1:], strict=True)
    )
    if not fits or not len(values):
        raise DataValidationError(f"{path} holds inputs {list(values.shape)}, the graph takes {found.inputs[0]}")
    return values, names


def _sizes(found: GraphInterface) -> tuple[int, ...]:
    """Return sizes of one input; those that are free as the pictures are prepared, else 1."""
    shape, prepared = found.inputs[0].shape[1:], (1,) * (len(found.inputs[0].shape) - 1)
    if "preprocessing" in found.metadata:
        how = Preprocessing.model_validate_json(found.metadata["preprocessing"])
        prepared = (how.channels, how.height, how.width)
    return tuple(own or size for own, size in zip(shape, prepared, strict=True))


if __name__ == "__main__":
    sys.argv[1:] = legacy_command_line(sys.argv[1:])
    job.main(Arguments, run)
