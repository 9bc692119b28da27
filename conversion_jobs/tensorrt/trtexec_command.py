"""trtexec's command lines, which differ between 8.6, 10.x and 11.x."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from conversion_jobs.onnx.graph import GraphInterface, TensorInterface
from conversion_jobs.tensorrt.version import MAJORS, OLDEST, TensorRTVersion
from jobkit.errors import ConfigurationError
from nightshift_common.options.conversion import Precision

PROFILES_FROM = 10  # the major version whose trtexec has --profile
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
    """The batch sizes of an optimization profile: smallest, the one to be fastest at, largest."""

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

    def __iter__(self) -> Iterator[int]:
        """Yield smallest, best, largest."""
        return iter((self.smallest, self.best, self.largest))


Sizes = tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]
"""Of an input's free axes behind the batch: smallest, best, largest."""


def parse_profiles(text: str) -> list[Batches]:
    """Return the profiles of `1-1-1,8-16-32`.

    Raises:
        ConfigurationError: one is not in order.
    """
    return [Batches(*map(int, part.split("-"))) for part in text.split(",") if part]


def parse_sizes(text: str) -> Sizes | None:
    """Return the sizes of `160x160,224x224,448x448`; None of an empty text.

    Raises:
        ConfigurationError: they are not in order.
    """
    if not text:
        return None
    smallest, best, largest = (tuple(map(int, part.split("x"))) for part in text.split(","))
    if not len(smallest) == len(best) == len(largest) or not all(
        1 <= low <= middle <= high for low, middle, high in zip(smallest, best, largest, strict=True)
    ):
        raise ConfigurationError(f"--size_profile {text} is not in order: smallest, best and largest of the same axes")
    return smallest, best, largest


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
    profile: int | None = None,
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
    if profile is not None:
        command.append(f"--useProfile={profile}")
    command += ["--warmUp=200", f"--duration={seconds:g}", "--iterations=10"]
    if version_compatible:
        command.append("--versionCompatible")  # lets the plan's own runtime be loaded: it is a program
    if version.major >= 11:
        command += ["--includeDataTransfers", "--noSpinWait", "--noCudaGraph"]
    return command


def profile_shapes(
    version: TensorRTVersion, graph: GraphInterface, profiles: Sequence[Batches], sizes: Sizes | None = None
) -> list[str]:
    """Return the options for the shapes of a graph with free ones; none for a graph whose shapes are all fixed.

    Raises:
        ConfigurationError: an input has free sizes beside its batch, and `sizes` are not for as many; or several
            profiles, and this version builds one.
    """
    if all(None not in tensor.shape for tensor in graph.inputs):
        return []
    if len(profiles) > 1 and version.major < PROFILES_FROM:
        raise ConfigurationError(
            f"trtexec of TensorRT {version} builds one optimization profile, from {PROFILES_FROM}.0 on several"
        )
    options = []
    for index, batches in enumerate(profiles):
        options += [f"--profile={index}"] if len(profiles) > 1 else []  # its shapes stand right behind it
        for number, (name, batch) in enumerate(zip(("min", "opt", "max"), batches, strict=True)):
            free = None if sizes is None else sizes[number]
            options.append(f"--{name}Shapes={_shapes(graph.inputs, batch, free)}")
    return options


def run_shapes(graph: GraphInterface, shape: Sequence[int]) -> list[str]:
    """Return the option for one run on inputs of `shape` [n, ...]; none for a graph whose shapes are all fixed."""
    if all(None not in tensor.shape for tensor in graph.inputs):
        return []
    (entry,) = graph.inputs
    free = tuple(size for own, size in zip(entry.shape[1:], shape[1:], strict=True) if own is None)
    return [f"--shapes={_shapes(graph.inputs, shape[0], free)}"]


def _shapes(inputs: Sequence[TensorInterface], batch: int, free: tuple[int, ...] | None) -> str:
    parts = []
    for tensor in inputs:
        count = tensor.shape[1:].count(None)
        if count != len(free or ()):
            raise ConfigurationError(
                f"the input {tensor} has {count} free sizes beside its batch, and --size_profile has "
                f"{len(free or ())}: a plan has to be told which sizes it is for"
            )
        left = iter(free or ())
        sizes = [next(left) if size is None else size for size in tensor.shape[1:]]
        first = batch if tensor.shape[0] is None else tensor.shape[0]
        parts.append(f"{tensor.name}:{'x'.join(map(str, (first, *sizes)))}")
    return ",".join(parts)
