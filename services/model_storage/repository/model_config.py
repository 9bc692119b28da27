"""`config.pbtxt` by Triton's own schema: parsed, cut to what is harmless, checked against the archive, and bound to
one version.

A configuration can name a script that a backend runs, libraries that it loads and files that it opens. So what is
served has only the fields below, and of texts only names and words.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any, Literal

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc.model_config_pb2 import DataType, ModelConfig

from services.model_storage.errors import Refused
from services.model_storage.repository.onnx_interface import Tensor, read_interface

CONFIG_FILE = "config.pbtxt"
MODEL_FILES: dict[str, Literal["onnx", "tensorrt", "pytorch"]] = {
    "model.onnx": "onnx",
    "model.plan": "tensorrt",
    "model.pt": "pytorch",
}
PYTHON_FILE = "model.py"
TRITON_DEFAULT_MAX_BATCH_SIZE = 4  # what Triton takes where it completes a configuration itself
_PLATFORM = {"onnx": "onnxruntime_onnx", "tensorrt": "tensorrt_plan", "pytorch": "pytorch_libtorch"}
_BACKEND = {"onnx": "onnxruntime", "tensorrt": "tensorrt", "pytorch": "pytorch", "python": "python"}

_Fields = Mapping[str, "Literal[True] | _Fields"]  # a message that is kept whole holds nothing but numbers
_TENSOR: _Fields = {
    "name": True, "data_type": True, "dims": True, "reshape": True, "is_shape_tensor": True,
    "is_non_linear_format_io": True,
}  # fmt: skip
_ACCELERATOR: _Fields = {"name": True, "parameters": True}  # both are looked at one by one
FIELDS: _Fields = {
    "name": True,
    "platform": True,
    "backend": True,
    "version_policy": True,
    "max_batch_size": True,
    "input": {**_TENSOR, "format": True, "allow_ragged_batch": True, "optional": True},
    "output": {**_TENSOR, "label_filename": True},
    "dynamic_batching": True,
    "instance_group": {"kind": True, "count": True, "gpus": True},
    "response_cache": True,
    "model_warmup": {
        "name": True, "batch_size": True, "count": True,
        "inputs": {"data_type": True, "dims": True, "zero_data": True, "random_data": True},
    },
    "optimization": {
        "graph": True, "priority": True, "input_pinned_memory": True, "output_pinned_memory": True,
        "gather_kernel_buffer_threshold": True, "eager_batching": True,
        "cuda": {"graphs": True, "busy_wait_events": True, "output_copy_stream": True},
        "execution_accelerators": {
            "gpu_execution_accelerator": _ACCELERATOR, "cpu_execution_accelerator": _ACCELERATOR,
        },
    },
    "parameters": True,
}  # fmt: skip
PARAMETERS = frozenset({
    "intra_op_thread_count", "inter_op_thread_count", "execution_mode", "enable_mem_arena", "enable_mem_pattern",
})  # fmt: skip
ACCELERATORS = {
    "tensorrt": frozenset({"precision_mode", "max_workspace_size_bytes"}),
    "cuda": frozenset[str](),
    "openvino": frozenset[str](),
}
_TYPE = {
    "float32": "TYPE_FP32", "float16": "TYPE_FP16", "float64": "TYPE_FP64", "int64": "TYPE_INT64",
    "int32": "TYPE_INT32", "int8": "TYPE_INT8", "uint8": "TYPE_UINT8", "bool": "TYPE_BOOL",
}  # fmt: skip
_WORD = re.compile(r"[A-Za-z0-9_-]{1,64}")


def read(text: str, model: str, target: str, files: Collection[str]) -> tuple[Any, list[str]]:
    """Parse an uploaded `config.pbtxt` and check that it is for this model and this kind of file.

    Returns:
        The configuration with what may be served, and the names of what was left out. `files` are those of the archive.

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
    platform = _PLATFORM.get(target, "")
    if config.platform not in ("", platform) or config.backend not in ("", _BACKEND[target]):
        raise Refused(
            f"{CONFIG_FILE} names platform {config.platform!r} and backend {config.backend!r}, but the archive holds "
            f"a model for {platform!r} ({_BACKEND[target]!r})"
        )
    if not config.platform and not config.backend:
        config.MergeFrom(of_target(target))
    return config, restrict(config, files)


