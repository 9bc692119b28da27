"""Moving in: a repository of the older service is taken over as it is, and what Triton serves goes on being served."""

import json
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local.triton import TritonServer
from services.model_storage import cli
from services.model_storage.repository.takeover import version_names
from services.model_storage.triton import Triton
from tests.services.model_storage.old_service import old_config, old_service
from tests.services.model_storage.support import (
    TOKEN,
    Storage,
    ask_scale,
    model_zip,
    running_triton,
    serving,
    settings_for,
    wait_for,
    zip_of,
)
from tests.support.tiny_onnx import scaling_config, scaling_model


@pytest.fixture
def triton(tmp_path: Path) -> Iterator[TritonServer]:
    with running_triton(tmp_path) as server:
        yield server


def upload(client: httpx.Client, model: str, version: str, files: dict[str, bytes | str]) -> httpx.Response:
    form = {"model_name": model, "model_version": version}
    return client.post("/upload_new_version/", files={"src_file": ("model.zip", zip_of(files))}, data=form)


def left_by_the_old_service(triton: TritonServer) -> None:
    """Make a repository by the calls of the older service: `season` serves 0.0.2; leave what else lies in such ones."""
    with old_service(triton) as old:
        for version, scale in (("0.0.1", 2.0), ("0.0.2", 3.0)):
            files: dict[str, bytes | str] = {
                "model.onnx": scaling_model(scale),
                "meta.json": json.dumps({"scale": scale}),
            }
            assert upload(old, "season", version, files).json() == {"version": version}
        (triton.repository / "season" / "config.pbtxt").write_text(
            old_config(scaling_config("season", max_batch_size=64))
        )
        query = {"model_name": "season", "semantic_version": "0.0.2"}
        assert old.post("/set_semantic_version/", params=query).json() == {"version": "2"}
        assert old.post("/load_model/season").status_code == 200
    (triton.repository / "season" / "3").mkdir()  # a broken zip leaves an empty folder
    hand = triton.repository / "hand" / "5"  # placed by hand: no meta.json, and a configuration that names no version
    hand.mkdir(parents=True)
    (hand / "model.onnx").write_bytes(scaling_model(7.0))
    (hand.parent / "config.pbtxt").write_text(scaling_config("hand"))
    both = triton.repository / "both"
    for number in (1, 2):
        (both / str(number)).mkdir(parents=True)
        (both / str(number) / "model.onnx").write_bytes(scaling_model(10.0 + number))
    (both / "config.pbtxt").write_text(scaling_config("both") + "version_policy: { all: {} }\n")
    for model in ("hand", "both"):
        Triton(triton.grpc, 60, triton.key_file).load(model)


class Asking:
    """A client that asks a model without a pause; every answer that is not a number is kept as a failure."""

    def __init__(self, triton: TritonServer, model: str) -> None:
        self.answers: list[float] = []
        self.failures: list[str] = []
        self._triton, self._model = triton, model
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._ask)

    def __enter__(self) -> "Asking":
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join(30)

    def _ask(self) -> None:
        while not self._stop.is_set():
            try:
                self.answers.append(ask_scale(self._triton, self._model))
            except Exception as error:
                self.failures.append(repr(error))

    def wait(self) -> None:
        """Wait for ten more answers."""
        count = len(self.answers)
        wait_for(lambda: len(self.answers) >= count + 10 or self.failures)


def test_a_live_model_is_taken_over_and_no_answer_fails_until_after_the_next_promotion(
    triton: TritonServer, database_url: str
) -> None:
    left_by_the_old_service(triton)
    before = {path: path.read_bytes() for path in triton.repository.rglob("*") if path.is_file()}
    with Asking(triton, "season") as client:
        client.wait()
        with serving(triton, settings_for(triton, database_url)) as storage:
            assert {path: path.read_bytes() for path in before} == before, "what lies there is left as it is"
            rows = storage.client.get("/history/season").json()
            assert [(row["action"], row["version"], row["triton_version"]) for row in rows] == [("load", "0.0.2", 2)]
            versions = storage.client.get("/models/season/versions").json()
            assert [(v["version"], v["triton_version"], v["meta"]["scale"]) for v in versions] == [
                ("0.0.1", 1, 2.0), ("0.0.2", 2, 3.0)
            ]  # fmt: skip
            assert storage.client.get("/get_version/season").json() == "2"
            assert storage.client.get("/get_meta/season").json() == {"scale": 3.0, "model_version": "0.0.2"}
            again = storage.upload("season", model_zip("season", 9.0), "0.0.1")
            assert (again.status_code, again.json()["detail"]) == (400, "This model version already exists.")
            storage.service.production.reconcile()
            client.wait()
            assert set(client.answers) == {3.0}
            assert storage.upload("season", model_zip("season", 4.0), "0.0.3").json()["version"] == "0.0.3"
            assert storage.client.get("/models/season/versions/0.0.3").json()["triton_version"] == 4
            reply = storage.promote("season", "0.0.3").json()
            assert (reply["version"], reply["previous_version"]) == ("0.0.3", "0.0.2")
            client.wait()
            assert client.answers[-1] == 4.0
            assert storage.client.post("/models/season/rollback").json()["version"] == "0.0.2"
            client.wait()
            served = storage.client.get("/models/season/versions/0.0.2/archive")
            assert storage.upload("season", served.content, "1.0.0").status_code == 200
    assert client.failures == []
    assert (set(client.answers), client.answers[-1]) == ({3.0, 4.0}, 3.0)


