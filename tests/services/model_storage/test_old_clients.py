"""The lines of the older service's clients, run against a double of it and against this one: the same answers."""

import io
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from local.triton import TritonServer
from tests.services.model_storage.old_service import old_config, old_service
from tests.services.model_storage.support import Storage, running_triton, serving, settings_for, zip_of
from tests.support.tiny_onnx import scaling_config, scaling_model

MODEL = {"model.onnx": scaling_model(2.0), "meta.json": "{}"}
PYTHON_MODEL = """
import numpy as np
import triton_python_backend_utils as utils

class TritonPythonModel:
    def execute(self, requests):
        answers = []
        for request in requests:
            given = utils.get_input_tensor_by_name(request, "input").as_numpy()
            answers.append(utils.InferenceResponse([utils.Tensor("output", given * np.float32(6))]))
        return answers
"""


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[httpx.Client, TritonServer]]:
    with running_triton(tmp_path_factory.mktemp("old")) as triton, old_service(triton) as client:
        yield client, triton


def form(semantic: str | None, archive: bytes, field: str = "src_file", **more: Any) -> dict[str, Any]:
    named = {"model_version": semantic} if semantic else {}
    return {"files": {field: ("model.zip", archive)}, "data": {"model_name": "season", **named, **more}}


NEW = "/upload_new_version/"
LINES: list[tuple[str, str, dict[str, Any]]] = [
    ("GET", "/get_version/season", {}),
    ("GET", "/get_meta/season", {}),
    ("POST", "/set_version/season", {"params": {"version": 1}}),
    ("POST", NEW, form("0.0.1", zip_of(MODEL))),
    ("POST", NEW, form("0.0.1", zip_of(MODEL))),
    ("PLACE", "config.pbtxt", {}),
    ("GET", "/get_version/season", {}),
    ("GET", "/get_meta/season", {}),
    ("POST", NEW, form("1.0", zip_of({f"season/{name}": content for name, content in MODEL.items()}))),
    ("POST", NEW, form("v1.0.0", zip_of(MODEL | {".DS_Store": "x", "__MACOSX/._meta.json": "x", "extra/a.txt": "a"}))),
    ("POST", NEW, form("1", zip_of(MODEL | {"meta.json": '{"model_version": "9.9.9", "labels": ["a"]}'}))),
    ("POST", NEW, form("1.0.0-rc1", zip_of(MODEL), comment="a comment" * 1000, sha="of nothing")),
    ("POST", NEW, form("2.0.0", zip_of({"model.pt": "a torchscript", "meta.json": "{}"}))),
    ("POST", NEW, form(None, zip_of(MODEL)) | {"data": {"model_name": ["x", "season"], "model_version": ["", "3.0"]}}),
    ("POST", "/set_semantic_version/", {"params": {"model_name": "season", "semantic_version": "1"}}),
    ("POST", "/load_model/season", {}),
    ("GET", "/get_version/season", {}),
    ("GET", "/get_meta/season", {}),
    ("POST", "/set_version/season", {"params": {"version": 3}}),
    ("POST", "/load_model/season", {}),
    ("GET", "/get_version/season", {}),
    ("GET", "/get_meta/season", {}),
    ("POST", "/set_semantic_version/", {"params": {"model_name": "season", "semantic_version": "7.0"}}),
    ("POST", "/upload_model", form(None, zip_of(MODEL), "file", version="9")),
    ("POST", "/upload_model", form(None, b"no zip at all", "file", version="10")),
    ("POST", "/unload_model/season", {}),
    ("GET", "/get_version/none", {}),
    ("GET", "/get_meta/none", {}),
    ("POST", "/set_version/none", {"params": {"version": 1}}),
]  # fmt: skip


def answers(client: httpx.Client, repository: Path) -> list[tuple[int, Any]]:
    found: list[tuple[int, Any]] = []
    for method, path, options in LINES:
        if method == "PLACE":
            target = repository / "season" / path
            if not target.exists():  # the older service makes none: people placed it
                target.write_text(old_config(scaling_config("season")))
            continue
        reply = client.request(method, path, **options)
        found.append((reply.status_code, reply.json()))
    return found


def test_the_old_lines_get_the_old_answers(
    old: tuple[httpx.Client, TritonServer], database_url: str, tmp_path: Path
) -> None:
    client, triton = old
    before = answers(client, triton.repository)
    with running_triton(tmp_path) as server, serving(server, settings_for(server, database_url)) as mine:
        now = answers(mine.client, mine.repository)
    asked = [f"{method} {path}" for method, path, _ in LINES if method != "PLACE"]
    for line, (old_status, said), (status, answer) in zip(asked, before, now, strict=True):
        assert status == old_status, f"{line}: {answer}"
        if isinstance(said, dict):  # more keys may stand in an answer, never fewer
            assert {key: answer.get(key) for key in said} == said, line
        else:
            assert answer == said, line


def test_a_zip_with_its_folder_and_what_a_file_manager_left_is_published_and_the_rest_is_said(
    storage: Storage, model: str
) -> None:
    archive = zip_of({
        "inference_model/": "", "inference_model/model.onnx": scaling_model(2.0), "inference_model/.DS_Store": "x",
        "inference_model/more/labels.txt": "zero", "__MACOSX/inference_model/._model.onnx": "x",
        "inference_model/config.pbtxt": scaling_config(model),
    })  # fmt: skip
    reply = storage.upload(model, archive).json()
    left_out = ["__MACOSX/inference_model/._model.onnx", "inference_model/.DS_Store"]
    assert reply == {"version": "0.0.1", "left_out": left_out}
    assert storage.promote(model, "0.0.1").status_code == 200
    assert storage.scale_served(model) == 2.0
    assert (storage.repository / model / "1" / "more" / "labels.txt").read_text() == "zero"
    assert storage.client.post(f"/models/{model}/versions/0.0.1/stage").status_code == 200
    content = storage.client.get(f"/models/{model}/versions/0.0.1/archive").content
    with zipfile.ZipFile(io.BytesIO(content)) as opened:
        assert set(opened.namelist()) == {"model.onnx", "more/labels.txt", "meta.json", "config.pbtxt"}


def test_code_is_served_where_the_policy_allows_it(database_url: str, model: str, tmp_path: Path) -> None:
    config = scaling_config(model).replace('platform: "onnxruntime_onnx"', 'backend: "python"')
    archive = zip_of({"model.py": PYTHON_MODEL, "config.pbtxt": config})
    with running_triton(tmp_path) as triton:
        with serving(triton, settings_for(triton, database_url, python_models="signed")) as storage:
            refused = storage.upload(model, archive)
            assert (refused.status_code, "is code" in refused.json()["detail"]) == (400, True)
        with serving(triton, settings_for(triton, database_url, python_models="on")) as storage:
            assert storage.upload(model, archive).json() == {"version": "0.0.1"}
            assert storage.promote(model, "0.0.1").status_code == 200
            assert storage.scale_served(model) == 6.0
