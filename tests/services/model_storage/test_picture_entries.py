"""`<model>_jpeg`: encoded pictures in, classes out, on the real Triton.

The model of these tests gives its input back, so that what an answer holds are the very pixels that the model got.
"""

from __future__ import annotations

import base64
import io
import json
import re
import subprocess
import sys
import threading
import zipfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import numpy as np
import pytest
import tritonclient.http
from tritonclient.utils import InferenceServerException

import local.triton
from tests.services.model_storage.support import Database, Storage, new_triton, serving, settings_for, zip_of
from tests.support.tiny_pictures import gray_png, picture_zip

CONFIG = """
input [{ name: "input", data_type: TYPE_FP32, dims: [1, 4, 4] }]
output [{ name: "probabilities", data_type: TYPE_FP32, dims: [16] }]
max_batch_size: 4
"""


class Entry:
    """A client of the entry of one served model."""

    def __init__(self, storage: Storage, name: str) -> None:
        self.name = f"{name}_jpeg"
        self.client = tritonclient.http.InferenceServerClient(storage.triton.http)

    def ask(self, *pictures: bytes) -> dict[str, np.ndarray]:
        tensor = tritonclient.http.InferInput("picture", [len(pictures), 1], "BYTES")
        tensor.set_data_from_numpy(np.array([[content] for content in pictures], np.object_))
        answer = self.client.infer(self.name, [tensor])
        names = ("labels", "label_probabilities", "probabilities", "version")
        return {name: answer.as_numpy(name) for name in names}

    def version(self, content: bytes) -> str:
        return self.ask(content)["version"][0, 0].decode()


def published(storage: Storage, model: str, **how: object) -> str:
    reply = storage.upload(model, picture_zip(**how))
    assert reply.status_code == 200, reply.text
    return str(reply.json()["version"])


def served(storage: Storage) -> list[str]:
    return sorted(storage.service.fleet.served().models())


def test_a_promoted_classifier_takes_pictures_and_tells_classes(storage: Storage, model: str) -> None:
    storage.promote(model, published(storage, model))
    answer = Entry(storage, model).ask(gray_png(51), gray_png(255))
    np.testing.assert_array_equal(answer["probabilities"], np.repeat([[51 / 255], [1]], 16, axis=1).astype(np.float32))
    assert answer["labels"][0].tolist() == [f"pixel {index}".encode() for index in range(5)]
    assert answer["label_probabilities"].shape == (2, 5)
    assert answer["version"].tolist() == [[b"0.0.1"], [b"0.0.1"]]