def test_what_the_storage_has_not_loaded_stays_loaded(triton: TritonServer, database_url: str) -> None:
    left_by_the_old_service(triton)
    with serving(triton, settings_for(triton, database_url)) as storage:
        for _ in range(2):
            assert storage.service.production.reconcile() == []
        served = storage.service.fleet.servers[0].served()
        assert (served["hand"], served["both"]) == ([5], [1, 2])
        assert storage.client.get("/models/hand/champion").json()["version"] == "0.0.5"
        assert storage.client.get("/models/both/champion").status_code == 404, "two versions are none in production"
        assert storage.client.get("/get_version/hand").json() == "5"
        missing = storage.client.get("/get_meta/hand")
        assert (missing.status_code, missing.json()["detail"]) == (404, "Meta file not found")
        assert storage.promote("both", "0.0.1").json()["version"] == "0.0.1"
        assert storage.scale_served("both") == 11.0
        assert storage.client.post("/models/both/versions/0.0.2/stage").status_code == 200
        assert storage.scale_served("both__candidate") == 12.0


def test_a_model_that_was_not_loaded_is_loaded_as_the_old_configuration_says(
    triton: TritonServer, database_url: str
) -> None:
    left_by_the_old_service(triton)
    Triton(triton.grpc, 60, triton.key_file).unload("season")
    with serving(triton, settings_for(triton, database_url)) as storage:
        assert storage.client.get("/models/season/champion").status_code == 404
        assert storage.client.get("/get_version/season").json() == "2", "what the configuration names"
        upload(storage.client, "season", "0.0.3", {"model.onnx": scaling_model(4.0)})
        assert storage.client.post("/load_model/season").json()["message"] == "Model 'season' loaded successfully"
        assert storage.scale_served("season") == 3.0


def test_a_second_start_finds_nothing_more_to_take_over(triton: TritonServer, database_url: str) -> None:
    left_by_the_old_service(triton)
    for _ in range(2):
        with serving(triton, settings_for(triton, database_url)) as storage:
            assert len(storage.client.get("/models/season/versions").json()) == 2
            assert len(storage.client.get("/history/season").json()) == 1
            assert ask_scale(triton, "season") == 3.0


def test_a_copy_is_imported_with_a_report(
    storage: Storage, triton: TritonServer, model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    left_by_the_old_service(triton)
    copy = tmp_path / "copy"
    shutil.copytree(triton.repository / "season", copy / model)
    config = copy / model / "config.pbtxt"
    config.write_text(config.read_text().replace("season", model))
    (copy / model / "4").mkdir()
    (copy / model / "4" / "model.py").write_text("raise SystemExit")
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_URL", storage.url)
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_TOKEN", TOKEN)
    assert cli.main(["--json", "import", str(copy), "--promote"]) == 1, "one is refused"
    rows = json.loads(capsys.readouterr().out)
    told = [(row["folder"], row["version"], row["outcome"].partition(":")[0], row["in_production"]) for row in rows]
    assert told == [
        (1, "0.0.1", "published", False), (2, "0.0.2", "published", True),
        (3, "0.0.3", "left alone", False), (4, "0.0.4", "refused", False),
    ]  # fmt: skip
    assert storage.scale_served(model) == 3.0
    assert storage.client.get(f"/get_version/{model}").json() == "2"
    assert "max_batch_size: 64" in (storage.repository / model / "config.pbtxt").read_text()
    assert cli.main(["--json", "import", str(copy)]) == 1
    again = json.loads(capsys.readouterr().out)
    assert [row["outcome"].partition(":")[0] for row in again] == [
        "already there", "already there", "left alone", "refused"
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("told", "names"),
    [
        ({1: "0.0.1", 2: "0.0.2"}, {1: "0.0.1", 2: "0.0.2"}),
        ({1: None, 2: "0.0.1"}, {2: "0.0.1", 1: "0.0.1-1"}),
        ({1: "1.0", 2: "1.0"}, {1: "1.0", 2: "1.0-2"}),
        ({1: "next", 2: "../up", 3: "final"}, {3: "final", 1: "0.0.1", 2: "0.0.2"}),
        ({4: 1.0}, {4: "1.0"}),
    ],
)
def test_each_folder_gets_a_version_of_its_own(told: dict[int, object], names: dict[int, str]) -> None:
    assert version_names(told, ()) == names
