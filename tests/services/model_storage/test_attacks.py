"""Attacks on the serving side, each done for real against the storage's own Triton: none may reach what it is after."""

from __future__ import annotations

import base64
import json
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import httpx
import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from local.triton import KEY_HEADER, TritonServer
from services.model_storage.settings import Settings
from tests.services.model_storage.support import (
    Storage,
    ask_scale,
    model_zip,
    new_triton,
    serving,
    settings_for,
)
from tests.support.tiny_onnx import scaling_config, scaling_model

PYTHON_CONFIG = {
    "name": "intruder",
    "backend": "python",
    "max_batch_size": 0,
    "input": [{"name": "input", "data_type": "TYPE_FP32", "dims": [1]}],
    "output": [{"name": "output", "data_type": "TYPE_FP32", "dims": [1]}],
    "instance_group": [{"kind": "KIND_CPU"}],
}


def intruder(marker: Path) -> bytes:
    """Return a Python model that leaves `marker` where it is run."""
    return f"open({str(marker)!r}, 'w').close()\nclass TritonPythonModel:\n    pass\n".encode()


def load_call(marker: Path) -> str:
    """Return the body of a load call that brings the model's code along."""
    code = base64.b64encode(intruder(marker)).decode()
    return json.dumps({"parameters": {"config": json.dumps(PYTHON_CONFIG), "file:1/model.py": code}})


@pytest.mark.parametrize("media_type", ["application/json", "text/plain", "application/x-www-form-urlencoded"])
@pytest.mark.parametrize("header", [{}, {KEY_HEADER: ""}, {KEY_HEADER: "guessed"}], ids=["none", "empty", "wrong"])
def test_a_load_call_by_http_that_brings_code_does_not_run_it(
    storage: Storage, tmp_path: Path, media_type: str, header: dict[str, str]
) -> None:
    answer = httpx.post(
        f"http://{storage.triton.http}/v2/repository/models/intruder/load",
        content=load_call(tmp_path / "was_here"),
        headers={"Content-Type": media_type, "Origin": "https://attacker.example", **header},
        timeout=30,
    )
    assert answer.status_code == 403, answer.text
    assert not (tmp_path / "was_here").exists()


def test_the_same_call_with_the_key_does_run_it(storage: Storage, tmp_path: Path) -> None:
    """Or the test above would pass where the attack is merely written wrong."""
    url = f"http://{storage.triton.http}/v2/repository/models/intruder"
    headers = storage.triton.http_headers
    httpx.post(f"{url}/load", content=load_call(tmp_path / "was_here"), headers=headers, timeout=30)
    httpx.post(f"{url}/unload", json={}, headers=headers, timeout=30)
    assert (tmp_path / "was_here").exists()


def test_a_load_call_by_grpc_that_brings_code_does_not_run_it(storage: Storage, tmp_path: Path) -> None:
    files = {"file:1/model.py": intruder(tmp_path / "was_here")}
    with tritonclient.grpc.InferenceServerClient(storage.triton.grpc) as client:
        for headers in (None, storage.triton.http_headers, dict.fromkeys(storage.triton.grpc_headers, "guessed")):
            with pytest.raises(InferenceServerException, match="restricted"):
                client.load_model("intruder", headers=headers, config=json.dumps(PYTHON_CONFIG), files=files)
    assert not (tmp_path / "was_here").exists()


