"""Every call that clients of the older model storage service know, against the real Triton and PostgreSQL."""

import json
import subprocess
from pathlib import Path

from tests.services.model_storage.support import (
    TOKEN,
    Storage,
    model_zip,
    new_triton,
    serving,
    settings_for,
    zip_of,
)
from tests.support.tiny_onnx import scaling_model


def documented_line(url: str, model: str) -> list[str]:
    """Return the users' command line, which uploads `model_trt.zip` as 0.0.2."""
    command = ["curl", "-sS", "-X", "POST", f"{url}/upload_new_version/", "-H", "accept: application/json"]
    command += ["-H", "Content-Type: multipart/form-data"]
    command += ["-F", "src_file=@model_trt.zip;type=application/x-zip-compressed"]
    return [*command, "-F", f"model_name={model}", "-F", "model_version=0.0.2"]


def test_the_documented_curl_line_publishes_and_answers_the_version(
    storage: Storage, model: str, tmp_path: Path
) -> None:
    (tmp_path / "model_trt.zip").write_bytes(zip_of({"model.plan": b"a plan", "meta.json": "{}"}))
    command = [*documented_line(storage.url, model), "-H", f"Authorization: Bearer {TOKEN}"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"version": "0.0.2"}
    again = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(again.stdout) == {"detail": "This model version already exists."}
    folder = storage.repository / model / "1"
    assert (folder / "model.plan").read_bytes() == b"a plan"
    assert json.loads((folder / "meta.json").read_text()) == {"model_version": "0.0.2"}
    assert 'platform: "tensorrt_plan"' in (storage.repository / model / "config.pbtxt").read_text()


def test_where_access_is_open_the_documented_curl_line_needs_no_token(
    database_url: str, model: str, tmp_path: Path
) -> None:
    (tmp_path / "model_trt.zip").write_bytes(zip_of({"model.plan": b"a plan", "meta.json": "{}"}))
    triton = new_triton(tmp_path)  # not started: publishing does without it
    with serving(triton, settings_for(triton, database_url, auth="off", tokens={})) as storage:
        line = documented_line(storage.url, model)
        done = subprocess.run(line, cwd=tmp_path, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == {"version": "0.0.2"}


def test_a_duplicate_is_a_400_and_changes_nothing(storage: Storage, model: str) -> None:
    assert storage.upload(model, model_zip(model, 2.0), "0.0.1").json() == {"version": "0.0.1"}
    refused = storage.upload(model, model_zip(model, 3.0), "0.0.1")
    assert (refused.status_code, refused.json()["detail"]) == (400, "This model version already exists.")
    assert storage.service.store.folders(model) == ["1"]
    assert (storage.repository / model / "1" / "model.onnx").read_bytes() == scaling_model(2.0)


def test_setting_a_semantic_version_serves_it_at_once(storage: Storage, model: str) -> None:
    for scale in (2.0, 3.0):
        storage.published(model, scale)
    query = {"model_name": model, "semantic_version": "0.0.2"}
    assert storage.client.post("/set_semantic_version/", params=query).json() == {"version": "2"}
    assert storage.scale_served(model) == 3.0
    assert storage.client.get(f"/get_version/{model}").json() == "2"
    assert storage.client.get(f"/get_meta/{model}").json()["model_version"] == "0.0.2"
    assert storage.client.post(f"/set_version/{model}", params={"version": 1}).status_code == 200
    assert storage.scale_served(model) == 2.0
    assert storage.client.get(f"/get_version/{model}").json() == "1"
    assert storage.client.get(f"/latest_semantic_version/{model}").json() == {"latest_version": "0.0.2"}


def test_an_unknown_version_is_a_404_that_names_those_there_are(storage: Storage, model: str) -> None:
    storage.published(model, 2.0)
    query = {"model_name": model, "semantic_version": "0.0.9"}
    reply = storage.client.post("/set_semantic_version/", params=query)
    assert reply.status_code == 404
    assert reply.json()["detail"] == "Semantic version not found."
    assert "0.0.1" in reply.json()["reason"]
    assert storage.client.post(f"/set_version/{model}", params={"version": 9}).status_code == 404
    for call in ("/get_version/none", "/latest_semantic_version/none", "/get_meta/none"):
        assert storage.client.get(call).status_code == 404


def test_loading_and_unloading_is_written_down_as_what_is_in_production(storage: Storage, model: str) -> None:
    storage.published(model, 2.0)
    assert storage.client.post(f"/load_model/{model}").status_code == 200
    assert storage.scale_served(model) == 2.0
    assert {"name": model, "version": "1", "state": "READY"} in storage.client.get("/index/").json()
    assert storage.client.post(f"/unload_model/{model}").status_code == 200
    assert not any(e["name"] == model and e.get("state") == "READY" for e in storage.client.get("/index/").json())
    assert storage.client.get(f"/models/{model}/champion").status_code == 404
    assert [row["action"] for row in storage.client.get(f"/history/{model}").json()] == ["unload", "load"]
    assert storage.client.post(f"/load_model/{model}").status_code == 200
    assert storage.client.get(f"/models/{model}/champion").json()["version"] == "0.0.1"


def test_a_bare_model_file_is_published_with_a_configuration_of_its_graph(storage: Storage, model: str) -> None:
    file = {"file": ("classifier.onnx", scaling_model(5.0))}
    reply = storage.client.post("/upload_model", files=file, data={"model_name": model, "version": "7"})
    message = f"Model '{model}' uploaded successfully with version 7"
    assert reply.json() == {"message": message, "semantic_version": "0.0.1"}
    assert storage.client.post(f"/set_version/{model}", params={"version": 7}).status_code == 200
    assert storage.scale_served(model) == 5.0
    again = storage.client.post("/upload_model", files=file, data={"model_name": model, "version": "7"})
    assert (again.status_code, again.json()["detail"]) == (400, "This model version already exists.")
    wrong = storage.client.post("/upload_model", files=file, data={"model_name": model, "version": "0"})
    assert wrong.status_code == 400


def test_the_index_shows_models_only(storage: Storage, model: str) -> None:
    storage.published(model, 2.0)
    names = {entry["name"] for entry in storage.client.get("/index/").json()}
    assert model in names
    assert not any(name.startswith(".") for name in names)
