"""The CPU Triton: a real server process that loads, serves, reloads and stops."""

from __future__ import annotations

import os
import shutil
import signal
import sysconfig
import threading
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest
import tritonclient.grpc
import tritonclient.http
from tritonclient.utils import InferenceServerException

from local import triton
from local.settings import LocalStackError
from local.triton import TritonServer
from tests.support.servers import free_ports
from tests.support.tiny_onnx import scaling_config, scaling_model


def new_server(folder: Path) -> TritonServer:
    return TritonServer(folder / "models", folder / "state", *free_ports(3), log=folder / "triton.log")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    with new_server(tmp_path_factory.mktemp("triton")) as running:
        running.wait_ready()
        yield running


def add_version(server: TritonServer, model: str, version: int, content: bytes, config: str | None = None) -> None:
    folder = server.repository / model / str(version)
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(content)
    (folder.parent / "config.pbtxt").write_text(config or scaling_config(model))


def load(server: TritonServer, model: str) -> None:
    with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
        client.load_model(model, headers=server.grpc_headers)


def infer(server: TritonServer, model: str, value: np.ndarray) -> np.ndarray:
    with tritonclient.http.InferenceServerClient(server.http) as client:
        tensor = tritonclient.http.InferInput("input", list(value.shape), "FP32")
        tensor.set_data_from_numpy(value)
        return client.infer(model, [tensor]).as_numpy("output")


def test_a_model_is_loaded_on_request_and_answers_with_its_own_numbers(server: TritonServer) -> None:
    add_version(server, "doubles", 1, scaling_model(2.0))
    load(server, "doubles")
    value = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(infer(server, "doubles", value), value * 2)


def test_a_broken_new_version_is_refused_and_the_old_one_serves_on(server: TritonServer) -> None:
    add_version(server, "survivor", 1, scaling_model(2.0))
    load(server, "survivor")
    add_version(server, "survivor", 2, b"this is no model")
    with pytest.raises(InferenceServerException, match=r"(?i)onnx|protobuf"):
        load(server, "survivor")
    assert server.is_ready()
    value = np.ones((1, 4), np.float32)
    np.testing.assert_array_equal(infer(server, "survivor", value), value * 2)
    shutil.rmtree(server.repository / "survivor" / "2")
    add_version(server, "survivor", 3, scaling_model(3.0))
    load(server, "survivor")
    np.testing.assert_array_equal(infer(server, "survivor", value), value * 3)


@pytest.mark.parametrize(
    ("config", "says"),
    [
        (
            scaling_config("wrong").replace('"input"', '"picture"'),
            "input 'picture' is not in the model; it has: .'input'.",
        ),
        (
            scaling_config("wrong", width=5),
            r"has the shape \['N', 4\] in the model, the configuration says \[5\] after",
        ),
        (scaling_config("wrong").replace("TYPE_FP32", "TYPE_INT64"), r"tensor\(float\) in the model, TYPE_INT64"),
    ],
)
def test_a_configuration_that_contradicts_the_model_is_refused_with_the_reason(
    server: TritonServer, config: str, says: str
) -> None:
    shutil.rmtree(server.repository / "wrong", ignore_errors=True)
    add_version(server, "wrong", 1, scaling_model(2.0), config)
    with pytest.raises(InferenceServerException, match=says):
        load(server, "wrong")


def test_requests_batched_together_each_get_their_own_answer(server: TritonServer) -> None:
    config = scaling_config("batched").replace(
        "dynamic_batching { }", "dynamic_batching { max_queue_delay_microseconds: 100000 }"
    )
    add_version(server, "batched", 1, scaling_model(10.0), config)
    load(server, "batched")
    answers: dict[int, np.ndarray] = {}

    def ask(index: int) -> None:
        answers[index] = infer(server, "batched", np.full((1 + index % 2, 4), index, np.float32))

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(5)]
    [thread.start() for thread in threads]
    [thread.join(20) for thread in threads]
    for index in range(5):
        np.testing.assert_array_equal(answers[index], np.full((1 + index % 2, 4), index * 10, np.float32))
    with tritonclient.http.InferenceServerClient(server.http) as client:
        statistics = client.get_inference_statistics("batched")["model_stats"][0]
    assert statistics["execution_count"] < statistics["inference_count"], "nothing was batched"


def test_stopping_leaves_no_process_and_no_shared_memory_even_after_a_kill(tmp_path: Path) -> None:
    server = new_server(tmp_path)
    add_version(server, "doubles", 1, scaling_model(2.0))
    for ending in (signal.SIGKILL, signal.SIGTERM):
        server.start()
        server.wait_ready()
        load(server, "doubles")
        infer(server, "doubles", np.ones((1, 4), np.float32))
        group = [p for p in psutil.process_iter() if os.getpgid(p.pid) == server._process.pid]
        assert len(group) >= 2, "the server has a stub beside it"
        server._process.send_signal(ending)
        server.stop()
        assert psutil.wait_procs(group, timeout=5)[1] == []
        with pytest.raises(LocalStackError, match="did not answer"):
            server.wait_ready(0.1)
    left = [p.name for p in Path("/dev/shm").iterdir() if p.name.startswith(server._shared_memory_prefix())]
    assert left == []


