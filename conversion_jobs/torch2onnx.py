"""Weights at hand to ONNX, from files to a file: `python -m conversion_jobs.torch2onnx --family vit --weights W ...`.

For people without Airflow and without a bottle. `test_onnx` then compares the file with its weights.
"""

from __future__ import annotations

import logging
import shutil
import sys
import tempfile
from pathlib import Path

from pydantic import Field

from conversion_jobs.export_onnx import export_module
from conversion_jobs.families.sources import load_source
from conversion_jobs.onnx.graph import compact_json
from jobkit import job
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.files import atomic_file, sha256_of
from jobkit.model_spec import Preprocessing
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


def run(arguments: Arguments, _context: job.Context) -> Result:
    """Load, export, check, put the file in its place."""
    from conversion_jobs.onnx.normalization import normalized

    if not arguments.weights.is_file():
        raise DataValidationError(f"{arguments.weights} is not there")
    if arguments.family == "ultralytics":
        from conversion_jobs.detection.file_conversion import write_detector_file

        write_detector_file(arguments.weights, arguments, arguments.output, arguments.opset)
        return Result(onnx=arguments.output, sha256=sha256_of(arguments.output))
    source = load_source(arguments.weights, arguments)
    module, how, inside = source.module, preprocessing(arguments), None
    if arguments.normalize:
        if len(source.shape) != 3:
            raise ConfigurationError("--normalize is for models of pictures: a head takes embeddings")
        module, inside = normalized(module, how), how
        how = how.model_copy(update={"mean": (0.0,) * how.channels, "std": (1 / 255,) * how.channels})
    metadata = {
        "source": arguments.model_dump_json(include=set(SourceOptions.model_fields)),
        "weights": sha256_of(arguments.weights),
        "normalized": str(arguments.normalize).lower(),
        "labels": compact_json(read_labels(arguments.labels)),
    }
    if len(source.shape) == 3:
        metadata["preprocessing"] = compact_json(how.model_dump())
        metadata["inside"] = compact_json(inside.model_dump()) if inside else ""
    with atomic_file(arguments.output.absolute()) as temporary, tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        found = export_module(
            module, source.shape, path, output=source.output, opset=arguments.opset, metadata=metadata
        )
        shutil.copyfile(path, temporary)
    logger.info("%s: %s -> %s", arguments.output, found.inputs[0], found.outputs[0])
    return Result(onnx=arguments.output, sha256=sha256_of(arguments.output))


def preprocessing(arguments: Arguments) -> Preprocessing:
    """Return how a picture becomes the model's input.

    Raises:
        ConfigurationError: mean and std are not one value a channel.
    """
    count = arguments.channels
    mean, std = arguments.mean, arguments.std
    if count == 1 and len(mean) == len(std) == 3:
        mean, std = (sum(mean) / 3,), (sum(std) / 3,)  # gray: the mean over the colors
    if not len(mean) == len(std) == count:
        raise ConfigurationError(f"--mean and --std have {len(mean)} and {len(std)} values for {count} channels")
    height, width = arguments.img_size
    return Preprocessing(height=height, width=width, channels=count, mean=mean, std=std)


def read_labels(path: Path | None) -> list[str]:
    """Return the class names in a text file, one a line."""
    return [] if path is None else [line.strip() for line in path.read_text().splitlines() if line.strip()]


def legacy_command_line(argv: list[str]) -> list[str]:
    """Return a command line of the earlier scripts in the form that pydantic reads.

    `--img-size 224 224` becomes `--img_size=[224,224]`; a `-` in a name may stand for `_`.
    """
    line: list[str] = []
    for token in argv:
        if token.startswith("--"):
            name, equals, value = token.partition("=")
            line.append("--" + name[2:].replace("-", "_") + equals + value)
        elif len(line) > 1 and line[-2] == "--img_size" and token.isdecimal() and line[-1].isdecimal():
            height = line.pop()
            line[-1] = f"--img_size=[{height},{token}]"
        else:
            line.append(token)
    return line


if __name__ == "__main__":
    sys.argv[1:] = legacy_command_line(sys.argv[1:])
    job.main(Arguments, run)
