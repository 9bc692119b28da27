"""A stand-in for `trtexec` and `nvidia-smi`, for machines without a GPU. It builds nothing that TensorRT could load.

It reproduces what was recorded of 8.6, 10.x and 11.1: the options that each takes (`trtexec_options.json`, from the
parser in TensorRT's open source), exit codes, log lines and how they end, and the known traps. Its "plan" is the ONNX
file with a header; to "run" one it runs ONNX Runtime, and gives infinity where a node that is not kept in FP32 leaves
the range of half precision. Every log of it starts with a line that says so.

`install(folder, ...)` writes both programs; what they are to do stands in the file `double.json` beside them.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

FIRST_LINE = "This is a test double of trtexec: no TensorRT, no GPU, and no plan that could be served."
# With these end the real one's failed builds, whatever the cause. From 10.13 on without --saveEngine only: with it the
# plan is streamed, an empty file is left, and an assertion ends the program without a word on how it ended.
BUILD_ENDINGS = (
    "Engine could not be created from network", "Building engine failed",
    "Failed to create engine from model or file.", "Engine set up failed",
)  # fmt: skip
PARSE_ENDINGS = ("Failed to parse onnx file", "Parsing model failed", *BUILD_ENDINGS[2:])
EMPTY_ENGINE = 'Assertion failure: false && "Attempting to access an empty engine!"'
OPTIONS = json.loads(Path(__file__).with_name("trtexec_options.json").read_text())
DOCUMENTED = {8503: "8.6.1", 8601: "8.6.1", 101300: "10.13.0", 110100: "11.1.0"}  # whose options a version takes
BUILDS = {8503: None, 8601: None, 101300: 35, 110100: 106}
HEADER = b"TEST DOUBLE, NO PLAN\n"
FP16_MAX = 65504.0


def install(folder: Path, version: int, python: str = sys.executable, **settings: Any) -> tuple[Path, Path]:
    """Write a `trtexec` of `version` (as in its banner) and an `nvidia-smi`; return their paths.

    `python` runs them: it needs onnx and onnxruntime.

    `gpu` (`name, compute, driver, MiB`) is what nvidia-smi answers; `fault` is one of the traps in `_faults`; with
    `once` it happens in the first build only.
    """
    folder.mkdir(parents=True, exist_ok=True)
    gpu = settings.pop("gpu", "Tesla T4, 7.5, 580.65.06, 15360")
    (folder / "double.json").write_text(json.dumps({"version": version, **settings}))
    programs = folder / "trtexec", folder / "nvidia-smi"
    programs[0].write_text(f'#!/bin/sh\nexec {python} {Path(__file__)} {folder} "$@"\n')
    programs[1].write_text(f"#!/bin/sh\n{'exit 9' if gpu is None else f'echo {gpu!r}'}\n")
    for program in programs:
        program.chmod(0o755)
    return programs


def main(folder: Path, arguments: list[str]) -> int:
    """Behave like trtexec; return its exit code."""
    settings = json.loads((folder / "double.json").read_text())
    version = settings["version"]
    build = f" [b{BUILDS[version]}]" if BUILDS[version] else ""
    stamp = f"TensorRT.trtexec [TensorRT v{version}]{build} # trtexec {' '.join(arguments)}"
    options = dict(argument.partition("=")[::2] for argument in arguments)
    with (folder / "calls.jsonl").open("a") as calls:
        calls.write(json.dumps(arguments) + "\n")
    print(FIRST_LINE)
    print(f"&&&& RUNNING {stamp}", flush=True)
    if "--help" in options:
        print_help(version)
        return 1 if version < 100000 else 0
    known = OPTIONS[DOCUMENTED[version]]["options"]
    if unknown := [f"Unknown option: {name} {value}" for name, value in options.items() if name not in known]:
        if version >= 100000:  # before the errors; 8.6 has it after them
            print_help(version)
        fail(*unknown)
        if version < 110000:  # 11 ends without a word on how it ended
            print(f"&&&& FAILED {stamp}")
        return 1
    if "--loadRefOutputs" in options and not options.get("--accuracyThreshold"):
        print_help(version)
        fail("--accuracyThreshold (with a positive value) is required when --loadRefOutputs or --refPair is set.")
        return 1
    code = _faults(folder, settings, options, stamp)
    if code is not None:
        return code
    try:
        if "--onnx" in options:
            _build(options, version, profiles_of(arguments))
        else:
            _load(options, version, settings)
    except Broken as error:
        for line in str(error).splitlines():
            say("E", line)
        if "--skipInference" in options and "--loadEngine" in options:
            print(f"&&&& PASSED {stamp}")  # recorded: it says so after a plan that it could not read
            return 0
        print(f"&&&& FAILED {stamp}")
        return 1
    print(f"&&&& PASSED {stamp}")
    return 0


def print_help(version: int) -> None:
    """Print the options without their explanations, which are NVIDIA's."""
    print("=== Model Options ===")
    for option in OPTIONS[DOCUMENTED[version]]["options"]:
        print(f"  {option}")


