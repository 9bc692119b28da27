"""`config.pbtxt` by Triton's own schema: parsed, checked against the archive, and bound to one version."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.model_storage.errors import Refused
from services.model_storage.repository.onnx_interface import Tensor, read_interface

CONFIG_FILE = "config.pbtxt"
MODEL_FILES = {"model.onnx": "onnx", "model.plan": "tensorrt"}
TRITON_DEFAULT_MAX_BATCH_SIZE = 4  # what Triton takes where it completes a configuration itself
_PLATFORM = {"onnx": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
_BACKEND = {"onnx": "onnxruntime", "tensorrt": "tensorrt"}


def read(text: str, model: str, target: str) -> Any:
    """Parse an uploaded `config.pbtxt` and check that it is for this model and this kind of file.

    Raises:
        Refused: it does not parse, or contradicts the upload.
    """
    config = ModelConfig()
    try:
        text_format.Parse(text, config)
    except text_format.ParseError as error:
        raise Refused(f"{CONFIG_FILE} is not a Triton model configuration: {error}") from error
    if config.name not in ("", model):
        raise Refused(f"{CONFIG_FILE} is for the model {config.name!r}, the upload for {model!r}")
    if config.platform not in ("", _PLATFORM[target]) or config.backend not in ("", _BACKEND[target]):
        raise Refused(
            f"{CONFIG_FILE} names platform {config.platform!r} and backend {config.backend!r}, but the archive holds "
            f"a model for {_PLATFORM[target]!r} ({_BACKEND[target]!r})"
        )
    if not config.platform and not config.backend:
        config.platform = _PLATFORM[target]
    return config


def generate(target: str, folder: Path) -> Any:
    """Return a configuration for an archive that came without one.

    For ONNX the inputs and outputs are read from the graph. A plan can be read by TensorRT alone: Triton completes
    its configuration when it loads it (unless it runs with `--disable-auto-complete-config`).

    Raises:
        Refused: the ONNX file cannot be read.
    """
    config = ModelConfig(platform=_PLATFORM[target])
    if target == "onnx":
        inputs, outputs = read_interface(folder / "model.onnx")
        batched = all(tensor.shape and tensor.shape[0] is None for tensor in (*inputs, *outputs))
        config.max_batch_size = TRITON_DEFAULT_MAX_BATCH_SIZE if batched else 0
        for tensors, entries in ((inputs, config.input), (outputs, config.output)):
            for tensor in tensors:
                entries.add(name=tensor.name, data_type=tensor.type, dims=_dims(tensor, batched))
    return config


def bound(text: str, model: str, number: int) -> str:
    """Return the configuration `text` for the model folder `model`, serving exactly the version `number`."""
    config = text_format.Parse(text, ModelConfig())
    config.name = model
    config.ClearField("version_policy")
    config.version_policy.specific.versions.append(number)
    for output in config.output:  # Triton looks for labels from the model's folder on; the archive is in the version's
        if output.label_filename:
            output.label_filename = f"{number}/{Path(output.label_filename).name}"
    return str(text_format.MessageToString(config))


def to_text(config: Any) -> str:
    """Return a configuration as the content of a `config.pbtxt`."""
    return str(text_format.MessageToString(config))


def _dims(tensor: Tensor, batched: bool) -> list[int]:
    return [-1 if size is None else size for size in tensor.shape[1 if batched else 0 :]]
