"""Triton, PostgreSQL or the service itself goes away: nothing is lost, and history and Triton agree afterwards."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from tritonclient.utils import InferenceServerException

from local.triton import TritonServer
from services.model_storage.errors import Conflict, ServingFailed, Unavailable
from services.model_storage.production.last_known import LastKnown
from services.model_storage.service import Service
from tests.services.model_storage.support import (
    Database,
    Storage,
    ask_scale,
    model_zip,
    new_triton,
    serving,
    settings_for,
    wait_for,
)


@pytest.fixture
def triton(tmp_path: Path) -> Iterator[TritonServer]:
    server = new_triton(tmp_path)
    server.start()
    server.wait_ready()
    yield server
    server.stop(0.1)


def with_champion(storage: Storage, model: str = "digits") -> None:
    storage.promote(model, storage.published(model, 2.0))
    assert storage.published(model, 3.0) == "0.0.2"


def restart(triton: TritonServer) -> None:
    triton.stop(0.1)
    triton.start()
    triton.wait_ready()


def refuses(triton: TritonServer, model: str) -> bool:
    try:
        ask_scale(triton, model)
    except (InferenceServerException, OSError):
        return True
    return False


def test_a_restarted_service_loads_the_champions_into_a_restarted_triton(
    database_url: str, triton: TritonServer
) -> None:
    settings = settings_for(triton, database_url)
    with serving(triton, settings) as storage:
        with_champion(storage)
    restart(triton)
    assert refuses(triton, "digits")
    with serving(triton, settings) as storage:
        assert storage.scale_served("digits") == 2.0
        assert storage.client.get("/health/ready").json() == {"status": "ok"}


def test_the_watch_loads_the_champions_of_a_triton_that_was_restarted(database_url: str, triton: TritonServer) -> None:
    with serving(triton, settings_for(triton, database_url, watch_seconds=0.1)) as storage:
        with_champion(storage)
        restart(triton)
        wait_for(lambda: not refuses(triton, "digits"))
        assert storage.scale_served("digits") == 2.0
        triton.stop(0.1)
        wait_for(lambda: storage.client.get("/health/ready").status_code == 503)
        assert "Triton" in storage.client.get("/health/ready").json()["triton"]


def test_promoting_again_brings_a_restarted_triton_back(database_url: str, triton: TritonServer) -> None:
    with serving(triton, settings_for(triton, database_url)) as storage:
        with_champion(storage)
        restart(triton)
        assert storage.promote("digits", "0.0.1").status_code == 200
        assert storage.scale_served("digits") == 2.0
        assert len(storage.client.get("/history/digits").json()) == 1


def test_clients_are_told_what_was_last_known_while_postgresql_is_away(
    database: Database, triton: TritonServer
) -> None:
    settings = settings_for(triton, database.new(), watch_seconds=0.1)
    with serving(triton, settings) as storage:
        with_champion(storage)
        storage.client.post("/models/digits/versions/0.0.2/canary", json={"share": 0.5, "judged": False})
        storage.promote("nobody_asked", storage.published("nobody_asked", 5.0))
        keys = [{"key": f"user {number}"} for number in range(20)]
        before = [storage.client.get("/models/digits/route", params=key).json() for key in keys]
        assert {answer["version"] for answer in before} == {"0.0.1", "0.0.2"}
        assert all(answer["stale_seconds"] is None for answer in before)
        looked = storage.service.known
        wait_for(lambda: "nobody_asked" in looked._found)
        database.stop()
        try:
            after = [storage.client.get("/models/digits/route", params=key).json() for key in keys]
            assert [answer["model"] for answer in after] == [answer["model"] for answer in before]
            assert all(0 <= answer["stale_seconds"] < 120 for answer in after)
            champion = storage.client.get("/models/nobody_asked/champion").json()
            assert (champion["version"], champion["stale_seconds"] >= 0) == ("0.0.1", True)
            assert storage.client.get("/get_version/digits").status_code == 200
            unknown = storage.client.get("/models/strange/route", params={"key": "x"})
            assert unknown.status_code == 503, "nobody knows whether there is one"
            assert storage.client.get("/models/digits/canary").status_code == 503
            old = LastKnown(storage.service.history, 1.0, now=iter([0.0, 10.0]).__next__)
            old._found = dict(looked._found) | {"digits": (0.0, looked.of("digits"))}
            assert old.of("digits").champion is not None
            with pytest.raises(Unavailable):
                old.of("digits")
        finally:
            database.start()
        wait_for(lambda: storage.client.get("/models/digits/route", params=keys[0]).json()["stale_seconds"] is None)


def test_without_triton_uploads_go_on_and_a_promotion_is_a_503_that_changes_nothing(
    database_url: str, triton: TritonServer
) -> None:
    with serving(triton, settings_for(triton, database_url)) as storage:
        with_champion(storage)
        config = (triton.repository / "digits" / "config.pbtxt").read_bytes()
        triton.stop(0.1)
        assert storage.published("digits", 4.0) == "0.0.3"
        reply = storage.promote("digits", "0.0.2")
        assert reply.status_code == 503
        assert reply.headers["Retry-After"]
        assert "Triton" in reply.json()["detail"]
        assert (triton.repository / "digits" / "config.pbtxt").read_bytes() == config
        assert storage.client.get("/models/digits/champion").json()["version"] == "0.0.1"


def test_without_postgresql_uploads_go_on_and_a_promotion_is_a_503_that_changes_nothing(
    database: Database, database_url: str, triton: TritonServer
) -> None:
    with serving(triton, settings_for(triton, database_url)) as storage:
        with_champion(storage)
        database.stop()
        try:
            assert storage.published("digits", 4.0) == "0.0.3"
            reply = storage.promote("digits", "0.0.2")
            assert (reply.status_code, "PostgreSQL" in reply.json()["detail"]) == (503, True)
            assert storage.client.get("/models/digits/champion").status_code == 503
            assert "PostgreSQL" in storage.client.get("/health/ready").json()["postgresql"]
            assert storage.scale_served("digits") == 2.0
        finally:
            database.start()
        assert storage.promote("digits", "0.0.2").status_code == 200
        assert storage.scale_served("digits") == 3.0


def test_a_restart_of_postgresql_between_two_requests_is_not_noticed(
    database: Database, database_url: str, triton: TritonServer
) -> None:
    with serving(triton, settings_for(triton, database_url)) as storage:
        with_champion(storage)
        database.stop()
        database.start()
        assert storage.promote("digits", "0.0.2").status_code == 200
        assert storage.client.get("/models/digits/champion").json()["version"] == "0.0.2"


def test_a_service_that_starts_before_postgresql_and_triton_becomes_ready_when_they_come(
    database: Database, database_url: str, tmp_path: Path
) -> None:
    triton = new_triton(tmp_path)
    url = database_url
    database.stop()
    try:
        with serving(triton, settings_for(triton, url, watch_seconds=0.1)) as storage:
            assert storage.client.get("/health/live").status_code == 200
            assert set(storage.client.get("/health/ready").json()) == {"status", "postgresql", "triton"}
            database.start()
            with triton:
                wait_for(lambda: storage.client.get("/health/ready").status_code == 200)
                with_champion(storage)
                assert storage.scale_served("digits") == 2.0
    finally:
        if not database.is_running:
            database.start()


def test_a_database_that_dies_before_the_row_is_written_brings_the_old_version_back(
    database: Database, database_url: str, triton: TritonServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    with serving(triton, settings_for(triton, database_url)) as storage:
        with_champion(storage)
        check = storage.service.fleet.servers[0].check_serves

        def check_then_lose_the_database(model: str, number: int) -> None:
            check(model, number)
            if number == 2:
                database.stop()

        monkeypatch.setattr(storage.service.fleet.servers[0], "check_serves", check_then_lose_the_database)
        try:
            reply = storage.promote("digits", "0.0.2")
        finally:
            database.start()
        assert reply.status_code == 503
        assert storage.scale_served("digits") == 2.0
        assert [row["version"] for row in storage.client.get("/history/digits").json()] == ["0.0.1"]


@pytest.mark.parametrize("index_is_right", [True, False])
def test_a_triton_that_serves_another_version_than_it_said_is_caught(
    database_url: str, triton: TritonServer, monkeypatch: pytest.MonkeyPatch, index_is_right: bool
) -> None:
    with serving(triton, settings_for(triton, database_url)) as storage:
        with_champion(storage)
        server = storage.service.fleet.servers[0]
        monkeypatch.setattr(server, "load", lambda model: None)  # says yes, does nothing
        if not index_is_right:
            monkeypatch.setattr(server, "served", lambda: {"digits": [2]})
        reply = storage.promote("digits", "0.0.2")
        assert reply.status_code == 502
        said = "should serve version 2" if index_is_right else "what it serves is version 1"
        assert said in reply.json()["detail"]
        assert storage.scale_served("digits") == 2.0
        assert storage.client.get("/models/digits/champion").json()["version"] == "0.0.1"


def test_a_version_in_the_history_beats_what_triton_serves(database_url: str, triton: TritonServer) -> None:
    settings = settings_for(triton, database_url)
    with serving(triton, settings) as storage:
        with_champion(storage)
        # What a service leaves that is killed after the load and before the row is written:
        record = storage.service.catalog.version("digits", "0.0.2")
        storage.service.production._serve(record)
        assert storage.scale_served("digits") == 3.0
    with serving(triton, settings) as storage:
        assert storage.scale_served("digits") == 2.0


def test_a_model_that_is_served_and_was_never_promoted_is_unloaded(database_url: str, triton: TritonServer) -> None:
    settings = settings_for(triton, database_url)
    with serving(triton, settings) as storage:
        storage.published("digits", 2.0)
        storage.service.fleet.servers[0].load("digits")
        assert storage.scale_served("digits") == 2.0
    with serving(triton, settings):
        assert refuses(triton, "digits")


def test_a_champion_that_cannot_be_loaded_is_reported_and_the_others_are_served(
    database_url: str, triton: TritonServer
) -> None:
    settings = settings_for(triton, database_url)
    with serving(triton, settings) as storage:
        with_champion(storage, "first")
        with_champion(storage, "second")
    (triton.repository / "first" / "1" / "model.onnx").unlink()
    (triton.repository / "first" / "1" / "model.onnx").write_bytes(b"the disk rots")
    restart(triton)
    with serving(triton, settings) as storage:
        assert storage.scale_served("second") == 2.0
        assert refuses(triton, "first")
        assert "model_storage_champions_not_served 1.0" in storage.client.get("/metrics").text


def test_candidates_that_triton_does_not_serve_are_removed_at_the_start(
    database_url: str, triton: TritonServer
) -> None:
    settings = settings_for(triton, database_url)
    with serving(triton, settings) as storage:
        with_champion(storage)
        storage.client.post("/models/digits/versions/0.0.2/stage")
    with serving(triton, settings) as storage:
        assert storage.scale_served("digits__candidate") == 3.0
    restart(triton)
    with serving(triton, settings) as storage:
        assert not (triton.repository / "digits__candidate").exists()
        assert storage.client.get("/models/digits/versions").status_code == 200


def test_a_second_service_on_the_same_folder_is_refused(database_url: str, triton: TritonServer) -> None:
    settings = settings_for(triton, database_url)
    with serving(triton, settings), pytest.raises(Conflict, match="in use by another"):
        Service(settings)


def test_a_refused_load_is_told_apart_from_a_triton_that_is_away(database_url: str, triton: TritonServer) -> None:
    with serving(triton, settings_for(triton, database_url)) as storage:
        storage.upload("digits", model_zip("digits", 1.0, **{"model.onnx": b"no model"}))
        with pytest.raises(ServingFailed, match="did not load digits"):
            storage.service.fleet.servers[0].load("digits")
