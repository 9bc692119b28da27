"""`make predict`: an answer, or a sentence that says why there is none."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from io import BytesIO
from pathlib import Path

import pytest
import tritonclient.grpc

from local.settings import ROOT
from local.triton import TritonServer
from services.model_storage.picture_entry.files import entry_files
from tests.support.servers import free_ports
from tests.support.tiny_pictures import gray_png, picture_zip

CONFIG = """name: "pixels"
platform: "onnxruntime_onnx"
max_batch_size: 4
input [{ name: "input", data_type: TYPE_FP32, dims: [1, 4, 4] }]
output [{ name: "probabilities", data_type: TYPE_FP32, dims: [16] }]
"""


@pytest.fixture(scope="module")
def triton(tmp_path_factory: pytest.TempPathFactory) -> Iterator[TritonServer]:
    """A Triton with a model whose answer is its input, and its entry."""
    folder = tmp_path_factory.mktemp("predict")
    server = TritonServer(folder / "models", folder / "state", *free_ports(3), log=folder / "triton.log")
    with zipfile.ZipFile(BytesIO(picture_zip())) as archive:
        graph, spec = archive.read("model.onnx"), json.loads(archive.read("model.json"))
    spec |= {"version": "0.0.5", "max_batch_size": 4, "input_name": "input", "output_name": "probabilities"}
    spec["preprocessing"] |= {"resize": "letterbox", "pad_value": 0}
    files = {"pixels/1/model.onnx": graph, "pixels/config.pbtxt": CONFIG.encode()}
    entry = entry_files("pixels_jpeg", "pixels", 1, {1: spec})
    for path, content in {**files, **{f"pixels_jpeg/{path}": content for path, content in entry.items()}}.items():
        target = server.repository / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(content)
    with server:
        server.wait_ready()
        with tritonclient.grpc.InferenceServerClient(server.grpc) as client:
            for name in ("pixels", "pixels_jpeg"):
                client.load_model(name, headers=server.grpc_headers)
        yield server


def predict(folder: Path, port: int, model: str, picture: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "local", "predict", "--model", model, "--picture", picture]
    environment = os.environ | {
        "NIGHTSHIFT_STATE": str(folder / "state"), "NIGHTSHIFT_TRITON_PORT": str(port), "PYTHONPATH": str(ROOT),
    }  # fmt: skip
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True)


def test_a_file_beside_the_caller_is_answered_with_the_likeliest_classes(triton: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "7 of mine.png").write_bytes(gray_png(51))
    done = predict(tmp_path, triton.http_port, "pixels", "7 of mine.png")
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 of mine.png: pixel 0 (version 0.0.5" in done.stdout
    assert "20.0%" in done.stdout


def test_what_is_wrong_is_said_in_a_sentence(triton: TritonServer, tmp_path: Path) -> None:
    (tmp_path / "no.png").write_bytes(b"no picture")
    for model, picture, says in (
        ("", "", "say which model and which picture: make predict MODEL=digits PICTURE=7.jpg"),
        ("pixels", "none.png", "none.png cannot be read: No such file or directory"),
        ("pixels", "no.png", "it is no picture that can be decoded"),
    ):
        done = predict(tmp_path, triton.http_port, model, picture)
        assert done.returncode == 1
        assert says in done.stdout and len(done.stdout.splitlines()) == 1, done.stdout
    away = predict(tmp_path, free_ports(1)[0], "pixels", "no.png")
    assert "Triton does not run here" in away.stdout