def restrict(config: Any, files: Collection[str]) -> list[str]:
    """Take everything out of `config` that is not known to be harmless; return the names of what was taken out.

    Labels are one of the `files` beside the model, an accelerator and its parameters are known ones, a warm-up makes
    its data up, and parameters are known ones with a plain word as their value.
    """
    left_out = []
    for index in reversed(range(len(config.model_warmup))):
        sample = config.model_warmup[index]
        if any(entry.WhichOneof("input_data_type") == "input_data_file" for entry in sample.inputs.values()):
            del config.model_warmup[index]  # whole: without the file it has an input without data
            left_out.append("model_warmup.inputs.input_data_file")
        elif sample.name and not _WORD.fullmatch(sample.name):
            sample.ClearField("name")
            left_out.append("model_warmup.name")
    left_out += _cut(config, FIELDS)
    for output in config.output:
        if output.label_filename:
            output.label_filename = Path(output.label_filename).name
            if output.label_filename not in files:
                output.ClearField("label_filename")
                left_out.append("output.label_filename")
    left_out += _cut_entries(config.parameters, PARAMETERS, "parameters")
    accelerators = config.optimization.execution_accelerators
    for kind in ("gpu_execution_accelerator", "cpu_execution_accelerator"):
        where, entries = f"optimization.execution_accelerators.{kind}", getattr(accelerators, kind)
        for index in reversed(range(len(entries))):
            if entries[index].name not in ACCELERATORS:
                del entries[index]
                left_out.append(where)
            else:
                known = ACCELERATORS[entries[index].name]
                left_out += _cut_entries(entries[index].parameters, known, f"{where}.parameters")
    return sorted(set(left_out))


def _cut(message: Any, fields: _Fields, where: str = "") -> list[str]:
    """Clear every field of `message`, and of those in it, that `fields` does not name; return their names."""
    message.DiscardUnknownFields()
    left_out = []
    for field, value in message.ListFields():
        below = fields.get(field.name)
        if below is None:
            message.ClearField(field.name)
            left_out.append(f"{where}{field.name}")
        elif below is not True:
            parts = value.values() if isinstance(value, Mapping) else value if field.is_repeated else [value]
            for part in parts:
                left_out += _cut(part, below, f"{where}{field.name}.")
    return left_out


def _cut_entries(entries: Any, known: Collection[str], where: str) -> list[str]:
    """Remove what is not a known key with a plain word as its value; return the names of what was removed."""
    left_out = []
    for key, value in list(entries.items()):
        text = value if isinstance(value, str) else value.string_value
        if key not in known or not _WORD.fullmatch(text):
            del entries[key]
            left_out.append(f"{where}.{key}" if _WORD.fullmatch(key) else where)
    return left_out


def generate(target: str, folder: Path) -> Any:
    """Return a configuration for an archive that came without one.

    For ONNX the inputs and outputs are read from the graph. A plan can be read by TensorRT alone: Triton completes
    its configuration when it loads it (unless it runs with `--disable-auto-complete-config`).

    Raises:
        Refused: the ONNX file cannot be read.
    """
    config = of_target(target)
    if target == "onnx":
        inputs, outputs = read_interface(folder / "model.onnx")
        batched = all(tensor.shape and tensor.shape[0] is None for tensor in (*inputs, *outputs))
        config.max_batch_size = TRITON_DEFAULT_MAX_BATCH_SIZE if batched else 0
        for tensors, entries in ((inputs, config.input), (outputs, config.output)):
            for tensor in tensors:
                entries.add(name=tensor.name, data_type=tensor.type, dims=_dims(tensor, batched))
    return config


