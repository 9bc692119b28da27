"""What nothing needs can be deleted; a disk that fills up and a Triton that comes back are seen in time."""

import json
from pathlib import Path

import pytest

from services.model_storage import cli
from tests.services.model_storage.support import (
    TOKEN,
    Storage,
    model_zip,
    new_triton,
    serving,
    settings_for,
    wait_for,
)


@pytest.fixture
def kept(storage: Storage, model: str) -> str:
    """A model with 0.0.1 to 0.0.7: 2, 3 and 4 were in production before 5, 6 is staged, 1 and 7 are nothing."""
    for scale in range(1, 8):
        storage.published(model, scale)
    for version in ("0.0.2", "0.0.3", "0.0.4", "0.0.5"):
        storage.promote(model, version)
    storage.client.post(f"/models/{model}/versions/0.0.6/stage")
    return model


def test_only_what_nothing_needs_is_deleted_and_the_reply_says_why_the_rest_is_kept(
    storage: Storage, kept: str
) -> None:
    young = storage.client.delete(f"/models/{kept}/versions").json()
    assert young["deleted"] == []
    assert young["kept"]["0.0.1"] == "it is younger than 30 days"
    plan = storage.client.delete(f"/models/{kept}/versions", params={"older_than_days": 0, "dry_run": True}).json()
    assert (plan["deleted"], plan["dry_run"]) == (["0.0.1", "0.0.3", "0.0.7"], True)
    assert len(storage.client.get(f"/models/{kept}/versions").json()) == 7
    done = storage.client.delete(f"/models/{kept}/versions", params={"older_than_days": 0}).json()
    assert done["deleted"] == ["0.0.1", "0.0.3", "0.0.7"]
    assert done["kept"] == {
        "0.0.2": "the first in production, which each night's candidate is compared with",
        "0.0.4": "a rollback goes to it", "0.0.5": "in production", "0.0.6": "Triton serves it",
    }  # fmt: skip
    assert done["freed_bytes"] > 0
    assert storage.service.store.folders(kept) == ["2", "4", "5", "6"]
    assert storage.client.get(f"/models/{kept}/versions/0.0.1").status_code == 404
    assert storage.scale_served(kept) == 5.0
    assert storage.client.post(f"/models/{kept}/rollback").json()["version"] == "0.0.4"


def test_one_version_is_deleted_and_its_name_and_number_are_not_used_again(storage: Storage, kept: str) -> None:
    now = {"older_than_days": 0}
    assert storage.client.delete(f"/models/{kept}/versions/0.0.7").status_code == 409
    for version, why in (
        ("0.0.5", "in production"),
        ("0.0.4", "rollback"),
        ("0.0.2", "first"),
        ("0.0.6", "Triton serves it"),
    ):
        refused = storage.client.delete(f"/models/{kept}/versions/{version}", params=now)
        assert (refused.status_code, why in refused.json()["detail"]) == (409, True)
    assert storage.client.delete(f"/models/{kept}/versions/0.0.7", params=now).json()["deleted"] == ["0.0.7"]
    again = storage.upload(kept, model_zip(kept, 7.0), "0.0.7")
    assert (again.status_code, "not used again" in again.json()["detail"]) == (400, True)
    assert storage.published(kept, 8.0) == "0.0.8"
    assert storage.client.get(f"/models/{kept}/versions/0.0.8").json()["triton_version"] == 8


def test_a_deletion_that_was_interrupted_is_finished_at_the_start(storage: Storage, kept: str) -> None:
    catalog, store = storage.service.catalog, storage.service.store
    record = catalog.version(kept, "0.0.1")
    store.create(f"{kept}/.deleted/0.0.1", record.model_dump_json().encode())
    store.delete(f"{kept}/.versions/0.0.1")
    catalog.reconcile()
    assert "1" not in store.folders(kept)
    assert [record.version for record in catalog.versions(kept)] == [f"0.0.{n}" for n in range(2, 8)]


def test_the_client_cleans_all_models(
    storage: Storage, kept: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_URL", storage.url)
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_TOKEN", TOKEN)
    assert cli.main(["--json", "clean", "--older_than_days", "0", "--dry_run"]) == 0
    found = {row["model"]: row["deleted"] for row in json.loads(capsys.readouterr().out)}
    assert found[kept] == ["0.0.1", "0.0.3", "0.0.7"]
    assert cli.main(["clean", kept]) == 0
    assert "0.0.1 is kept: it is younger than 30 days" in capsys.readouterr().out


def test_the_service_is_not_ready_before_the_disk_is_full(database_url: str, tmp_path: Path) -> None:
    triton = new_triton(tmp_path)
    with serving(triton, settings_for(triton, database_url, min_free_bytes=1 << 62)) as storage:
        answer = storage.client.get("/health/ready")
        assert (answer.status_code, "nearly full" in answer.json()["repository"]) == (503, True)
        assert storage.upload("digits", model_zip("digits", 2.0)).status_code == 200, "it is not full yet"


def test_a_restarted_triton_is_noticed_without_waiting_for_the_next_round(database_url: str, tmp_path: Path) -> None:
    triton = new_triton(tmp_path)
    triton.start()
    triton.wait_ready()
    try:
        with serving(triton, settings_for(triton, database_url, watch_seconds=3600)) as storage:
            storage.promote("digits", storage.published("digits", 2.0))
            storage.service.production.reconcile()
            triton.stop(0.1)
            triton.start()
            triton.wait_ready()
            wait_for(lambda: "digits" in storage.service.fleet.served().models())
            assert storage.scale_served("digits") == 2.0
    finally:
        triton.stop(0.1)
