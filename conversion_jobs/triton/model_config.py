"""Triton's `config.pbtxt`, generated from a graph's interface through Triton's own schema."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

from conversion_jobs.onnx.graph import GraphInterface, TensorInterface
from jobkit.errors import ConfigurationError, DataValidationError
from nightshift_common.options.serving import ServingOptions

Device = Literal["auto", "cpu", "gpu"]
PLATFORMS = {"onnx": "onnxruntime_onnx", "tensorrt": "tensorrt_plan"}
LABELS_FILE = "labels.txt"
# Waiting this long for a batch costs a lone request little beside its inference, and lets bursts be computed together.
QUEUE_DELAY_MICROSECONDS = 500
_KINDS = {"auto": "KIND_AUTO", "cpu": "KIND_CPU", "gpu": "KIND_GPU"}
_TYPES = {
    "bool": "TYPE_BOOL",
    "uint8": "TYPE_UINT8",
    "int8": "TYPE_INT8",
    "int32": "TYPE_INT32",
    "int64": "TYPE_INT64",
    "float16": "TYPE_FP16",
    "float32": "TYPE_FP32",
    "float64": "TYPE_FP64",
}


def model_config(
    graph: GraphInterface,
    name: str,
    *,
    target: Literal["onnx", "tensorrt"] = "onnx",
    max_batch_size: int = 8,
    device: Device = "auto",
    has_labels: bool = True,
    profiles: int = 1,
    serving: ServingOptions | None = None,
) -> Any:
    """Return the `ModelConfig` under which Triton serves a graph.

    A graph with a free batch dimension is served with `max_batch_size` and dynamic batching, its dims without the
    batch; any other as it is, with `max_batch_size: 0`. The labels belong to the first output. Warm-up runs the
    smallest and the largest batch before the model counts as ready. `serving` says the rest.

    Raises:
        ConfigurationError: `serving` asks for what this graph or target does not have.
        DataValidationError: a tensor has a type that Triton does not know.
    """
    from tritonclient.grpc import model_config_pb2 as schema

    batched = graph.has_free_batch
    config = schema.ModelConfig(
        name=name, platform=PLATFORMS[target], max_batch_size=max_batch_size if batched else 0,
        version_policy=schema.ModelVersionPolicy(latest=schema.ModelVersionPolicy.Latest(num_versions=1)),
    )  # fmt: skip
    for tensor in graph.inputs:
        config.input.add(name=tensor.name, data_type=_data_type(tensor), dims=_dims(tensor, batched))
    for tensor in graph.outputs:
        config.output.add(name=tensor.name, data_type=_data_type(tensor), dims=_dims(tensor, batched))
    if has_labels:
        config.output[0].label_filename = LABELS_FILE
    serving = serving or ServingOptions()
    group = config.instance_group.add(kind=_KINDS[device], count=serving.instances or 1)
    if profiles > 1:  # Triton takes, for each batch, the one that is nearest to it
        group.profile.extend(map(str, range(profiles)))
    _add_queue(config, serving)
    if serving.intra_op_threads is not None:
        if target != "onnx":
            raise ConfigurationError("--intra_op_threads are ONNX Runtime's: a plan has none")
        config.parameters["intra_op_thread_count"].string_value = str(serving.intra_op_threads)
    if serving.response_cache:
        config.response_cache.enable = True
    if all(size is not None for tensor in graph.inputs for size in tensor.shape[1:]):
        for batch in sorted({1, config.max_batch_size}) if batched else [0]:
            warmup = config.model_warmup.add(name=f"batch_{batch or 'as_built'}", batch_size=batch)
            for tensor in graph.inputs:
                warmup.inputs[tensor.name].CopyFrom(
                    schema.ModelWarmup.Input(data_type=_data_type(tensor), dims=_dims(tensor, batched), zero_data=True)
                )
    return config


def _add_queue(config: Any, serving: ServingOptions) -> None:
    """Say what waits, and for how long: Triton keeps a queue, with or without batches, for its dynamic batcher."""
    from tritonclient.grpc import model_config_pb2 as schema

    queue = config.dynamic_batching
    if config.max_batch_size:
        queue.SetInParent()
        delay = serving.queue_delay_us
        queue.max_queue_delay_microseconds = QUEUE_DELAY_MICROSECONDS if delay is None else delay
        queue.preferred_batch_size.extend(sorted(set(serving.preferred_batch_sizes)))
        if too_large := [size for size in queue.preferred_batch_size if size > config.max_batch_size]:
            raise ConfigurationError(
                f"--preferred_batch_sizes {too_large} are above the largest batch, {config.max_batch_size}"
            )
    elif serving.preferred_batch_sizes or serving.queue_delay_us is not None:
        raise ConfigurationError(
            "the graph's batch is fixed: --preferred_batch_sizes and --queue_delay_us have nothing to put together"
        )
    else:
        config.ClearField("dynamic_batching")
    if serving.max_queue_size or serving.queue_timeout_ms:
        policy = config.dynamic_batching.default_queue_policy
        policy.max_queue_size = serving.max_queue_size
        policy.default_timeout_microseconds = round(serving.queue_timeout_ms * 1000)
        policy.timeout_action = schema.ModelQueuePolicy.TimeoutAction.Value(serving.timeout_action.upper())


def _dims(tensor: TensorInterface, batched: bool) -> list[int]:
    """Return Triton's dims: -1 for a free size; a tensor that is nothing but its batch is [1]."""
    sizes = tensor.shape[1:] if batched else tensor.shape
    return [-1 if size is None else size for size in sizes] or [1]