class Broken(Exception):
    """What trtexec would write as errors, a line each."""


def say(level: str, text: str) -> None:
    """Print a line of the log as the real one does."""
    print(time.strftime("[%m/%d/%Y-%H:%M:%S]"), f"[{level}] {text}")


def fail(*lines: str) -> None:
    """Print errors."""
    for line in lines:
        say("E", line)


def fail_to_build(version: int, options: dict[str, str], stamp: str, *lines: str) -> int:
    """End as a build does that gave no plan; return the exit code."""
    fail(*lines)
    if version >= 100000 and "--saveEngine" in options:
        Path(options["--saveEngine"]).touch()
        say("I", "Created engine with size: 0 MiB")
        say("I", "Engine built in 0.01 sec.")
        fail(EMPTY_ENGINE)
        return 1
    fail(*BUILD_ENDINGS)
    print(f"&&&& FAILED {stamp}")
    return 1


def _faults(folder: Path, settings: dict[str, Any], options: dict[str, str], stamp: str) -> int | None:
    fault, version = settings.get("fault"), settings["version"]
    if fault is None or (settings.get("builds_only", True) and "--onnx" not in options):
        return None
    happened = folder / "happened"
    if settings.get("once") and happened.exists():
        return None
    happened.touch()
    if fault == "no_gpu":
        print("Cuda failure: no CUDA-capable device is detected")
        return 1
    if fault == "out_of_memory":
        say("W", "[TRT] Requested amount of GPU memory (15485030400 bytes) could not be allocated.")
        return fail_to_build(
            version, options, stamp,
            "Error[2]: [virtualMemoryBuffer.cpp::resizePhysical::154] Error Code 2: OutOfMemory (Requested size was "
            "15485030400 bytes.)",
            "Error[10]: IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any "
            "implementation for node {ForeignNode[/backbone/conv1.../backbone/act1]}.)",
        )  # fmt: skip
    if fault == "no_kernel":
        message = "Error[10]: Error Code 10: Internal Error (Could not find any implementation for node /fc/Gemm.)"
        return fail_to_build(version, options, stamp, message)
    if fault == "unknown_operator":
        say("I", "[TRT] No importer registered for op: FancyNorm. Attempting to import as plugin.")
        fail('[TRT] ModelImporter.cpp:963: While parsing node number 7 [FancyNorm -> "/FancyNorm_output_0"]:')
        fail("[TRT] ModelImporter.cpp:968: ERROR: onnxOpCheckers.cpp:819 In function checkFallbackPluginImporter:")
        print('[6] creator && "Plugin not found, are the plugin name, version, and namespace correct?"')
        fail(*PARSE_ENDINGS)
    if fault == "disk_full":
        Path(options["--saveEngine"]).write_bytes(b"half a pl")
        fail("Saving engine to file failed.", "Engine set up failed")
    if fault == "killed":
        sys.stdout.flush()
        os.kill(os.getpid(), 9)
    if fault == "hangs":
        sys.stdout.flush()
        time.sleep(600)
    if fault == "silent":
        print(f"&&&& PASSED {stamp}")
        return 0
    print(f"&&&& FAILED {stamp}")
    return 1


def profiles_of(arguments: list[str]) -> list[dict[str, list[int]]]:
    """Return the optimization profiles, as the real one's parser reads them: shapes right behind their --profile."""
    marks = [place for place, argument in enumerate(arguments) if argument.startswith("--profile=")]
    parts = [arguments[mark + 1 : mark + 4] for mark in marks] or [arguments]
    found = []
    for part in parts:
        named = [argument.partition("=")[::2] for argument in part if "Shapes=" in argument]
        found.append({name: [int(size) for size in v.partition(":")[2].split("x")] for name, v in named})
    return found


def _build(options: dict[str, str], version: int, profiles: list[dict[str, list[int]]]) -> None:
    import onnx

    graph = onnx.load(options["--onnx"])
    free = any(not dim.HasField("dim_value") for dim in graph.graph.input[0].type.tensor_type.shape.dim)
    if free and "--optShapes" not in options:
        message = "Error[4]: Network has dynamic or shape inputs, but no optimization profile has been defined."
        raise Broken("\n".join((message, *BUILD_ENDINGS)))
    if free and any(set(profile) != {"--minShapes", "--optShapes", "--maxShapes"} for profile in profiles):
        raise Broken(f"Found invalid or missing shape spec in {profiles}")
    say("I", "[TRT] No importer registered for op: EfficientNMS_TRT. Attempting to import as plugin.")  # and goes on
    for tactic in ("0x0000000000000004", "0x000000000000003c", "0x000000000000003c"):
        say("W", "[TRT] Tactic Device request: 541MB Available: 201MB. Device memory is insufficient to use tactic.")
        say("W", "[TRT] Skipping tactic 3 due to insufficient memory on requested size of 541 detected for tactic "
            f"{tactic}.")  # fmt: skip
    layers = [part.rpartition(":")[0] for part in options.get("--layerPrecisions", "").split(",") if part]
    plan = {
        "version": version, "fp16": "--fp16" in options, "fp32_layers": layers,
        "compatible": "--versionCompatible" in options, "stripped": "--stripWeights" in options,
        "profiles": profiles if free else [],
    }  # fmt: skip
    Path(options["--saveEngine"]).write_bytes(
        HEADER + json.dumps(plan).encode() + b"\n" + Path(options["--onnx"]).read_bytes()
    )
    Path(options["--timingCacheFile"]).write_bytes(b"timings")


