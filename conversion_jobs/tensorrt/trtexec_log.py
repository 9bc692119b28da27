"""What trtexec's log says: whether it succeeded, and if not, the likely cause and the next step.

The rules come from logs that people published for 8.6 to 11.1 and from trtexec's own source. Three things are easy to
get wrong: every failed build ends with the same lines, which carry no cause; a tactic that was skipped for want of
memory is no failure; and what stands at the level of information goes on. So a log is read line by line, each line at
its level, and the strongest of the causes found counts, not the first or the last.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

PASSED = "&&&& PASSED TensorRT.trtexec"
DIFFERS = "Accuracy validation FAILED"
"""With this a run ends that compared the outputs with others and found them too far off; it ran to its end."""
LOADED = re.compile(r"Engine (?:deserialized|loaded) in ")  # "loaded" up to 8.3
MAX_LINE = 2000  # characters of a line that are looked at: a verbose log has lines of a megabyte

Kind = Literal["configuration", "data", "transient"]

_LINE = re.compile(r"(?:\[[\d/.:-]+\] )?(?:\[TRT\] )?\[([VIWEF])\] (?:\[TRT\] )?")
# With these ends every failed build, whatever its cause.
_ENDINGS = re.compile(
    r"Engine could not be created from network|Building engine failed|Failed to create engine from|Engine set up failed"
    r"|Engine creation failed|Attempting to access an empty engine|Parsing model failed"
)
_SKIPPED = re.compile(r"Skipping tactic.*", re.IGNORECASE)
_OPERATOR = re.compile(r"No importer registered for op: ([\w.:]+\w)|parsing node number \d+ \[(\w+)")


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
    as_warning: bool = False  # whether it is told at the level of a warning, too


def _symptom(pattern: str, kind: Kind, cause: str, next_step: str, as_warning: bool = False) -> _Symptom:
    return _Symptom(re.compile(pattern, re.IGNORECASE), kind, cause, next_step, as_warning)


_NO_KERNEL = _symptom(
    r"Could not find any implementation for node (.+?)\.?\)*\s*$",
    "data",
    "TensorRT found no kernel for {0}",
    "often too little workspace: raise --workspace; else keep the node in FP32",
)
_MEMORY = _symptom(
    r"out of memory|OutOfMemory|std::bad_alloc|CUDA_ERROR_OUT_OF_MEMORY"
    r"|Requested amount of GPU memory \(.*could not be allocated"
    r"|(?:CUDA initialization failure with error|Cuda failure):? 2\b|CUDA error 2\b"
    r"|Device memory is insufficient to use tactic|insuff?icient memory",
    "transient",
    "the GPU's memory ran out",
    "see that nothing else uses the GPU; lower --workspace or --max_batch if it happens again",
    as_warning=True,
)
_NO_CODE = _symptom(
    r"no kernel image is available|Cuda failure: 209\b|CUDA error 209\b",
    "configuration",
    "this TensorRT or one of its plugins has no code for the GPU",
    "use an image whose TensorRT supports the GPU",
)
# The strongest first: what causes others stands before them.
_SYMPTOMS = (
    _symptom(
        r"Unknown option: (\S+)|Unrecognized option:? (\S+)|Invalid argument: (\S+)|not a valid option: (\S+)",
        "configuration",
        "this trtexec does not know {0}",
        "check that the image holds the version of TensorRT that was probed",
    ),
    _symptom(
        r"Could not open (?:input )?file:? (\S+)|Error opening engine file: (\S+)|Model missing or format not",
        "configuration",
        "trtexec cannot open {0}",
        "see that the file is there and may be read by the job's user",
    ),
    _symptom(
        r"Target GPU SM (\d+) is not supported by this TensorRT|Unsupported SM\b",
        "configuration",
        "this TensorRT does not support the GPU (compute {0})",
        "use an image whose TensorRT supports it, or run this task on the queue of a supported GPU",
    ),
    _symptom(
        r"Unable to load library: (\S*nvinfer_builder_resource[^\s:)]*)|(libnvinfer_builder_resource\S*): cannot open",
        "configuration",
        "a library of TensorRT's kernels cannot be loaded: {0}",
        "the installation or the image is broken: use NVIDIA's image of this version",
    ),
    _symptom(
        r"no CUDA-capable device|CUDA driver version is insufficient|Cuda failure: (?:35|100|999)\b"
        r"|CUDA error (?:35|100|999)\b|CUDA initialization failure with error:? (?!2\b)\d+",
        "configuration",
        "trtexec finds no usable GPU",
        "run this task on the queue of its GPU, in a container with the NVIDIA runtime; TensorRT 11 on CUDA 13 needs a"
        " driver of r580 or newer",
        as_warning=True,
    ),
    _symptom(
        r"incompatible device, expecting compute ([\d.]+) got compute ([\d.]+)",
        "configuration",
        "the plan was built for another GPU: it expects compute {0}, this one is {1}",
        "build it on the GPU that will serve it",
    ),
    _symptom(
        r"plan file is generated on an incompatible device",
        "configuration",
        "the plan was built for another GPU",
        "build it on the GPU that will serve it",
    ),
    _symptom(
        r"Version tag does not match|serialized with a different version|engine plan file is not compatible with"
        r" this version",
        "configuration",
        "the plan was built by another version of TensorRT",
        "build and serve with images of the same month",
    ),
    _NO_CODE,
    _symptom(
        r"could not find plugin:? (\w+)|Plugin not found|Assertion failed: creator|UNSUPPORTED_NODE.*?operator:? ?(\w+)"
        r"|\[8\] No importer registered for op: (\w[\w:]*)",
        "data",
        "TensorRT has no implementation of the operator {0}",
        "export with another opset, or replace the operator in the model",
    ),
    _symptom(
        r"While parsing node number (\d+(?: \[[^\]]+\])?)",
        "data",
        "TensorRT does not take the ONNX file, at node number {0}",
        "read the first [E] line; verify_onnx says whether ONNX Runtime takes it",
    ),
    _symptom(
        r"Failed to parse onnx file|Network has dynamic or shape inputs, but no optimization"
        r"|ModelImporter\S*:? .*(?:ERROR|parse failed)",
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
        r"illegal memory access|Cuda failure: 700\b|CUDA error 700\b|Cuda Error in \w+: 700\b",
        "data",
        "the plan reads or writes outside its memory (CUDA error 700)",
        "a bad plan or a bug of a plugin, and no retry mends it: build it with another precision or version",
    ),
    _symptom(
        DIFFERS,
        "data",
        "the plan's outputs are not the reference outputs",
        "build it with another precision",
    ),
    _symptom(
        r"Cannot deserialize engine with lean runtime",
        "configuration",
        "the plan is version-compatible: it brings a program along, which has to be allowed",
        "load it with --versionCompatible; Triton takes --backend-config=tensorrt,version-compatible=true",
    ),
    _NO_KERNEL,
    _MEMORY,
    _symptom(
        r"Engine deserialization failed|magicTagRead failed|Serialization assertion",
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
    if passed and (not loads or LOADED.search(text)):
        return None
    lines = list(_telling_lines(text))
    errors = tuple(dict.fromkeys(line.strip()[:300] for level, line in lines if level in "EF"))[:5]
    if (cause := _strongest_cause(lines, errors)) is not None:
        return cause
    if passed:
        return Failure("data", "trtexec says that it passed, but loaded no plan", "build the plan again", errors)
    if exit_code < 0:
        said = f"trtexec was ended by signal {-exit_code}" + (" (the kernel's, for memory)" if exit_code == -9 else "")
        return Failure("transient", said, "give the container more memory if it happens again", errors)
    ending = "without saying why" if not errors else "for a cause that is not known here"
    return Failure("transient", f"trtexec ended with code {exit_code} {ending}", "read the whole log", errors)


def _telling_lines(text: str) -> Iterator[tuple[str, str]]:
    """Yield level and text of the lines that may tell a cause; a line without a level, such as an abort's, is an "E".

    Of the levels below a warning only the names of operators are kept, as "I".
    """
    for whole in text.splitlines():
        line = whole[:MAX_LINE]
        found = _LINE.match(line)
        level = found[1] if found else "E"
        rest = line[found.end() :] if found else line
        if rest.startswith(("&&&& ", "$ ")) or _ENDINGS.search(rest):
            continue
        if level in "WEF" or (level == "I" and _OPERATOR.search(rest)):
            yield level, rest


def _strongest_cause(lines: Sequence[tuple[str, str]], errors: tuple[str, ...]) -> Failure | None:
    """Return the cause that explains the others; None where no line tells one."""
    found: dict[_Symptom, tuple[str, ...]] = {}
    operator, hint, explained_by = "", None, None
    for level, line in lines:
        if named := _OPERATOR.search(line):
            operator = named[1] or named[2]
        if level == "I":
            continue
        if _SKIPPED.search(line):  # survived, unless no kernel is left in the end
            hint = next((symptom for symptom in (_NO_CODE, _MEMORY) if symptom.pattern.search(line)), hint)
            continue
        for symptom in _SYMPTOMS:
            if symptom in found or (level == "W" and not symptom.as_warning):
                continue
            if match := symptom.pattern.search(line):
                found[symptom] = tuple(group for group in match.groups() if group) or (operator or "something",)
                if symptom is _NO_KERNEL:
                    explained_by = _MEMORY if _MEMORY in found else hint
    strongest = next((symptom for symptom in _SYMPTOMS if symptom in found), hint)
    if strongest is _NO_KERNEL and explained_by is not None:
        strongest = explained_by
    if strongest is None:
        return None
    return Failure(strongest.kind, strongest.cause.format(*found.get(strongest, ())), strongest.next_step, errors)


def skipped_tactics(text: str) -> int:
    """Return how many kernels were left out for want of memory: a plan that is slower than it could be.

    Each is told by several lines and possibly several times; it counts once.
    """
    lines = (line[:MAX_LINE] for line in text.splitlines())
    return len({found[0] for line in lines if (found := _SKIPPED.search(line)) and _MEMORY.pattern.search(line)})