def _data_type(tensor: TensorInterface) -> str:
    if tensor.dtype not in _TYPES:
        raise DataValidationError(f"Triton cannot serve {tensor}: it knows {', '.join(_TYPES)}")
    return _TYPES[tensor.dtype]


def to_text(config: Any) -> str:
    """Return a configuration as `config.pbtxt`."""
    from google.protobuf import text_format  # type: ignore[import-untyped]

    return str(text_format.MessageToString(config))


def parse(text: str, where: str = "config.pbtxt") -> Any:
    """Return the `ModelConfig` in `text`.

    Raises:
        ConfigurationError: Triton's schema has no such field, or a value is wrong; the message has line and column.
    """
    from google.protobuf import text_format
    from tritonclient.grpc import model_config_pb2 as schema

    try:
        return text_format.Parse(text, schema.ModelConfig())
    except text_format.ParseError as error:
        raise ConfigurationError(f"{where}:{error}") from error


def contradictions(config: Any, graph: GraphInterface, folder: Path | None = None) -> list[str]:
    """Return everything in which a configuration contradicts the graph that it is for; nothing where it fits.

    With `folder`, the model's folder in a repository, its labels files are looked for too.
    """
    batched = config.max_batch_size > 0
    problems = []
    if batched and not graph.has_free_batch:
        problems.append(f"max_batch_size is {config.max_batch_size}, but the graph's batch is fixed: it has to be 0")
    for kind, configured, known in (("input", config.input, graph.inputs), ("output", config.output, graph.outputs)):
        problems += _tensor_contradictions(kind, configured, known, batched)
    if folder is not None:
        labels = [output.label_filename for output in config.output if output.label_filename]
        problems += [f"the labels file {name} is missing" for name in labels if not (folder / name).is_file()]
    return problems


def _tensor_contradictions(kind: str, configured: Any, known: Sequence[TensorInterface], batched: bool) -> list[str]:
    from tritonclient.grpc import model_config_pb2 as schema

    tensors = {tensor.name: tensor for tensor in known}
    problems = [] if configured else [f"there is no {kind}"]
    for entry in configured:
        tensor = tensors.get(entry.name)
        if tensor is None:
            problems.append(f"{kind} {entry.name!r} is not in the graph, which has {', '.join(tensors)}")
            continue
        written = schema.DataType.Name(entry.data_type)
        if written != _data_type(tensor):
            problems.append(f"{kind} {entry.name!r} is {written}, in the graph {_data_type(tensor)}")
        wanted = _dims(tensor, batched)
        dims = list(entry.dims)
        if len(dims) != len(wanted) or any(d != w and -1 not in (d, w) for d, w in zip(dims, wanted, strict=True)):
            problems.append(f"{kind} {entry.name!r} has dims {dims}, in the graph {wanted}")
    if kind == "input":
        named = {entry.name for entry in configured}
        problems += [f"input {name!r} of the graph is not configured" for name in tensors if name not in named]
    return problems
