"""The folder from which MLflow loads a published version: MLflow's own format, written without its flavors' libraries.

https://mlflow.org/docs/latest/ml/model describes the format. A classifier's `python_function` is
`loaded_classifier.py`, which takes pictures; of other models it is MLflow's own for graphs, which takes arrays. All
have the flavor `onnx`.
"""

from __future__ import annotations

import base64
import hashlib
import json
import platform
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import yaml
from numpy.typing import NDArray

import nightshift_common.picture_preparation
from conversion_jobs.publishing.loaded_classifier import GRAPH_FILE, SERVED_FILE
from jobkit.model_spec import ModelSpec, Preprocessing, Spec
from nightshift_common.verified_examples import VerifiedExamples

MODEL_FILE = "MLmodel"
META_FILE, CARD_FILE = "meta.json", "model_card.md"
EXAMPLE_FILE, SERVING_EXAMPLE_FILE = "input_example.json", "serving_input_example.json"
REQUIREMENTS_FILE, PYTHON_FILE, CONDA_FILE = "requirements.txt", "python_env.yaml", "conda.yaml"
LARGEST_EXAMPLE = 100_000  # numbers: as JSON ten times as many bytes
_CODE = {
    "__init__.py": Path(__file__).with_name("loaded_classifier.py"),
    "picture_preparation.py": Path(nightshift_common.picture_preparation.__file__),
}


@dataclass(frozen=True)
class PublishedModel:
    """What is known of a published version."""

    model: str
    version: str
    target: str
    meta: Mapping[str, Any]
    """the package's `meta.json`"""
    spec: Spec | None
    """the package's `model.json`"""
    examples: VerifiedExamples | None
    """the package's `verified.npz`"""

    @property
    def classifier(self) -> ModelSpec | None:
        """The spec, where the model tells classes of a picture, as its entry in Triton does."""
        spec = self.spec
        return spec if isinstance(spec, ModelSpec) and spec.labels and spec.output != "embedding" else None


def model_files(said: PublishedModel, folder: str, run_id: str, *, has_graph: bool) -> dict[str, str]:
    """Return the texts of the folder by their paths in it, `MLmodel` last; `model.onnx` lies beside them.

    Args:
        said: the version.
        folder: where it will lie among the artifacts of the run.
        run_id: MLflow's run.
        has_graph: whether `model.onnx` will be there; else there is the signature, and nothing can be loaded.
    """
    files: dict[str, str] = {}
    described: dict[str, Any] = {"artifact_path": folder, "run_id": run_id, "flavors": {}}
    spec = said.classifier
    if has_graph:
        files |= _environment(["numpy", "onnx", "onnxruntime", *(["opencv-python-headless"] if spec else [])])
        described["flavors"] = {"onnx": _onnx_flavor(), "python_function": _python_flavor(said)}
        example = _arrays_example(said) if spec is None else [_picture_example(said, spec.preprocessing)]
        if example is not None:
            files[EXAMPLE_FILE] = json.dumps(example)
            files[SERVING_EXAMPLE_FILE] = json.dumps({"inputs": example})
            described["saved_input_example_info"] = {
                "artifact_path": EXAMPLE_FILE,
                "serving_input_path": SERVING_EXAMPLE_FILE,
                "type": "json_object" if spec else "ndarray",
            }
    if has_graph and spec is not None:
        files |= {f"code/{_package()}/{name}": path.read_text(encoding="utf-8") for name, path in _CODE.items()}
        wanted = {"labels", "output", "multi_label", "preprocessing"}
        served = {"version": said.version, **spec.model_dump(mode="json", include=wanted)}
        files[SERVED_FILE] = json.dumps(served, indent=2) + "\n"
        # What it takes is more than MLflow can check by a signature, bytes or arrays: it checks its inputs itself.
        described |= {"signature": _picture_signature(), "is_signature_from_type_hint": True}
    else:
        described |= {"signature": _tensor_signature(said.meta)}
    described["metadata"] = {
        "model": said.model, "version": said.version, "served_as": said.target,
        "onnx_sha256": said.meta["onnx_sha256"],
        "graph": {side: said.meta[side] for side in ("inputs", "outputs")},
    }  # fmt: skip
    described["mlflow_version"] = metadata.version("mlflow-skinny")
    return {**files, MODEL_FILE: yaml.safe_dump(described, sort_keys=False)}


