"""What is left of an uploaded config.pbtxt: whatever it says, only what is known to be harmless is served."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator, Mapping
from typing import Any, Literal

import pytest
from google.protobuf import text_format
from google.protobuf.descriptor import Descriptor, FieldDescriptor
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tritonclient.grpc.model_config_pb2 import ModelConfig

from conversion_jobs.onnx.graph import GraphInterface, TensorInterface
from conversion_jobs.triton.model_config import Device
from conversion_jobs.triton.model_config import model_config as packaged
from nightshift_common.options.serving import ServingOptions
from services.model_storage.repository import model_config
from services.model_storage.repository.model_config import FIELDS

FILES = ["model.onnx", "labels.txt", "meta.json"]
SERVED_FIELDS = {
    "name", "platform", "backend", "version_policy", "max_batch_size", "input", "output", "dynamic_batching",
    "instance_group", "model_warmup", "optimization", "parameters", "response_cache",
}  # fmt: skip
TENSOR_NAMES = {"input.name", "output.name", "model_warmup.inputs key"}  # a graph may well have a slash in them
WORDS = {
    "name", "platform", "backend", "model_warmup.name", "parameters key", "parameters.string_value",
    "optimization.execution_accelerators.gpu_execution_accelerator.name",
    "optimization.execution_accelerators.gpu_execution_accelerator.parameters key",
    "optimization.execution_accelerators.gpu_execution_accelerator.parameters",
    "optimization.execution_accelerators.cpu_execution_accelerator.name",
    "optimization.execution_accelerators.cpu_execution_accelerator.parameters key",
    "optimization.execution_accelerators.cpu_execution_accelerator.parameters",
}  # fmt: skip
texts = st.sampled_from([
    "", "word", "../../../etc/passwd", "/etc/passwd", "..", "labels.txt", "1/labels.txt", "a/../labels.txt",
    "$$TRITON_MODEL_DIRECTORY/1/env.tar.gz", "a\nb", "library.so", "tensorrt", "cuda", "EXECUTION_ENV_PATH",
    "intra_op_thread_count", "precision_mode", "trt_engine_cache_path", "4",
])  # fmt: skip
numbers = st.integers(1, 9)


@st.composite
def messages(draw: st.DrawFn, descriptor: Descriptor, depth: int = 0) -> dict[str, Any]:
    """Return arguments for a message: some of its fields, each with some value; of a oneof one field at most."""
    if not descriptor.fields:
        return {}
    taken: set[str] = set()
    found = {}
    chosen = draw(
        st.lists(st.sampled_from(list(descriptor.fields)), max_size=4 if depth else 8, unique_by=lambda f: f.name)
    )
    for field in chosen:
        group = field.containing_oneof
        if (group and group.name in taken) or (field.message_type and depth > 4):
            continue
        taken |= {group.name} if group else set()
        found[field.name] = draw(_values(field, depth))
    return found


def _values(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type and field.message_type.GetOptions().map_entry:
        parts = field.message_type.fields_by_name
        return st.dictionaries(_single(parts["key"], depth), _single(parts["value"], depth), min_size=1, max_size=2)
    single = _single(field, depth)
    return st.lists(single, min_size=1, max_size=2) if field.is_repeated else single


def _single(field: FieldDescriptor, depth: int) -> st.SearchStrategy[Any]:
    if field.message_type:
        return messages(field.message_type, depth + 1)
    if field.enum_type:
        return st.sampled_from([value.number for value in field.enum_type.values])
    return {
        FieldDescriptor.CPPTYPE_STRING: texts,
        FieldDescriptor.CPPTYPE_BOOL: st.booleans(),
    }.get(field.cpp_type, numbers)  # fmt: skip


def leaves(message: Any, where: str = "") -> Iterator[tuple[str, Any]]:
    """Yield the path and value of everything that is set."""
    for field, value in message.ListFields():
        path = f"{where}{field.name}"
        if isinstance(value, Mapping):
            for key, entry in value.items():
                yield f"{path} key", key
                yield from leaves(entry, f"{path}.") if hasattr(entry, "ListFields") else [(path, entry)]
        elif field.message_type:
            for entry in value if field.is_repeated else [value]:
                yield path, None
                yield from leaves(entry, f"{path}.")
        else:
            yield from ((path, entry) for entry in (value if field.is_repeated else [value]))


@settings(max_examples=200, deadline=None, suppress_health_check=list(HealthCheck))
@given(messages(ModelConfig.DESCRIPTOR))
def test_whatever_is_uploaded_only_known_fields_and_no_path_are_served(fields: dict[str, Any]) -> None:
    uploaded = ModelConfig(**fields | {"name": "digits", "platform": "onnxruntime_onnx", "backend": ""})
    text = text_format.MessageToString(uploaded)
    config, left_out = model_config.read(text, "digits", "onnx", FILES)
    stored = model_config.to_text(config)
    for kept in (stored, text):  # as it is stored now, and as an earlier release stored it
        served = text_format.Parse(model_config.bound(kept, "digits", 3, FILES), ModelConfig())
        assert {field.name for field, _ in served.ListFields()} <= SERVED_FIELDS
        for path, value in leaves(served):
            if isinstance(value, str) and path not in TENSOR_NAMES:
                if path == "output.label_filename":
                    assert value.removeprefix("3/") in FILES
                else:
                    assert path in WORDS and "/" not in value and "." not in value and "\n" not in value, path
        assert list(served.version_policy.specific.versions) == [3]
    before, after = (
        Counter(path.removesuffix(" key").removesuffix(".string_value") for path, _ in leaves(message))
        for message in (uploaded, config)
    )
    for path in before - after:
        assert any(_tells(name, path) for name in left_out), f"{path} is gone; said is {left_out}"


def _tells(left_out: str, path: str) -> bool:
    whole = left_out == "model_warmup.inputs.input_data_file" and path.startswith("model_warmup")
    return whole or left_out == path or path.startswith(f"{left_out}.") or left_out.startswith(f"{path}.")


def test_what_is_kept_as_a_whole_holds_no_text() -> None:
    def whole(fields: Mapping[str, Any], descriptor: Descriptor) -> Iterator[Descriptor]:
        for name, below in fields.items():
            message = descriptor.fields_by_name[name].message_type  # and there is such a field
            if message is None or name == "parameters":  # which has a list of its own
                continue
            if message.GetOptions().map_entry:
                message = message.fields_by_name["value"].message_type
            yield from [message] if below is True else whole(below, message)

    def text_fields(descriptor: Descriptor) -> Iterator[str]:
        for field in descriptor.fields:
            if field.cpp_type == FieldDescriptor.CPPTYPE_STRING:
                yield field.full_name
            if field.message_type:
                yield from text_fields(field.message_type)

    found = list(whole(FIELDS, ModelConfig.DESCRIPTOR))
    assert len(found) > 3
    assert [name for message in found for name in text_fields(message)] == []


@pytest.mark.parametrize("target", ["onnx", "tensorrt"])
@pytest.mark.parametrize("batch", [None, 4])
@pytest.mark.parametrize("size", [None, 32])
@pytest.mark.parametrize("has_labels", [True, False])
def test_the_configurations_of_our_own_packages_come_through_unchanged(
    target: Literal["onnx", "tensorrt"], batch: int | None, size: int | None, has_labels: bool
) -> None:
    tensors = [TensorInterface(name, "float32", (batch, 3, size)) for name in ("a/input", "output")]
    graph = GraphInterface((tensors[0],), (tensors[1],), 17, {})
    devices: tuple[Device, ...] = ("auto", "cpu", "gpu")
    served = ServingOptions(
        instances=2, preferred_batch_sizes=[2] if batch is None else [], max_queue_size=64, queue_timeout_ms=50,
        timeout_action="delay", response_cache=True, intra_op_threads=2 if target == "onnx" else None,
    )  # fmt: skip
    for device, serving in itertools.product(devices, (ServingOptions(), served)):
        config = packaged(graph, "digits", target=target, device=device, has_labels=has_labels, serving=serving)
        found, left_out = model_config.read(text_format.MessageToString(config), "digits", target, FILES)
        assert found == config and left_out == []


def test_what_people_tune_comes_through_unchanged() -> None:
    text = """
        name: "digits" backend: "onnxruntime" max_batch_size: 8
        input [{ name: "a/b:0", data_type: TYPE_FP32, dims: [3], reshape { shape: [3, 1] } }]
        output [{ name: "c", data_type: TYPE_FP32, dims: [2], label_filename: "labels.txt" }]
        instance_group [{ kind: KIND_GPU, count: 2, gpus: [0, 1] }]
        dynamic_batching { preferred_batch_size: [4, 8] max_queue_delay_microseconds: 100 priority_levels: 2
          default_queue_policy { timeout_action: DELAY default_timeout_microseconds: 5000 max_queue_size: 64 }
          default_priority_level: 1 priority_queue_policy { key: 1 value { max_queue_size: 9 } } }
        response_cache { enable: true }
        model_warmup [{ name: "one", batch_size: 1, inputs { key: "a/b:0" value { data_type: TYPE_FP32 dims: 3
          random_data: true } } }]
        optimization { graph { level: 1 } cuda { graphs: true } execution_accelerators {
          gpu_execution_accelerator { name: "tensorrt" parameters { key: "precision_mode" value: "FP16" } } } }
        parameters { key: "intra_op_thread_count" value { string_value: "2" } }
    """
    config, left_out = model_config.read(text, "digits", "onnx", FILES)
    assert config == text_format.Parse(text, ModelConfig()) and left_out == []