def test_a_bad_picture_fails_its_own_request_and_not_the_others_of_the_batch(storage: Storage, model: str) -> None:
    storage.promote(model, published(storage, model))
    entry = Entry(storage, model)
    results: dict[int, object] = {}

    def ask(index: int) -> None:
        client = Entry(storage, model)
        try:
            results[index] = client.ask(b"no picture" if index % 3 == 0 else gray_png(index))["probabilities"][0, 0]
        except InferenceServerException as error:
            results[index] = str(error)

    threads = [threading.Thread(target=ask, args=(index,)) for index in range(12)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for index in range(12):
        if index % 3 == 0:
            assert "no picture that can be decoded" in str(results[index])
        else:
            assert results[index] == np.float32(index) / np.float32(255)
    with pytest.raises(InferenceServerException, match="picture 2 of 2: it is torn"):
        entry.ask(gray_png(1), gray_png(1)[:-20])
    with pytest.raises(InferenceServerException, match="it is empty"):
        entry.ask(b"")


def test_curl_sends_a_file_as_it_is_or_as_base64_in_json(storage: Storage, model: str, tmp_path: Path) -> None:
    storage.promote(model, published(storage, model))
    picture = tmp_path / "x.png"
    picture.write_bytes(gray_png(51))
    address = f"http://{storage.triton.http}/v2/models/{model}_jpeg/infer"
    raw = ["curl", "-sS", "-f", "-H", "Inference-Header-Content-Length: 0", "--data-binary", f"@{picture}", address]
    assert b"pixel 0" in subprocess.run(raw, capture_output=True, check=True).stdout
    text = base64.b64encode(picture.read_bytes()).decode()
    body = {"inputs": [{"name": "picture", "shape": [1, 1], "datatype": "BYTES", "data": [text]}]}
    found = {output["name"]: output["data"] for output in httpx.post(address, json=body).json()["outputs"]}
    assert found["label_probabilities"] == [pytest.approx(0.2)] * 5


@pytest.mark.parametrize(("language", "command"), [("bash", ["bash", "-c"]), ("python", [sys.executable, "-c"])])
def test_the_calls_of_the_readme_work_as_they_stand(
    storage: Storage, model: str, tmp_path: Path, language: str, command: list[str]
) -> None:
    storage.promote(model, published(storage, model))
    (tmp_path / "7.png").write_bytes(gray_png(51))
    readme = (Path(__file__).parents[3] / "README.md").read_text()
    blocks = re.findall(rf"^```{language}\n(.*?)^```", readme, re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if "127.0.0.1:8100" in block and "digits_jpeg" in block)
    block = block.replace("127.0.0.1:8100", storage.triton.http).replace("digits_jpeg", f"{model}_jpeg")
    done = subprocess.run([*command, block], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ("pixel 0: 20.0%" if language == "python" else '"data":["pixel 0"') in done.stdout


def test_entry_and_model_are_of_one_version_at_every_moment_of_a_change(storage: Storage, model: str) -> None:
    """Version 1 normalizes by 1/2 and says so by its labels' order; a mixture would show in either."""
    versions = [published(storage, model), published(storage, model, std=[0.5], swap=True)]
    storage.promote(model, versions[0])
    said = {"0.0.1": (b"pixel 0", np.float32(0.2)), "0.0.2": (b"pixel 1", np.float32(0.4))}
    stop, seen, wrong = threading.Event(), set(), []

    def ask() -> None:
        entry = Entry(storage, model)
        while not stop.is_set():
            answer = entry.ask(gray_png(51))
            version = answer["version"][0, 0].decode()
            found = answer["labels"][0, 0], answer["probabilities"][0, 0]
            seen.add(version)
            if found != (said[version][0], pytest.approx(said[version][1])):
                wrong.append((version, found))

    with ThreadPoolExecutor(2) as pool:
        asking = [pool.submit(ask) for _ in range(2)]
        try:
            for _ in range(2):
                for change in ("promote", "rollback"):
                    if change == "promote":
                        assert storage.promote(model, versions[1]).status_code == 200
                    else:
                        assert storage.client.post(f"/models/{model}/rollback").status_code == 200
                    expected = versions[1] if change == "promote" else versions[0]
                    assert Entry(storage, model).version(gray_png(51)) == expected
        finally:
            stop.set()
        for one in asking:
            one.result()  # raises what a request failed with
    assert seen == set(versions)
    assert wrong == []


def test_candidate_and_canary_have_entries_of_their_own_which_go_with_them(storage: Storage, model: str) -> None:
    storage.promote(model, published(storage, model))
    new = published(storage, model, std=[0.5])
    for path, name in ((f"versions/{new}/stage", "candidate"), (f"versions/{new}/canary", "canary")):
        body = {"share": 0.5} if name == "canary" else None
        assert storage.client.post(f"/models/{model}/{path}", json=body).status_code == 200
        assert Entry(storage, f"{model}__{name}").version(gray_png(1)) == new
        assert Entry(storage, model).version(gray_png(1)) == "0.0.1"
        storage.client.delete(f"/models/{model}/{'stage' if name == 'candidate' else 'canary'}")
        assert f"{model}__{name}_jpeg" not in served(storage)
        assert not (storage.repository / f"{model}__{name}_jpeg").exists()


def test_an_entry_that_went_is_brought_back_and_one_of_nothing_is_taken_away(storage: Storage, model: str) -> None:
    storage.promote(model, published(storage, model))
    storage.service.fleet.unload(f"{model}_jpeg")
    assert storage.service.production.reconcile() == []
    assert Entry(storage, model).version(gray_png(1)) == "0.0.1"
    assert storage.client.post(f"/unload_model/{model}").status_code == 200
    assert f"{model}_jpeg" not in served(storage)
    assert storage.service.production.reconcile() == []
    assert f"{model}_jpeg" not in served(storage)


def test_a_promotion_that_fails_leaves_the_entry_of_the_version_that_serves(storage: Storage, model: str) -> None:
    storage.promote(model, published(storage, model))
    with zipfile.ZipFile(io.BytesIO(picture_zip(std=[0.5]))) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    storage.upload(model, zip_of({**files, "model.onnx": b"no model", "config.pbtxt": CONFIG}))
    assert storage.promote(model, "0.0.2").status_code == 502
    assert Entry(storage, model).version(gray_png(1)) == "0.0.1"
    assert storage.service.production.reconcile() == []


def test_no_code_of_a_package_is_run(storage: Storage, model: str, tmp_path: Path) -> None:
    trap = tmp_path / "trap"
    code = f"open({str(trap)!r}, 'w')\n"
    with zipfile.ZipFile(io.BytesIO(picture_zip())) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    own = {"model.py": code, "picture_preparation.py": code, "cv2.py": code, "specs.json": "{}"}
    assert storage.upload(model, zip_of({**files, **own})).status_code == 200
    storage.promote(model, "0.0.1")
    assert Entry(storage, model).version(gray_png(1)) == "0.0.1"
    assert not trap.exists()


@pytest.mark.parametrize(
    ("how", "says"),
    [
        ({"height": 5000, "width": 5000}, "prepares inputs of [1, 5000, 5000]"),
        ({"sharpen": True}, "describes no way to prepare a picture"),
        ({"mean": [0.1, 0.2]}, "one value a channel"),
    ],
)
def test_a_spec_that_cannot_be_followed_gives_no_entry_and_the_model_serves(
    storage: Storage, model: str, caplog: pytest.LogCaptureFixture, how: dict[str, object], says: str
) -> None:
    with zipfile.ZipFile(io.BytesIO(picture_zip())) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    spec = json.loads(files["model.json"])
    spec["preprocessing"] |= how
    storage.upload(model, zip_of({**files, "model.json": json.dumps(spec)}))
    assert storage.promote(model, "0.0.1").status_code == 200
    assert model in served(storage)
    assert f"{model}_jpeg" not in served(storage)
    assert says in caplog.text


def test_a_model_cannot_have_the_name_of_an_entry(storage: Storage, model: str) -> None:
    reply = storage.upload(f"{model}_jpeg", picture_zip())
    assert reply.status_code == 400
    assert "_jpeg" in reply.json()["detail"]


def test_where_triton_has_no_opencv_the_model_serves_and_the_log_says_what_is_missing(
    database: Database, tmp_path: Path, model: str, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, without = local.triton.ENVIRONMENT, tmp_path / "environment"
    packages = f"lib/python{local.triton.PYTHON}/site-packages"
    (without / packages).mkdir(parents=True)
    for path in [*whole.iterdir(), *(whole / packages).iterdir()]:
        if path.name not in ("lib", "cv2"):
            (without / path.relative_to(whole)).symlink_to(path)
    monkeypatch.setattr(local.triton, "ENVIRONMENT", without)
    triton = new_triton(tmp_path)
    with triton, serving(triton, settings_for(triton, database.new())) as storage:
        triton.wait_ready()
        published(storage, model)
        assert storage.promote(model, "0.0.1").status_code == 200
        assert served(storage) == [model]
        assert "docker/triton.Dockerfile" in caplog.text
        assert storage.service.production.reconcile() == []


def test_a_picture_is_tried_on_the_champion_and_the_version_before_which_goes_again(
    storage: Storage, model: str
) -> None:
    address = f"/models/{model}/try"
    assert storage.client.post(address, content=gray_png(51)).status_code == 404
    storage.promote(model, published(storage, model))
    assert [told["stage"] for told in storage.client.post(address, content=gray_png(51)).json()] == ["champion"]
    storage.promote(model, published(storage, model, std=[0.5], swap=True))
    told = storage.client.post(address, content=gray_png(51) + bytes(2 << 20)).json()  # more than other calls take
    assert [(one["stage"], one["version"], one["labels"][0]) for one in told] == [
        ("champion", "0.0.2", "pixel 1"),
        ("previous", "0.0.1", "pixel 0"),
    ]
    assert [one["probabilities"][0] for one in told] == [pytest.approx(0.4), pytest.approx(0.2)]
    refused = storage.client.post(address, content=b"no picture").json()
    assert all("no picture that can be decoded" in one["problem"] for one in refused)
    assert storage.client.post(address, content=bytes(33 << 20)).status_code == 413
    assert not [name for name in served(storage) if f"{model}__previous" in name]


def test_what_an_interrupted_trial_left_is_taken_away(storage: Storage, model: str) -> None:
    storage.promote(model, published(storage, model))
    record = storage.service.catalog.version(model, "0.0.1")
    storage.service.production.beside.serve(record, f"{model}__previous")
    assert f"{model}__previous_jpeg" in served(storage)
    assert storage.service.production.reconcile() == []
    assert not [name for name in served(storage) if f"{model}__previous" in name]
    assert model in served(storage)