def _package() -> str:
    """Return the name of the code's package: other code has another, so that versions can be loaded side by side."""
    digest = hashlib.sha256()
    for path in _CODE.values():
        digest.update(path.read_bytes())
    return f"nightshift_classifier_{digest.hexdigest()[:12]}"


def _onnx_flavor() -> dict[str, Any]:
    return {"data": GRAPH_FILE, "onnx_version": metadata.version("onnx"), "providers": ["CPUExecutionProvider"]}


def _python_flavor(said: PublishedModel) -> dict[str, Any]:
    loader = {"loader_module": "mlflow.onnx", "data": GRAPH_FILE}
    if said.classifier is not None:
        loader = {"loader_module": _package(), "code": "code"}
    environment = {"conda": CONDA_FILE, "virtualenv": PYTHON_FILE}
    return {**loader, "env": environment, "python_version": platform.python_version()}


def _environment(packages: list[str]) -> dict[str, str]:
    """Return the files by which MLflow makes an environment: of the versions that the model was verified with."""
    pinned = [f"mlflow=={metadata.version('mlflow-skinny')}", *(f"{it}=={metadata.version(it)}" for it in packages)]
    python = platform.python_version()
    return {
        REQUIREMENTS_FILE: "".join(f"{line}\n" for line in pinned),
        PYTHON_FILE: yaml.safe_dump({"python": python, "dependencies": [f"-r {REQUIREMENTS_FILE}"]}),
        CONDA_FILE: yaml.safe_dump(
            {
                "name": "mlflow-env",
                "channels": ["conda-forge"],
                "dependencies": [f"python={python}", "pip", {"pip": pinned}],
            }
        ),
    }


def _picture_signature() -> dict[str, Any]:
    from mlflow.types.schema import Array, ColSpec, DataType, Schema

    answer: list[Any] = [
        ColSpec(Array(DataType.string), "labels"),
        ColSpec(Array(DataType.float), "label_probabilities"),
        ColSpec(Array(DataType.float), "probabilities"),
        ColSpec(DataType.string, "version"),
    ]
    picture = Schema([ColSpec(DataType.binary, "picture")])
    return {"inputs": picture.to_json(), "outputs": Schema(answer).to_json(), "params": None}


def _tensor_signature(meta: Mapping[str, Any]) -> dict[str, Any]:
    from mlflow.types.schema import Schema, TensorSpec

    def schema(entries: list[dict[str, Any]]) -> str:
        tensors: list[Any] = [
            TensorSpec(np.dtype(entry["dtype"]), tuple(entry["shape"]), entry["name"]) for entry in entries
        ]
        return str(Schema(tensors).to_json())

    return {"inputs": schema(meta["inputs"]), "outputs": schema(meta["outputs"]), "params": None}


def _first_example(said: PublishedModel, entry: Mapping[str, Any]) -> NDArray[Any]:
    """Return an input [1, ...]: the first that was verified, or zeros where the package has none."""
    if said.examples is not None and entry["name"] in said.examples.inputs:
        return said.examples.inputs[entry["name"]][:1]
    return np.zeros([1, *(max(1, size) for size in entry["shape"][1:])], entry["dtype"])


def _picture_example(said: PublishedModel, how: Preprocessing) -> str:
    """Return a picture in Base64 that is prepared to the example: a PNG of the input's size."""
    import cv2

    values = _first_example(said, said.meta["inputs"][0])[0].transpose(1, 2, 0)
    pixels = np.rint((values * np.array(how.std) + np.array(how.mean)) * 255).clip(0, 255).astype(np.uint8)
    _, content = cv2.imencode(".png", pixels[:, :, ::-1] if how.channels == 3 else pixels)
    return base64.b64encode(content.tobytes()).decode()


def _arrays_example(said: PublishedModel) -> dict[str, Any] | None:
    arrays = {entry["name"]: _first_example(said, entry) for entry in said.meta["inputs"]}
    if sum(array.size for array in arrays.values()) > LARGEST_EXAMPLE:
        return None
    return {name: array.tolist() for name, array in arrays.items()}
