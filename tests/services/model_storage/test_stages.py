"""Candidate, canary, champion, previous: in the storage, by target, and as MLflow's aliases; and what a pin holds."""

from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local.triton import TritonServer
from services.model_storage.production.history import Promotion
from services.model_storage.production.stages import stages
from services.model_storage.repository.record import Record
from tests.services.model_storage.support import Storage, new_triton, serving, settings_for
from tests.support.waiting import wait_for


def stages_of(storage: Storage, model: str) -> dict[str, object]:
    answer = storage.client.get(f"/models/{model}/stages")
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()["stages"]
    assert found.get("onnx", {}) == found["all"], "all are ONNX here"
    return dict(found["all"])


def test_a_version_goes_from_candidate_over_canary_to_champion_and_previous(storage: Storage, model: str) -> None:
    storage.published(model, 2.0)
    assert stages_of(storage, model) == {"candidate": "0.0.1"}
    storage.promote(model, "0.0.1")
    assert stages_of(storage, model) == {"champion": "0.0.1"}
    storage.published(model, 3.0)
    assert stages_of(storage, model) == {"champion": "0.0.1", "candidate": "0.0.2"}
    storage.client.post(f"/models/{model}/versions/0.0.2/canary", json={"share": 0.1})
    assert stages_of(storage, model) == {"champion": "0.0.1", "canary": "0.0.2"}
    storage.promote(model, "0.0.2")
    assert stages_of(storage, model) == {"champion": "0.0.2", "previous": "0.0.1"}
    storage.client.post(f"/models/{model}/rollback")
    assert stages_of(storage, model) == {"champion": "0.0.1"}
    storage.client.post(f"/unload_model/{model}")
    assert stages_of(storage, model) == {}
    assert storage.client.get("/models/nobody/stages").status_code == 404


def test_each_target_has_stages_of_its_own() -> None:
    records = [record("0.0.1", "onnx"), record("0.0.2", "tensorrt"), record("0.0.3", "onnx"), record("0.0.4", "onnx")]
    rows = [row("0.0.1", "onnx"), row("0.0.2", "tensorrt"), row("0.0.3", "onnx"), row("0.0.2", "tensorrt")]
    assert stages(records, rows) == {
        "all": {"champion": "0.0.2", "previous": "0.0.3", "candidate": "0.0.4"},
        "onnx": {"champion": "0.0.3", "previous": "0.0.1", "candidate": "0.0.4"},
        "tensorrt": {"champion": "0.0.2"},
    }


def record(version: str, target: str) -> Record:
    return Record.model_construct(version=version, target=target)


def row(version: str, target: str) -> Promotion:
    return Promotion.model_construct(action="promote", version=version, target=target)


def test_a_pinned_version_stays_until_it_is_unpinned(storage: Storage, model: str) -> None:
    for scale in (2.0, 3.0, 4.0):
        storage.promote(model, storage.published(model, scale))
    note = {"reason": "the new ones flicker", "actor": "ops"}
    pinned = storage.client.post(f"/models/{model}/versions/0.0.2/pin", json=note)
    assert pinned.json()["version"] == "0.0.2"
    assert storage.scale_served(model) == 3.0
    refused = storage.promote(model, "0.0.3")
    assert refused.status_code == 409
    assert (
        "0.0.2" in refused.json()["detail"]
        and "by everything on behalf of ops: the new ones flicker" in refused.json()["detail"]
    )
    assert storage.client.post(f"/models/{model}/rollback").status_code == 409
    assert storage.client.post(f"/models/{model}/versions/0.0.1/pin").status_code == 409
    assert storage.promote(model, "0.0.2").status_code == 200, "it is in production"
    assert storage.client.get(f"/models/{model}/stages").json()["pinned"] == "0.0.2"
    assert storage.scale_served(model) == 3.0

    assert storage.client.delete(f"/models/{model}/pin", params={"actor": "ops"}).json() == {"removed": True}
    assert storage.client.delete(f"/models/{model}/pin").json() == {"removed": False}
    assert storage.promote(model, "0.0.3").status_code == 200
    rows = [(entry["action"], entry["version"]) for entry in storage.client.get(f"/history/{model}").json()]
    assert rows[:4] == [("promote", "0.0.3"), ("unpin", "0.0.2"), ("pin", "0.0.2"), ("promote", "0.0.2")]


def test_a_pin_neither_ends_a_canary_nor_is_in_production(storage: Storage, model: str) -> None:
    storage.promote(model, storage.published(model, 2.0))
    storage.client.post(f"/models/{model}/versions/{storage.published(model, 3.0)}/canary", json={"share": 0.5})
    storage.client.post(f"/models/{model}/versions/0.0.1/pin")
    assert storage.scale_served(f"{model}__canary") == 3.0
    storage.client.delete(f"/models/{model}/pin")
    assert storage.service.production.reconcile() == []
    assert storage.scale_served(f"{model}__canary") == 3.0
    assert storage.client.get(f"/models/{model}/champion").json()["version"] == "0.0.1"


@pytest.fixture
def registry(mlflow_server: str) -> httpx.Client:
    return httpx.Client(base_url=f"{mlflow_server}/api/2.0/mlflow", timeout=30)


@pytest.fixture
def followed(mlflow_server: str, database_url: str, tmp_path: Path) -> Iterator[Storage]:
    triton: TritonServer = new_triton(tmp_path)
    triton.start()
    triton.wait_ready()
    settings = settings_for(triton, database_url).model_copy(update={"mlflow_url": mlflow_server})
    try:
        with serving(triton, settings) as storage:
            yield storage
    finally:
        triton.stop(0.1)


def register(registry: httpx.Client, model: str, version: str) -> str:
    run = registry.post("/runs/create", json={"experiment_id": "0"}).raise_for_status().json()["run"]["info"]
    tags = [{"key": "semantic_version", "value": version}]
    source = f"{run['artifact_uri']}/package"
    body = {"name": model, "source": source, "run_id": run["run_id"], "tags": tags}
    answer = registry.post("/model-versions/create", json=body)
    assert answer.is_success, answer.text
    return str(answer.json()["model_version"]["version"])


def aliases(registry: httpx.Client, model: str) -> dict[str, str]:
    found = registry.get("/registered-models/get", params={"name": model}).json()["registered_model"]
    return {entry["alias"]: str(entry["version"]) for entry in found.get("aliases", [])}


def test_mlflows_aliases_follow_promotions_and_rollbacks(followed: Storage, registry: httpx.Client, model: str) -> None:
    followed.promote(f"a{model}", followed.published(f"a{model}", 2.0))  # not in MLflow: holds no other one up
    registry.post("/registered-models/create", json={"name": model}).raise_for_status()
    for scale in (2.0, 3.0):
        followed.promote(model, followed.published(model, scale))
    followed.published(model, 4.0)
    numbers = [register(registry, model, version) for version in ("0.0.1", "0.0.2", "0.0.3")]  # later, as jobs do
    own = {"name": model, "alias": "mine", "version": numbers[0]}
    registry.post("/registered-models/alias", json=own).raise_for_status()

    def both(**found: str) -> dict[str, str]:
        return {"mine": numbers[0], **found, **{f"{stage}-onnx": number for stage, number in found.items()}}

    wanted = both(champion=numbers[1], previous=numbers[0], candidate=numbers[2])
    wait_for(lambda: aliases(registry, model) == wanted, "the aliases of two promotions")
    followed.client.post(f"/models/{model}/rollback")
    wanted = both(champion=numbers[0], candidate=numbers[2])
    wait_for(lambda: aliases(registry, model) == wanted, "the aliases after the rollback")