@pytest.mark.parametrize(
    ("method", "path", "body"),
    [
        ("POST", "repository/index", {}),
        ("POST", "repository/models/{model}/load", {}),
        ("POST", "repository/models/{model}/unload", {}),
        ("POST", "systemsharedmemory/region/mine/register", {"key": "/mine", "offset": 0, "byte_size": 8}),
        ("POST", "systemsharedmemory/unregister", {}),
        ("GET", "systemsharedmemory/status", None),
        ("POST", "cudasharedmemory/unregister", {}),
        ("POST", "logging", {"log_file": "{folder}/log"}),
        ("POST", "trace/setting", {"trace_file": "{folder}/trace", "trace_level": ["TIMESTAMPS"]}),
        ("POST", "models/{model}/trace/setting", {"trace_file": "{folder}/trace"}),
    ],
)
def test_control_calls_by_http_are_refused_and_the_model_serves_on(
    storage: Storage, model: str, tmp_path: Path, method: str, path: str, body: dict[str, Any] | None
) -> None:
    storage.promote(model, storage.published(model, 2.0))
    content = json.dumps(body).replace("{folder}", str(tmp_path)) if body is not None else None
    url = f"http://{storage.triton.http}/v2/{path.format(model=model)}"
    answer = httpx.request(method, url, content=content, timeout=30)
    assert answer.status_code == 403, answer.text
    assert storage.scale_served(model) == 2.0
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "call",
    [
        lambda client, model: client.get_model_repository_index(),
        lambda client, model: client.unload_model(model),
        lambda client, model: client.register_system_shared_memory("mine", "/mine", 8),
        lambda client, model: client.unregister_system_shared_memory(),
        lambda client, model: client.unregister_cuda_shared_memory(),
        lambda client, model: client.update_log_settings({"log_verbose_level": 9}),
        lambda client, model: client.update_trace_settings(settings={"trace_level": ["TIMESTAMPS"]}),
        lambda client, model: client.update_trace_settings(model, {"trace_level": ["TIMESTAMPS"]}),
    ],
    ids=["index", "unload", "register", "unregister", "unregister_cuda", "log", "trace", "trace_of_model"],
)
def test_control_calls_by_grpc_are_refused_and_the_model_serves_on(
    storage: Storage, model: str, call: Callable[[Any, str], object]
) -> None:
    storage.promote(model, storage.published(model, 2.0))
    with (
        tritonclient.grpc.InferenceServerClient(storage.triton.grpc) as client,
        pytest.raises(InferenceServerException, match="restricted"),
    ):
        call(client, model)
    assert storage.scale_served(model) == 2.0


def test_what_a_client_of_the_models_needs_is_open(storage: Storage, model: str) -> None:
    storage.promote(model, storage.published(model, 2.0))
    for path in ("", "/health/ready", f"/models/{model}", f"/models/{model}/config", f"/models/{model}/stats"):
        assert httpx.get(f"http://{storage.triton.http}/v2{path}", timeout=30).status_code == 200, path
    with tritonclient.grpc.InferenceServerClient(storage.triton.grpc) as client:
        assert client.is_server_ready() and client.is_model_ready(model)
        assert client.get_model_metadata(model).name == client.get_model_config(model).config.name == model


def test_the_key_is_readable_by_its_owner_alone_and_another_at_each_start(own_triton: TritonServer) -> None:
    first = own_triton.key_file.read_text()
    assert own_triton.key_file.stat().st_mode & 0o777 == 0o600
    own_triton.stop(0.1)
    own_triton.start()
    own_triton.wait_ready()
    second = own_triton.key_file.read_text()
    assert first != second
    url = f"http://{own_triton.http}/v2/repository/index"
    codes = [httpx.post(url, json={}, headers={KEY_HEADER: key}).status_code for key in (first, second)]
    assert codes == [403, 200]


def test_the_storage_follows_a_triton_that_was_started_again_with_another_key(
    database_url: str, own_triton: TritonServer
) -> None:
    with serving(own_triton, settings_for(own_triton, database_url)) as storage:
        for scale, version in ((2.0, "0.0.1"), (3.0, "0.0.2")):
            assert storage.promote("digits", storage.published("digits", scale)).json()["version"] == version
        own_triton.stop(0.1)
        own_triton.start()
        own_triton.wait_ready()
        storage.service.production.reconcile()
        assert ask_scale(own_triton, "digits") == 3.0
        assert storage.client.post("/models/digits/rollback", json={}).status_code == 200
        assert ask_scale(own_triton, "digits") == 2.0


def test_without_its_key_the_storage_says_so_and_is_not_ready(database_url: str, own_triton: TritonServer) -> None:
    with serving(own_triton, settings_for(own_triton, database_url)) as storage:
        version = storage.published("digits", 2.0)
        key = own_triton.key_file.read_text()
        own_triton.key_file.unlink()
        answer = storage.promote("digits", version)
        assert answer.status_code == 503 and "there is no key for Triton" in answer.text
        assert storage.client.get("/health/ready").status_code == 503
        own_triton.key_file.write_text(key)
        assert storage.promote("digits", version).status_code == 200
        assert storage.client.get("/health/ready").status_code == 200


