"""Looking over a Triton model repository before Triton sees it: everything that is wrong, at once."""

from __future__ import annotations

import ast
from pathlib import Path
from typing import Any

from conversion_jobs.onnx.graph import interface, read_graph
from conversion_jobs.triton.model_config import contradictions, parse
from jobkit.errors import JobError

MODEL_FILES = {
    "onnxruntime": "model.onnx",
    "tensorrt": "model.plan",
    "python": "model.py",
    "pytorch": "model.pt",
}
PLATFORMS = {"onnxruntime_onnx": "onnxruntime", "tensorrt_plan": "tensorrt", "pytorch_libtorch": "pytorch"}


def problems_of(repository: Path) -> list[str]:
    """Return everything that is wrong with a repository; each line starts with the file or folder that it is about."""
    folders = sorted(path for path in repository.iterdir() if path.is_dir() and not path.name.startswith("."))
    problems = [] if folders else [f"{repository.name}: has no models"]
    strays = sorted(path.name for path in repository.iterdir() if path.is_file())
    problems += [f"{name}: is a file; a repository has folders of models only" for name in strays]
    for folder in folders:
        problems += [f"{folder.name}/{problem}" for problem in model_problems(folder)]
    return problems


def model_problems(folder: Path) -> list[str]:
    """Return everything that is wrong with one model's folder."""
    versions = sorted(path for path in folder.iterdir() if path.is_dir() and path.name.isdecimal())
    problems = [] if versions else ["1: is missing; a model needs a folder for its version"]
    path = folder / "config.pbtxt"
    if not path.is_file():
        return [*problems, "config.pbtxt: is missing"]
    try:
        config = parse(path.read_text(), "config.pbtxt")
    except (JobError, UnicodeDecodeError) as error:
        return [*problems, f"config.pbtxt: {str(error).removeprefix('config.pbtxt:')}"]
    backend = config.backend or PLATFORMS.get(config.platform, "")
    if backend not in MODEL_FILES:
        known = ", ".join([*PLATFORMS, "backend: python"])
        return [*problems, f"config.pbtxt: platform {config.platform!r}, backend {config.backend!r}; known are {known}"]
    if config.name not in ("", folder.name):
        problems.append(f"config.pbtxt: name is {config.name!r}, the folder is {folder.name!r}")
    for version in versions:
        file = version / (config.default_model_filename or MODEL_FILES[backend])
        found = _file_problems(file, backend, config, folder)
        problems += [f"{file.relative_to(folder)}: {problem}" for problem in found]
    return problems


def _file_problems(file: Path, backend: str, config: Any, folder: Path) -> list[str]:
    if not file.is_file():
        return [f"is missing; there is {', '.join(sorted(p.name for p in file.parent.iterdir())) or 'nothing'}"]
    if file.stat().st_size == 0:
        return ["is empty"]
    if backend == "onnxruntime":
        try:
            return contradictions(config, interface(read_graph(file)), folder)
        except JobError as error:
            return [str(error)]
    if backend == "tensorrt":
        return _plan_problems(file)
    return _python_problems(file) if backend == "python" else []


def _plan_problems(file: Path) -> list[str]:
    with file.open("rb") as handle:
        head = handle.read(64)
    if head[4:5] == b"{":  # a length, then JSON: what Ultralytics puts before the plan
        return ["has Ultralytics' header: Triton does not read it; build the plan from the ONNX file"]
    if head.startswith((b"PK", b"\x08")):
        return ["is an archive or an ONNX file, not a plan"]
    return []


def _python_problems(file: Path) -> list[str]:
    try:
        tree = ast.parse(file.read_text())
    except (SyntaxError, UnicodeDecodeError) as error:
        return [f"is not Python: {error}"]
    classes = [node for node in tree.body if isinstance(node, ast.ClassDef) and node.name == "TritonPythonModel"]
    if not classes:
        return ["has no class TritonPythonModel"]
    methods = {node.name for node in classes[0].body if isinstance(node, ast.FunctionDef)}
    return [] if "execute" in methods else ["TritonPythonModel has no method execute"]


def requirements(repository: Path) -> list[str]:
    """Return the `requirements.txt` in a repository: Triton installs none of them, its image has to have them."""
    return sorted(path.relative_to(repository).as_posix() for path in repository.glob("*/*/requirements.txt"))
