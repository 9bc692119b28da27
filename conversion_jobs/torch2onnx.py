"""Weights at hand to ONNX, from files to a file: `python -m conversion_jobs.torch2onnx --family vit --weights W ...`.

For people without Airflow and without a bottle. `test_onnx` then compares the file with its weights.
"""

from __future__ import annotations

import logging
import shutil
import sys
from pathlib import Path
from typing import Any

from pydantic import Field

from conversion_jobs.families.archives import WeightsFile, opened_weights
from conversion_jobs.onnx.exported import Exported
from conversion_jobs.onnx.graph import compact_json, interface, read_graph
from conversion_jobs.sandboxed.exporting import GRAPH, export_detector_file, export_file
from jobkit import job
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.files import atomic_file, sha256_of
from jobkit.model_spec import Preprocessing, per_channel
from jobkit.sandbox import runner
from jobkit.sandbox.runner import Done
from nightshift_common.options.conversion import ExportOptions
from nightshift_common.options.weights import SourceOptions

logger = logging.getLogger("conversion_jobs.torch2onnx")


class Arguments(job.Arguments, SourceOptions, ExportOptions):
    """Export weights of any family to one ONNX file with a free batch, which says what it was made from."""

    weights: Path = Field(description="the file of weights")
    output: Path = Field(description="the ONNX file to write")
    labels: Path | None = Field(None, description="text file with one class name a line")
    mean: tuple[float, ...] = Field((0.485, 0.456, 0.406), description="per channel, of values in 0..1 (ImageNet)")
    std: tuple[float, ...] = Field((0.229, 0.224, 0.225), description="per channel, of values in 0..1 (ImageNet)")
    normalize: bool = Field(False, description="normalize inside the graph: it then takes pictures with values 0..255")


class Result(job.Result):
    """The file."""

    onnx: Path
    sha256: str
    made: Exported = Field(description="the exporter that made it, its opset, and why the other exporter was refused")


def run(arguments: Arguments, _context: job.Context) -> Result:
    """Load, export, check, put the file in its place."""
    if not arguments.weights.is_file():
        raise DataValidationError(f"{arguments.weights} is not there")
    if arguments.family == "onnx":
        raise ConfigurationError(f"{arguments.weights} is ONNX already: test_onnx checks it, import_weights serves it")
    if arguments.input_shape is not None and arguments.family != "head" and is_picture(arguments.input_shape):
        arguments.take_pictures()
    with opened_weights(arguments.weights.absolute()) as found:
        return convert(arguments, found)


def convert(arguments: Arguments, given: WeightsFile) -> Result:
    """Export the weights, which may have come in an archive."""
    weights = given.path
    metadata = {
        "source": arguments.source.model_dump_json(),
        "weights": sha256_of(arguments.weights),
        "normalized": str(arguments.normalize and arguments.family != "ultralytics").lower(),
    }
    asked = {"opset": arguments.opset, "exporter": arguments.exporter}
    how: dict[str, Any] = {"weights": weights, "options": arguments.source, **asked}
    if arguments.family == "ultralytics":
        if arguments.dynamic_size:
            raise ConfigurationError("a detector's graph is made for one size of pictures: leave --dynamic_size out")
        with runner.run(export_detector_file, how | {"metadata": metadata}, reads=[weights]) as detector:
            put_graph(detector, arguments.output)
            made = detector.value.made
        return Result(onnx=arguments.output, sha256=sha256_of(arguments.output), made=made)
    takes_pictures = arguments.family != "head" and arguments.input_shape is None
    prepared, inside = preprocessing(arguments), None
    if arguments.normalize:
        if not takes_pictures:
            raise ConfigurationError("--normalize is for models of pictures")
        inside = prepared
        raw = {"mean": (0.0,) * prepared.channels, "std": (1 / 255,) * prepared.channels}
        prepared = prepared.model_copy(update=raw)
    metadata["labels"] = compact_json(read_labels(arguments.labels) or given.labels)
    if takes_pictures:
        metadata["preprocessing"] = compact_json(prepared.model_dump())
        metadata["inside"] = compact_json(inside.model_dump()) if inside else ""
    how |= {"inside": inside, "metadata": metadata, "dynamic": arguments.dynamic_size}
    with runner.run(export_file, how, reads=[weights], modules=arguments.modules) as done:
        for note in done.value.notes:
            logger.warning("%s: %s", arguments.weights.name, note)
        put_graph(done, arguments.output)
        done.value.made.report(logger, arguments.opset)
        return Result(onnx=arguments.output, sha256=sha256_of(arguments.output), made=done.value.made)


def put_graph(done: Done[Any], output: Path) -> None:
    """Put the graph that the sandbox left in its place, if it is one."""
    path = done.file(GRAPH)
    found = interface(read_graph(path))
    with atomic_file(output.absolute()) as temporary:
        shutil.copyfile(path, temporary)
    logger.info("%s: %s -> %s", output, found.inputs[0], found.outputs[0])


def preprocessing(arguments: Arguments) -> Preprocessing:
    """Return how a picture becomes the model's input.

    Raises:
        ConfigurationError: mean and std are not one value a channel.
    """
    count = arguments.channels
    mean, std = per_channel(arguments.mean, count), per_channel(arguments.std, count)
    if not len(mean) == len(std) == count:
        raise ConfigurationError(f"--mean and --std have {len(mean)} and {len(std)} values for {count} channels")
    height, width = arguments.img_size
    return Preprocessing(height=height, width=width, channels=count, mean=mean, std=std)


def is_picture(shape: tuple[int, ...]) -> bool:
    """Whether a shape is one of pictures: [1 or 3, height, width]."""
    return len(shape) == 3 and shape[0] in (1, 3)


def read_labels(path: Path | None) -> list[str]:
    """Return the class names in a text file, one a line."""
    return [] if path is None else [line.strip() for line in path.read_text().splitlines() if line.strip()]


def legacy_command_line(argv: list[str]) -> list[str]:
    """Return a command line of the earlier scripts in the form that pydantic reads.

    `--img-size 224 224` becomes `--img_size=[224,224]`, `--input-shape 1 240 480 480` becomes
    `--input_shape=[1,240,480,480]`; a `-` in a name may stand for `_`.
    """
    line: list[str] = []
    shape: list[str] | None = None
    for token in argv:
        if shape is not None and token.isdecimal():
            shape.append(token)
            line[-1] = f"--input_shape=[{','.join(shape)}]"
            continue
        shape = None
        if token.startswith("--"):
            name, equals, value = token.partition("=")
            line.append("--" + name[2:].replace("-", "_") + equals + value)
            shape = [] if line[-1] == "--input_shape" else None
        elif len(line) > 1 and line[-2] == "--img_size" and token.isdecimal() and line[-1].isdecimal():
            height = line.pop()
            line[-1] = f"--img_size=[{height},{token}]"
        else:
            line.append(token)
    return line


if __name__ == "__main__":
    sys.argv[1:] = legacy_command_line(sys.argv[1:])
    job.main(Arguments, run)
