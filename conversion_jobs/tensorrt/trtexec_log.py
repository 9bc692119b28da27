"""What trtexec's log says: whether it succeeded, and if not, the likely cause and the next step."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

PASSED = "&&&& PASSED TensorRT.trtexec"
LOADED = "Engine deserialized in"

Kind = Literal["configuration", "data", "transient"]


@dataclass(frozen=True)
class Failure:
    """Why a run failed. `configuration` and `data` fail the same way again; `transient` may pass when tried again."""

    kind: Kind
    cause: str
    next_step: str
    lines: tuple[str, ...] = ()

    def __str__(self) -> str:
        shown = "".join(f"\n  {line}" for line in self.lines)
        return f"{self.cause}. Next: {self.next_step}{shown}"


@dataclass(frozen=True)
class _Symptom:
    pattern: re.Pattern[str]
    kind: Kind
    cause: str
    next_step: str


def _symptom(pattern: str, kind: Kind, cause: str, next_step: str) -> _Symptom:
    return _Symptom(re.compile(pattern, re.IGNORECASE), kind, cause, next_step)


# The first that matches counts: what causes others stands before them.
_SYMPTOMS = (
    _symptom(
        r"no CUDA-capable device|CUDA driver version is insufficient|Cuda failure: (?:35|100)\b|CUDA initialization"
        r" failure",
        "configuration",
        "trtexec finds no usable GPU",
        "run this task on the queue of its GPU, in a container with the NVIDIA runtime; TensorRT 11 on CUDA 13 needs a"
        " driver of r580 or newer",
    ),
    _symptom(
        r"incompatible device, expecting compute ([\d.]+) got compute ([\d.]+)",
        "configuration",
        "the plan was built for another GPU: it expects compute {0}, this one is {1}",
        "build it on the GPU that will serve it",
    ),
    _symptom(
        r"Version tag does not match|serialized with a different version|engine plan file is not compatible with"
        r" this version",
        "configuration",
        "the plan was built by another version of TensorRT",
        "build and serve with images of the same month",
    ),
    _symptom(
        r"No importer registered for op: (\w[\w:]*)|UNSUPPORTED_NODE[^\n]*?operator:? ?(\w+)",
        "data",
        "TensorRT has no implementation of the operator {0}",
        "export with another opset, or replace the operator in the model",
    ),
    _symptom(
        r"Failed to parse onnx file|Parsing model failed|Network has dynamic or shape inputs, but no optimization",
        "data",
        "TensorRT does not take the ONNX file",
        "read the first [E] line; verify_onnx says whether ONNX Runtime takes it",
    ),
    _symptom(
        r"No space left on device|Failed to write|Saving engine to file failed",
        "transient",
        "the plan could not be written: the disk is full or not writable",
        "free the disk of the worker",
    ),
    _symptom(
        r"(?:out of memory|OutOfMemory)[\s\S]*Could not find any implementation for node",
        "transient",
        "the GPU's memory ran out while TensorRT tried kernels",
        "see that nothing else uses the GPU; lower --workspace or --max_batch if it happens again",
    ),
    _symptom(
        r"Could not find any implementation for node ([^\n]+?)\.?\)?(?:\n|$)",
        "data",
        "TensorRT found no kernel for {0}",
        "often too little workspace: raise --workspace; else keep the node in FP32",
    ),
    _symptom(
        r"Cuda failure: (?:2|out of memory)|Cuda Runtime \(out of memory\)|CUDA_ERROR_OUT_OF_MEMORY",
        "transient",
        "the GPU's memory ran out",
        "see that nothing else uses the GPU; lower --max_batch if it happens again",
    ),
    _symptom(
        r"Unknown option: (\S+)|Unrecognized option:? (\S+)|Invalid argument: (\S+)|not a valid option: (\S+)",
        "configuration",
        "this trtexec does not know {0}",
        "check that the image holds the version of TensorRT that was probed",
    ),
    _symptom(
        r"Engine deserialization failed|Failed to create engine from",
        "data",
        "the plan could not be read",
        "it is damaged, or made by another TensorRT: build it again",
    ),
)


def failure(text: str, exit_code: int, *, loads: bool = False) -> Failure | None:
    """Return why a run of trtexec failed; None if it succeeded.

    Success is exit code 0 and the line that it passed. Neither alone is enough: errors in the arguments print no
    line, and `--loadEngine --skipInference` prints that it passed after a plan that it could not read; so a run that
    `loads` a plan has to have said that it did. Out-of-memory lines in a run that passed are tactics that it skipped.
    """
    passed = exit_code == 0 and PASSED in text
    if passed and (not loads or LOADED in text):
        return None
    errors = _error_lines(text)
    for symptom in _SYMPTOMS:
        if found := symptom.pattern.search(text):
            groups = [group for group in found.groups() if group]
            cause = symptom.cause.format(*groups) if groups else symptom.cause.replace("{0}", "something")
            return Failure(symptom.kind, cause, symptom.next_step, errors)
    if passed:
        return Failure("data", "trtexec says that it passed, but loaded no plan", "build the plan again", errors)
    if exit_code < 0:
        cause = f"trtexec was ended by signal {-exit_code}" + (" (the kernel's, for memory)" if exit_code == -9 else "")
        return Failure("transient", cause, "give the container more memory if it happens again", errors)
    ending = "without saying why" if not errors else "for a cause that is not known here"
    return Failure("transient", f"trtexec ended with code {exit_code} {ending}", "read the whole log", errors)


def _error_lines(text: str, count: int = 5) -> tuple[str, ...]:
    lines = [line.strip() for line in text.splitlines() if "[E]" in line or "error" in line.lower()]
    return tuple(line[:300] for line in _unique(lines)[:count])


def _unique(lines: Sequence[str]) -> list[str]:
    return list(dict.fromkeys(lines))


def skipped_tactics(text: str) -> int:
    """Return how many kernels were left out for want of memory: a plan that is slower than it could be."""
    return len(re.findall(r"Skipping tactic|insufficient workspace|Tactic Device request", text))