def _load(options: dict[str, str], version: int, settings: dict[str, Any]) -> None:
    content = Path(options["--loadEngine"]).read_bytes()
    if not content.startswith(HEADER):
        raise Broken(
            "Error Code 1: Serialization (Serialization assertion magicTagRead failed.)\nEngine deserialization failed"
        )
    header, _, graph = content[len(HEADER) :].partition(b"\n")
    plan = json.loads(header)
    if plan["compatible"] and "--versionCompatible" not in options:
        raise Broken(
            "[TRT] Cannot deserialize engine with lean runtime since IRuntime::getEngineHostCodeAllowed() is false\n"
            "Engine deserialization failed"
        )
    if plan["version"] != version and not (plan["compatible"] and version > plan["version"]):
        raise Broken(
            "Error Code 1: Serialization (Version tag does not match. Note: Current Version: 1, Serialized "
            "Engine Version: 2)\nEngine deserialization failed"
        )
    say("I", "Engine deserialized in 0.01 sec.")
    if "--skipInference" in options:
        return
    outputs = _infer(plan, graph, options)
    if plan["stripped"]:  # recorded: it runs and passes
        outputs = {name: value * 0 for name, value in outputs.items()}
    shown = [
        {"name": name, "dimensions": "x".join(map(str, value.shape)), "values": [float(v) for v in value.ravel()]}
        for name, value in outputs.items()
    ]
    text = json.dumps(shown).replace("NaN", "nan").replace("Infinity", "inf")  # as C++ writes them
    Path(options["--exportOutput"]).write_text(text)
    times = [{"startEnqMs": 0.0, "computeMs": 1.0 + n / 100, "latencyMs": 1.5 + n / 100} for n in range(100)]
    Path(options["--exportTimes"]).write_text(json.dumps(times))
    if "--loadRefOutputs" in options:
        _compare(outputs, options, settings)


def _compare(outputs: dict[str, Any], options: dict[str, str], settings: dict[str, Any]) -> None:
    """Compare with reference outputs as 11.1 does: a name that is not there is a warning, NaN is below any limit."""
    import numpy as np

    name, _, path = options["--loadRefOutputs"].partition(":")
    name = settings.get("compares", name)
    if name not in outputs:
        say("W", f"Reference output tensor {name} not found in output bindings")
        return
    actual, reference = outputs[name].ravel().astype(np.float64), np.fromfile(path, "<f4").astype(np.float64)
    if "differs_inside" in settings:  # issue 4813: what trtexec compares and what it exports are not the same
        actual = actual[::-1]
    loss = 1 - actual @ reference / (np.linalg.norm(actual) * np.linalg.norm(reference))
    limit = float(options["--accuracyThreshold"])
    verdict = f" [FAIL: >= threshold {limit:f}]" if loss >= limit else ""
    say("I", f"Accuracy loss for tensor {name} (Cos): {loss:.6f}{verdict}")
    if verdict:
        raise Broken("Accuracy validation FAILED: one or more tensors exceeded the threshold.")


def _infer(plan: dict[str, Any], graph: bytes, options: dict[str, str]) -> dict[str, Any]:
    import numpy as np
    import onnx
    import onnxruntime

    model = onnx.load_from_string(graph)
    name, _, path = options["--loadInputs"].partition(":")
    shape = [dim.dim_value for dim in model.graph.input[0].type.tensor_type.shape.dim]
    if "--shapes" in options:
        shape = [int(size) for size in options["--shapes"].partition(":")[2].split("x")]
    value = np.fromfile(path, "<f4").reshape(shape)
    if plan["profiles"]:
        profile = plan["profiles"][int(options.get("--useProfile", 0))]
        for low, size, high in zip(profile["--minShapes"], shape, profile["--maxShapes"], strict=True):
            if not low <= size <= high:
                raise Broken(
                    f"Error Code 3: API Usage Error (maximum dimension in profile is {high}, minimum dimension in "
                    f"profile is {low}, but supplied dimension is {size}.)"
                )
    final = [output.name for output in model.graph.output]
    if not plan["fp16"]:
        return dict(zip(final, onnxruntime.InferenceSession(graph).run(final, {name: value}), strict=True))
    from conversion_jobs.onnx.session import Intermediates

    tensors = Intermediates(model).tensors(value)
    loud = {
        node.name
        for node in model.graph.node
        for output in node.output
        if output in tensors and np.abs(tensors[output]).max() > FP16_MAX
    } - set(plan["fp32_layers"])
    return {key: tensors[key] * (np.inf if loud else 1) for key in final}


if __name__ == "__main__":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    sys.exit(main(Path(sys.argv[1]), sys.argv[2:]))
