"""trtexec's command lines, which differ between 8.6, 10.x and 11.x."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from conversion_jobs.onnx.graph import GraphInterface, TensorInterface
from conversion_jobs.tensorrt.version import MAJORS, OLDEST, TensorRTVersion
from jobkit.errors import ConfigurationError
from nightshift_common.options.conversion import Precision

# What only some versions have, by trtexec's name; from its option parsers and NVIDIA's release notes.
FEATURES = {"versionCompatible": (8, 6), "stripWeights": (10, 0), "loadRefOutputs": (11, 1)}


def has_feature(version: TensorRTVersion, name: str) -> bool:
    """Whether this trtexec has the option `--name` of `FEATURES`."""
    return version.release >= FEATURES[name]


def check_feature(version: TensorRTVersion, name: str) -> None:
    """Refuse an option that this version does not have.

    Raises:
        ConfigurationError: with the version that was the first.
    """
    if not has_feature(version, name):
        first = ".".join(map(str, FEATURES[name]))
        raise ConfigurationError(f"TensorRT {version} has no --{name}: {first} was the first with it")


@dataclass(frozen=True)
class Batches:
    """The batch sizes of the one optimization profile: smallest, the one to be fastest at, largest."""

    smallest: int = 1
    best: int = 1
    largest: int = 8

    def __post_init__(self) -> None:
        """Check the order.

        Raises:
            ConfigurationError: it is not 1 <= smallest <= best <= largest.
        """
        if not 1 <= self.smallest <= self.best <= self.largest:
            raise ConfigurationError(
                f"batches {self.smallest}, {self.best}, {self.largest} are not in order: 1 <= min <= opt <= max"
            )


def check_supported(version: TensorRTVersion) -> None:
    """Refuse a version whose command line is not known here.

    Raises:
        ConfigurationError: it is neither 8.6, nor 10.x, nor 11.x.
    """
    if version.release < OLDEST:
        raise ConfigurationError(f"TensorRT {version} is too old: 8.6, 10.x and 11.x are supported")
    if version.major not in MAJORS:
        raise ConfigurationError(f"TensorRT {version} is not known: 8.6, 10.x and 11.x are supported")


def build_command(
    trtexec: str,
    version: TensorRTVersion,
    onnx: Path,
    plan: Path,
    shapes: Sequence[str],
    *,
    precision: Precision,
    fp32_layers: Sequence[str] = (),
    workspace_mib: int,
    timing_cache: Path,
    version_compatible: bool = False,
    strip_weights: bool = False,
) -> list[str]:
    """Return the command that builds a plan without timing it.

    Up to 10.x the precision is a flag. 11.x has none: its networks are strongly typed, so that `onnx` has to be in the
    wanted precision already (`autocast`).
    """
    check_supported(version)
    command = [trtexec, f"--onnx={onnx}", f"--saveEngine={plan}", *shapes, f"--timingCacheFile={timing_cache}"]
    command += [f"--memPoolSize=workspace:{workspace_mib}", "--skipInference"]
    for name, wanted in (("versionCompatible", version_compatible), ("stripWeights", strip_weights)):
        if wanted:
            check_feature(version, name)
            command.append(f"--{name}")
    if version.major < 11:
        command += _precision_flags(precision, fp32_layers)
    return command


def _precision_flags(precision: Precision, fp32_layers: Sequence[str]) -> list[str]:
    if precision == "fp32":
        return []
    if precision == "fp16":
        return ["--fp16"]
    if precision == "int8":  # the graph's Q/DQ nodes say what; the rest may be half
        return ["--int8", "--fp16"]
    layers = ",".join(f"{layer}:fp32" for layer in fp32_layers)
    return ["--fp16", "--precisionConstraints=obey", f"--layerPrecisions={layers}", f"--layerOutputTypes={layers}"]


def load_command(trtexec: str, plan: Path) -> list[str]:
    """Return the command that only loads a plan: it shows whether this TensorRT and this GPU take it."""
    return [trtexec, f"--loadEngine={plan}", "--skipInference"]


def run_command(
    trtexec: str,
    version: TensorRTVersion,
    plan: Path,
    shapes: Sequence[str],
    inputs: dict[str, Path],
    *,
    outputs: Path,
    times: Path,
    seconds: float,
    version_compatible: bool = False,
) -> list[str]:
    """Return the command that runs a plan on given inputs, writes its outputs and times it.

    Transfers are timed, without spinning and without a CUDA graph, whatever the version's defaults: 11.x turned
    all three round, so that its numbers would not compare with those of 10.x.
    """
    check_supported(version)
    loaded = ",".join(f"{name}:{path}" for name, path in inputs.items())
    command = [trtexec, f"--loadEngine={plan}", *shapes, f"--loadInputs={loaded}"]
    command += [f"--exportOutput={outputs}", f"--exportTimes={times}"]
    command += ["--warmUp=200", f"--duration={seconds:g}", "--iterations=10"]
    if version_compatible:
        command.append("--versionCompatible")  # lets the plan's own runtime be loaded: it is a program
    if version.major >= 11:
        command += ["--includeDataTransfers", "--noSpinWait", "--noCudaGraph"]
    return command


def profile_shapes(graph: GraphInterface, batches: Batches) -> list[str]:
    """Return the options for the shapes of a graph with a free batch; none for a graph whose shapes are all fixed.

    Raises:
        ConfigurationError: an input has a free size beside its batch: the plan needs to be told which sizes it is for.
    """
    if all(None not in tensor.shape for tensor in graph.inputs):
        return []
    sizes = {"min": batches.smallest, "opt": batches.best, "max": batches.largest}
    return [f"--{name}Shapes={_shapes(graph.inputs, size)}" for name, size in sizes.items()]


def run_shapes(graph: GraphInterface, batch: int) -> list[str]:
    """Return the option for the shapes of one run; none for a graph whose shapes are all fixed."""
    if all(None not in tensor.shape for tensor in graph.inputs):
        return []
    return [f"--shapes={_shapes(graph.inputs, batch)}"]


def _shapes(inputs: Sequence[TensorInterface], batch: int) -> str:
    parts = []
    for tensor in inputs:
        if None in tensor.shape[1:]:
            raise ConfigurationError(f"the input {tensor} has free sizes beside its batch: export it with fixed ones")
        first = batch if tensor.shape[0] is None else tensor.shape[0]
        parts.append(f"{tensor.name}:{'x'.join(map(str, (first, *tensor.shape[1:])))}")
    return ",".join(parts)