def test_a_taken_port_is_reported_with_the_servers_log(server: TritonServer, tmp_path: Path) -> None:
    second = TritonServer(
        tmp_path / "models", tmp_path / "state", server.http_port, *free_ports(2), log=tmp_path / "triton.log"
    )
    second.start()
    try:
        second._process.wait(20)
        assert "Address already in use" in second.log.read_text() or str(server.http_port) in second.log.read_text()
    finally:
        second.stop()


def test_a_python_without_a_shared_library_is_named_as_the_cause(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(sysconfig, "get_config_var", {"LIBDIR": str(tmp_path)}.get)
    with pytest.raises(LocalStackError, match=r"libpython3\.11\.so\.1\.0.*--enable-shared"):
        triton.libpython_folder()


def test_a_missing_environment_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(triton, "ENVIRONMENT", tmp_path)
    with pytest.raises(LocalStackError, match=r"local\.bootstrap triton"):
        new_server(tmp_path).command()


def test_an_assembled_backend_directory_is_reused_and_repaired(tmp_path: Path) -> None:
    folder = triton.assemble_backends(tmp_path / "backends")
    before = (folder / "python" / "libtriton_python.so").stat().st_ino
    assert (triton.assemble_backends(folder) / "python" / "libtriton_python.so").stat().st_ino == before
    (folder / "made-from").write_text("an older wheel")
    assert (triton.assemble_backends(folder) / "onnxruntime" / "model.py").read_text() == (
        triton.BACKENDS / "onnxruntime" / "model.py"
    ).read_text()


def test_a_full_queue_refuses_at_once_and_a_late_request_is_refused_when_it_is_late(server: TritonServer) -> None:
    waiting = "dynamic_batching { preferred_batch_size: [8] max_queue_delay_microseconds: 300000 default_queue_policy"
    full, late = (
        f"{waiting} {{ {limit} }} }}" for limit in ("max_queue_size: 2", "default_timeout_microseconds: 1000")
    )
    for name, policy, message, served in (
        ("full", full, "Exceeds maximum queue size", 2),
        ("late", late, "Request timeout expired", 0),
    ):
        add_version(server, name, 1, scaling_model(2.0), scaling_config(name).replace("dynamic_batching { }", policy))
        load(server, name)
        said: list[str] = []

        def ask(model: str, answers: list[str]) -> None:
            try:
                infer(server, model, np.ones((1, 4), np.float32))
                answers.append("served")
            except InferenceServerException as error:
                answers.append(str(error))

        threads = [threading.Thread(target=ask, args=(name, said)) for _ in range(5)]
        [thread.start() for thread in threads]
        [thread.join(20) for thread in threads]
        assert said.count("served") == served
        assert sum(message in text for text in said) == 5 - served


def test_an_instance_runs_on_as_many_threads_as_its_configuration_says(server: TritonServer) -> None:
    def threads_added_by(name: str, count: int) -> int:
        parameter = f'parameters {{ key: "intra_op_thread_count" value {{ string_value: "{count}" }} }}'
        add_version(server, name, 1, scaling_model(2.0), scaling_config(name) + parameter)
        before = set(stubs(server))
        load(server, name)
        (stub,) = set(stubs(server)) - before
        return len(list(Path(f"/proc/{stub}/task").iterdir()))

    assert threads_added_by("four", 4) - threads_added_by("one", 1) == 3


def stubs(server: TritonServer) -> list[int]:
    """Return the processes in which the server's backend runs its models."""
    assert server._process is not None
    own = f"nightshift_{server._shared_memory_prefix().removeprefix('nightshift_')}"
    return [
        int(path.parent.name)
        for path in Path("/proc").glob("[0-9]*/cmdline")
        if own in (text := path.read_bytes().decode(errors="replace")) and "stub" in text.partition("\0")[0]
    ]


def test_answers_come_from_the_cache_and_a_new_version_has_its_own(tmp_path: Path) -> None:
    server = TritonServer(
        tmp_path / "models", tmp_path / "state", *free_ports(3), log=tmp_path / "triton.log", cache_mib=1
    )
    with server:
        server.wait_ready()

        def computed(name: str) -> tuple[int, int]:
            with tritonclient.http.InferenceServerClient(server.http) as client:
                (found,) = client.get_inference_statistics(name)["model_stats"]
            return found["inference_count"], found["inference_stats"]["cache_hit"]["count"]

        caching = "response_cache { enable: true }"
        for version, factor in ((1, 2.0), (2, 3.0)):
            add_version(server, "cached", version, scaling_model(factor), scaling_config("cached") + caching)
            load(server, "cached")
            for _ in range(3):
                answer = infer(server, "cached", np.ones((1, 4), np.float32))
                np.testing.assert_array_equal(answer, np.full((1, 4), factor, np.float32))
            assert computed("cached") == (1, 2)
        width = 1 << 19  # an answer of 2 MiB, larger than the cache
        add_version(server, "wide", 1, scaling_model(2.0, width), scaling_config("wide", width) + caching)
        load(server, "wide")
        for _ in range(2):
            assert infer(server, "wide", np.ones((1, width), np.float32))[0, -1] == 2.0
        assert computed("wide") == (2, 0), "what does not fit is computed each time"
