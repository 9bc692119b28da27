"""Running trtexec: its log streamed and kept, its outputs and times read."""

from __future__ import annotations

import json
import logging
import os
import re
import subprocess
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from conversion_jobs.onnx.graph import GraphInterface
from conversion_jobs.onnx.session import Latency
from conversion_jobs.tensorrt.trtexec_command import run_command, run_shapes
from conversion_jobs.tensorrt.trtexec_log import DIFFERS, Failure, failure
from conversion_jobs.tensorrt.version import TEST_DOUBLE, TensorRTVersion, find_version
from jobkit.errors import ConfigurationError, DataValidationError, JobError, TransientError

logger = logging.getLogger("trtexec")
Array = NDArray[np.float32]
_ERRORS: dict[str, type[JobError]] = {
    "configuration": ConfigurationError,
    "data": DataValidationError,
    "transient": TransientError,
}
_NOT_JSON = re.compile(r"(?<=[\s,\[:])(-?)(nan|inf)(?:inity)?\b", re.IGNORECASE)


@dataclass(frozen=True)
class Trtexec:
    """The program: where it is, which version it is, the file that keeps its log, and whether it only pretends.

    `version_compatible`: the plans that it loads bring their own runtime along.
    """

    path: str
    version: TensorRTVersion
    log: Path
    timeout: float = 3600.0
    is_test_double: bool = False
    version_compatible: bool = False

    def run(self, command: Sequence[str], *, loads: bool = False, compares: bool = False) -> str:
        """Run a command of `command`; return its log. A run that `compares` outputs may find that they differ.

        Raises:
            ConfigurationError, DataValidationError, TransientError: it failed; the message has the likely cause
                and the next step.
        """
        text, code = execute(command, self.log, self.timeout)
        differs = compares and code == 1 and DIFFERS in text
        if not differs and (found := failure(text, code, loads=loads)):
            raise error_of(found)
        return text


def error_of(found: Failure) -> JobError:
    """Return the error of the contract for a failure."""
    return _ERRORS[found.kind](str(found))


def probe_trtexec(path: str, log: Path, timeout: float) -> Trtexec:
    """Return trtexec with its version, which its banner says.

    Raises:
        ConfigurationError: it is not there, or says no version.
    """
    text, _ = execute([path, "--help"], log, 120.0, quiet=True)  # 8.x ends with 1 here, 10.x with 0
    version = find_version(text)
    if version is None:
        raise ConfigurationError(f"{path} does not say which TensorRT it is; it printed: {text[:300]!r}")
    if is_test_double := TEST_DOUBLE in text:
        logger.warning("%s is a %s: what it makes is no plan, and is not published", path, TEST_DOUBLE)
    return Trtexec(path, version, log, timeout, is_test_double)


def execute(command: Sequence[str], log: Path, timeout: float, *, quiet: bool = False) -> tuple[str, int]:
    """Run `command`, each of its lines to the job's log and to `log`; return the lines and the exit code.

    Raises:
        ConfigurationError: the program is not there.
        TransientError: it did not end within `timeout` seconds and was killed.
    """
    environment = {**os.environ, "PYTHONUNBUFFERED": "1"}
    try:
        process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, env=environment,
            text=True, errors="replace",  # in the job's process group: what ends the job ends it too
        )  # fmt: skip
    except OSError as error:
        raise ConfigurationError(f"{command[0]} cannot be run: {error}; use the TensorRT image") from error
    expired = threading.Event()

    def expire() -> None:
        expired.set()
        process.kill()

    timer = threading.Timer(timeout, expire)
    timer.start()
    lines: list[str] = []
    try:
        with log.open("a") as kept:
            kept.write(f"$ {' '.join(command)}\n")
            for line in process.stdout or ():
                lines.append(line)
                kept.write(line)
                if not quiet:
                    logger.log(logging.ERROR if "[E]" in line else logging.INFO, "%s", line.rstrip())
        code = process.wait()
    finally:
        timer.cancel()
        process.kill()
    if expired.is_set():
        raise TransientError(f"{command[0]} did not end in {timeout:.0f} s and was killed; its log: {log}")
    return "".join(lines), code


def run_plan(
    trtexec: Trtexec, plan: Path, graph: GraphInterface, inputs: Array, scratch: Path, seconds: float = 0.0,
    profile: int | None = None,
) -> tuple[list[Array], Latency]:  # fmt: skip
    """Run a plan on one batch, `inputs` [n, ...]; return its outputs and the times of one call.

    `profile` is the optimization profile that runs it, of a plan that has several.

    Raises:
        DataValidationError: the plan does not load, or its output is not readable.
    """
    source, outputs, times = scratch / "input.bin", scratch / "outputs.json", scratch / "times.json"
    for left in (outputs, times):
        left.unlink(missing_ok=True)
    np.ascontiguousarray(inputs, "<f4").tofile(source)
    shapes = run_shapes(graph, inputs.shape)
    command = run_command(
        trtexec.path, trtexec.version, plan, shapes, {graph.inputs[0].name: source}, outputs=outputs, times=times,
        seconds=seconds, profile=profile, version_compatible=trtexec.version_compatible,
    )  # fmt: skip
    trtexec.run(command, loads=True)
    return [read_output(outputs, tensor.name) for tensor in graph.outputs], read_times(times, len(inputs))


def read_output(path: Path, name: str) -> Array:
    """Return an output that `--exportOutput` wrote; NaN and infinity, which are no JSON, are read too.

    Raises:
        DataValidationError: the file or the output in it is missing or damaged.
    """
    try:
        text = _NOT_JSON.sub(lambda m: f"{m[1]}Infinity" if m[2].lower() == "inf" else "NaN", path.read_text())
        entry = next(entry for entry in json.loads(text) if entry["name"] == name)
        shape = [int(size) for size in str(entry["dimensions"]).split("x")]
        return np.asarray(entry["values"], np.float32).reshape(shape)
    except (OSError, ValueError, KeyError, TypeError, StopIteration) as error:
        raise DataValidationError(
            f"{path.name} of trtexec has no output {name!r} that can be read: {error!r}"
        ) from error


def read_times(path: Path, batch: int) -> Latency:
    """Return the percentiles of `latencyMs` in what `--exportTimes` wrote (warm-ups are not in it).

    Raises:
        DataValidationError: the file is missing, damaged or empty.
    """
    try:
        times = [float(entry["latencyMs"]) for entry in json.loads(path.read_text())]
        median, p90, p99 = np.percentile(times, [50, 90, 99])
    except (OSError, ValueError, KeyError, TypeError, IndexError) as error:
        raise DataValidationError(f"{path.name} of trtexec has no times that can be read: {error!r}") from error
    return Latency(batch=batch, median=round(median, 3), p90=round(p90, 3), p99=round(p99, 3))