def test_key_files_that_do_not_fit_the_servers_are_refused() -> None:
    with pytest.raises(ValueError, match="one file for each address"):
        Settings(
            repository="/models", database_url="postgresql://", auth="off", triton_grpc="a:1,b:1", triton_key_file="/k"
        )


def environment_attack(folder: Path) -> str:
    """A Python environment whose activation leaves a marker; Triton's Python backends run it as a script."""
    (folder / "env" / "bin").mkdir(parents=True)
    (folder / "env" / "bin" / "activate").write_text(f"touch {folder / 'was_here'}\n")
    value = f'{{ string_value: "{folder / "env"}" }}'
    return f'parameters {{ key: "EXECUTION_ENV_PATH" value: {value} }}'


ATTACKS: dict[str, tuple[Callable[[Path], str], list[str]]] = {
    "a script of the backend's environment": (environment_attack, ["parameters.EXECUTION_ENV_PATH"]),
    "a file of the host as the model": (
        lambda folder: 'default_model_filename: "../../../../../../../../etc/passwd"',
        ["default_model_filename"],
    ),
    "a library": (
        lambda folder: f'model_operations {{ op_library_filename: "{folder}/library.so" }}',
        ["model_operations"],
    ),
    "labels of the host": (lambda folder: "", ["output.label_filename"]),
    "warm-up data of the host": (
        lambda folder: (
            'model_warmup { name: "w" batch_size: 1 inputs { key: "input" value: { data_type: TYPE_FP32 '
            'dims: [4] input_data_file: "../../../../../etc/passwd" } } }'
        ),
        ["model_warmup.inputs.input_data_file"],
    ),
}


@pytest.mark.parametrize("attack", ATTACKS)
def test_a_configuration_that_attacks_is_served_without_what_it_attacks_with_and_the_reply_says_so(
    storage: Storage, model: str, tmp_path: Path, attack: str, caplog: pytest.LogCaptureFixture
) -> None:
    make, left_out = ATTACKS[attack]
    config = scaling_config(model) + make(tmp_path)
    if attack == "labels of the host":
        config = config.replace('name: "output"', 'name: "output", label_filename: "../../../../../etc/passwd"')
    reply = storage.upload(model, model_zip(model, 2.0, **{"config.pbtxt": config}))
    assert reply.json() == {"version": "0.0.1", "left_out": left_out}
    assert all(name in caplog.text for name in left_out)
    assert storage.promote(model, "0.0.1").status_code == 200
    assert storage.scale_served(model) == 2.0
    served = (storage.repository / model / "config.pbtxt").read_text()
    for word in ("EXECUTION_ENV_PATH", "/", "passwd", "library", "default_model_filename"):
        assert word not in served
    assert not (tmp_path / "was_here").exists()
    again = storage.upload(model, model_zip(model, 2.0, **{"config.pbtxt": config})).json()
    assert again["left_out"] == left_out and again["already_published"]


def test_an_attacking_configuration_that_was_stored_by_an_earlier_release_is_served_without_it(
    storage: Storage, model: str, tmp_path: Path
) -> None:
    version = storage.published(model, 2.0)
    stored = storage.repository / model / "1" / "config.pbtxt"
    text = stored.read_text() + environment_attack(tmp_path)
    stored.unlink()
    stored.write_text(text)
    assert storage.promote(model, version).status_code == 200
    assert "EXECUTION_ENV_PATH" not in (storage.repository / model / "config.pbtxt").read_text()
    assert not (tmp_path / "was_here").exists()


def test_that_configuration_does_run_the_script_where_nobody_cuts_it(own_triton: TritonServer, tmp_path: Path) -> None:
    """Or the tests above would pass where the attack is merely written wrong."""
    folder = own_triton.repository / "victim" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(scaling_model(2.0))
    (folder.parent / "config.pbtxt").write_text(scaling_config("victim") + environment_attack(tmp_path))
    with tritonclient.grpc.InferenceServerClient(own_triton.grpc) as client, suppress(InferenceServerException):
        client.load_model("victim", headers=own_triton.grpc_headers)
    assert (tmp_path / "was_here").exists()


@pytest.fixture
def own_triton(tmp_path: Path) -> Iterator[TritonServer]:
    """A Triton that a test may stop."""
    server = new_triton(tmp_path)
    server.start()
    server.wait_ready()
    yield server
    server.stop(0.1)
