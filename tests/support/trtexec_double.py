"""A stand-in for `trtexec` and `nvidia-smi`, for machines without a GPU. It builds nothing that TensorRT could load.

It reproduces what was recorded of 8.6, 10.x and 11.1: which options each takes, exit codes, log lines, and the known
traps. Its "plan" is the ONNX file with a header; to "run" one it runs ONNX Runtime, and gives infinity where a node
that is not kept in FP32 leaves the range of half precision. Every log of it starts with a line that says so.

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
COMMON = {
    "--onnx", "--saveEngine", "--loadEngine", "--minShapes", "--optShapes", "--maxShapes", "--shapes", "--loadInputs",
    "--exportOutput", "--exportTimes", "--warmUp", "--duration", "--iterations", "--timingCacheFile", "--percentile",
    "--help",
}  # fmt: skip
TYPED = {"--fp16", "--precisionConstraints", "--layerPrecisions", "--layerOutputTypes"}
OPTIONS = {
    8203: COMMON | TYPED | {"--workspace", "--buildOnly"},
    8601: COMMON | TYPED | {"--workspace", "--memPoolSize", "--buildOnly", "--skipInference"},
    101300: COMMON | TYPED | {"--memPoolSize", "--skipInference", "--stronglyTyped", "--getPlanVersionOnly"},
    110100: COMMON | {"--memPoolSize", "--skipInference", "--getPlanVersionOnly", "--includeDataTransfers",
                      "--noSpinWait", "--noCudaGraph"},
}  # fmt: skip
BUILDS = {8203: None, 8601: None, 101300: 35, 110100: 106}
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
        print("=== Model Options ===")
        return 1 if version < 100000 else 0
    for option, value in options.items():
        if option not in OPTIONS[version]:
            print(f"[E] Unknown option: {option} {value}".rstrip())
            if version < 110000:  # 11 ends without a word on how it ended
                print(f"&&&& FAILED {stamp}")
            return 1
    code = _faults(folder, settings, options, stamp)
    if code is not None:
        return code
    try:
        (_build if "--onnx" in options else _load)(options, version)
    except Broken as error:
        print(f"[E] {error}")
        if "--skipInference" in options and "--loadEngine" in options:
            print(f"&&&& PASSED {stamp}")  # recorded: it says so after a plan that it could not read
            return 0
        print(f"&&&& FAILED {stamp}")
        return 1
    print(f"&&&& PASSED {stamp}")
    return 0


class Broken(Exception):
    """What trtexec would write as an error."""


def _faults(folder: Path, settings: dict[str, Any], options: dict[str, str], stamp: str) -> int | None:
    fault = settings.get("fault")
    if fault is None or (settings.get("builds_only", True) and "--onnx" not in options):
        return None
    happened = folder / "happened"
    if settings.get("once") and happened.exists():
        return None
    happened.touch()
    if fault == "no_gpu":
        print("[E] Error[6]: CUDA initialization failure with error: 100. no CUDA-capable device is detected")
        return 1
    if fault == "out_of_memory":
        print("[E] Error[1]: [defaultAllocator.cpp::allocate::31] Error Code 1: Cuda Runtime (out of memory)")
        print("[W] [TRT] Requested amount of GPU memory (15485030400 bytes) could not be allocated.")
        print(
            "[E] Error[10]: IBuilder::buildSerializedNetwork: Error Code 10: Internal Error (Could not find any "
            "implementation for node {ForeignNode[/backbone/conv1.../backbone/act1]}.)"
        )
        print("[E] Engine could not be created from network")
    if fault == "no_kernel":
        print("[E] Error[10]: Error Code 10: Internal Error (Could not find any implementation for node /fc/Gemm.)")
    if fault == "unknown_operator":
        print("[E] [TRT] ModelImporter.cpp:771: ERROR: ModelImporter.cpp:195 In function parseGraph:")
        print("[E] [TRT] [8] No importer registered for op: FancyNorm.")
        print("[E] Failed to parse onnx file")
    if fault == "disk_full":
        Path(options["--saveEngine"]).write_bytes(b"half a pl")
        print("[E] Saving engine to file failed.")
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


def _build(options: dict[str, str], version: int) -> None:
    import onnx

    graph = onnx.load(options["--onnx"])
    free = any(not dim.HasField("dim_value") for dim in graph.graph.input[0].type.tensor_type.shape.dim)
    if free and "--optShapes" not in options:
        raise Broken("Network has dynamic or shape inputs, but no optimization profile has been defined.")
    print("[W] [TRT] Tactic Device request: 1100MB Available: 900MB. Device memory is insufficient to use tactic.")
    print("[W] [TRT] Skipping tactic 3 due to insufficient memory on requested size of 1100 detected: OutOfMemory")
    layers = [part.rpartition(":")[0] for part in options.get("--layerPrecisions", "").split(",") if part]
    plan = {"version": version, "fp16": "--fp16" in options, "fp32_layers": layers}
    Path(options["--saveEngine"]).write_bytes(
        HEADER + json.dumps(plan).encode() + b"\n" + Path(options["--onnx"]).read_bytes()
    )
    Path(options["--timingCacheFile"]).write_bytes(b"timings")


def _load(options: dict[str, str], version: int) -> None:
    content = Path(options["--loadEngine"]).read_bytes()
    if not content.startswith(HEADER):
        raise Broken(
            "Error Code 1: Serialization (Serialization assertion magicTagRead failed.)\n"
            "[E] Engine deserialization failed"
        )
    header, _, graph = content[len(HEADER) :].partition(b"\n")
    plan = json.loads(header)
    if plan["version"] != version:
        raise Broken(
            "Error Code 1: Serialization (Version tag does not match. Note: Current Version: 1, Serialized "
            "Engine Version: 2)\n[E] Engine deserialization failed"
        )
    print("[I] Engine deserialized in 0.01 sec.")
    if "--skipInference" in options:
        return
    outputs = _infer(plan, graph, options)
    shown = [
        {"name": name, "dimensions": "x".join(map(str, value.shape)), "values": [float(v) for v in value.ravel()]}
        for name, value in outputs.items()
    ]
    text = json.dumps(shown).replace("NaN", "nan").replace("Infinity", "inf")  # as C++ writes them
    Path(options["--exportOutput"]).write_text(text)
    times = [{"startEnqMs": 0.0, "computeMs": 1.0 + n / 100, "latencyMs": 1.5 + n / 100} for n in range(100)]
    Path(options["--exportTimes"]).write_text(json.dumps(times))


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