def described(target: str, meta: Mapping[str, Any]) -> Any | None:
    """Return a configuration with the inputs and outputs that a `meta.json` tells; None where it does not tell them."""
    config = of_target(target)
    try:
        for key, entries in (("inputs", config.input), ("outputs", config.output)):
            for tensor in meta[key]:
                dims = [int(size) for size in tensor["shape"]]
                entries.add(name=str(tensor["name"]), data_type=_TYPE[tensor["dtype"]], dims=dims)
    except (KeyError, TypeError, ValueError):
        return None
    return config


def inherit(config: Any, champion: str, files: Collection[str]) -> tuple[Any, dict[str, str]] | None:
    """Return the configuration `champion` for a version of the interface `config`, and its settings as texts.

    None where their inputs or outputs differ: names, types, shapes.
    """
    taken = text_format.Parse(champion, ModelConfig())
    if not taken.input or any(tensors(config, what) != tensors(taken, what) for what in ("input", "output")):
        return None
    restrict(taken, files)
    taken.ClearField("name")
    taken.ClearField("version_policy")
    settings = {}
    for field, value in taken.ListFields():
        if field.name not in ("input", "output", "platform", "backend"):
            alone = ModelConfig()
            alone.MergeFrom(taken)
            for other, _ in taken.ListFields():
                if other.name != field.name:
                    alone.ClearField(other.name)
            text = text_format.MessageToString(alone, as_one_line=True)
            settings[field.name] = str(value) if isinstance(value, int) else text
    return taken, settings


def tensors(config: Any, what: str) -> dict[str, tuple[str, list[int]]]:
    """Return type and shape of each input or output (`what`) by its name; a batch of any size is -1 in front."""
    batch = [-1] if config.max_batch_size else []
    entries = config.input if what == "input" else config.output
    return {entry.name: (DataType.Name(entry.data_type), batch + list(entry.dims)) for entry in entries}


def of_target(target: str) -> Any:
    """Return a configuration that says nothing but what runs the model; that of an unknown `target` is empty."""
    if target in _PLATFORM:
        return ModelConfig(platform=_PLATFORM[target])
    return ModelConfig(backend=_BACKEND.get(target, ""))


def as_found(text: str, model: str, number: int, is_beside: bool) -> str:
    """Return the configuration `text` of a version that was taken over, for the model folder `model`.

    An earlier service has served it: it is kept whole. Its labels lie in the model's folder, and not in that of
    what is served beside it.
    """
    config = text_format.Parse(text, ModelConfig())
    config.name = model
    config.version_policy.specific.versions.append(number)
    for output in config.output:
        if is_beside:
            output.ClearField("label_filename")
    return to_text(config)


def named_versions(text: str) -> list[int]:
    """Return the versions that a `config.pbtxt` names; empty where it leaves that to Triton, or cannot be read."""
    try:
        return list(text_format.Parse(text, ModelConfig()).version_policy.specific.versions)
    except text_format.ParseError:
        return []


def bound(text: str, model: str, number: int, files: Collection[str]) -> str:
    """Return the configuration `text` for the model folder `model`, serving exactly the version `number`.

    What may not be served is left out here, too: earlier uploads were stored as they came.
    """
    config = text_format.Parse(text, ModelConfig())
    restrict(config, files)
    config.name = model
    config.ClearField("version_policy")
    config.version_policy.specific.versions.append(number)
    for output in config.output:  # Triton looks for labels from the model's folder on; the archive is in the version's
        if output.label_filename:
            output.label_filename = f"{number}/{output.label_filename}"
    return str(text_format.MessageToString(config))


def to_text(config: Any) -> str:
    """Return a configuration as the content of a `config.pbtxt`."""
    return str(text_format.MessageToString(config))


def _dims(tensor: Tensor, batched: bool) -> list[int]:
    return [-1 if size is None else size for size in tensor.shape[1 if batched else 0 :]]
