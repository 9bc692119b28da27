"""Several Triton servers on one repository, a slow one, and one that cannot load what an earlier one could."""

import json
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from local.triton import TritonServer
from services.model_storage.production.history import Note
from tests.services.model_storage.support import (
    Storage,
    ask_scale,
    model_zip,
    new_triton,
    serving,
    settings_for,
    wait_for,
    zip_of,
)
from tests.support.servers import free_ports
from tests.support.tiny_onnx import scaling_config, scaling_model


@pytest.fixture
def tritons(tmp_path: Path) -> Iterator[list[TritonServer]]:
    first = new_triton(tmp_path)
    second = TritonServer(first.repository, tmp_path / "second", *free_ports(3), log=tmp_path / "second.log")
    with ExitStack() as stack:
        for server in (first, second):
            server.start()
            stack.callback(server.stop, 0.1)
        for server in (first, second):
            server.wait_ready()
        yield [first, second]


@pytest.fixture
def both(database_url: str, tritons: list[TritonServer]) -> Iterator[Storage]:
    addresses = ", ".join(server.grpc for server in tritons)
    keys = ", ".join(str(server.key_file) for server in tritons)
    settings = settings_for(tritons[0], database_url, triton_grpc=addresses, triton_key_file=keys)
    with serving(tritons[0], settings) as storage:
        yield storage


def test_a_version_is_in_production_when_every_server_serves_it(both: Storage, tritons: list[TritonServer]) -> None:
    both.promote("digits", both.published("digits", 2.0))
    assert [ask_scale(server, "digits") for server in tritons] == [2.0, 2.0]
    index = both.client.get("/index/").json()
    assert [entry["server"] for entry in index if entry["name"] == "digits"] == [server.grpc for server in tritons]
    tritons[1].stop(0.1)
    assert tritons[1].grpc in both.client.get("/health/ready").json()["triton"]
    tritons[1].start()
    tritons[1].wait_ready()
    both.service.production.reconcile()
    assert ask_scale(tritons[1], "digits") == 2.0


def test_at_the_first_server_that_fails_all_go_back_to_the_old_version(
    both: Storage, tritons: list[TritonServer], monkeypatch: pytest.MonkeyPatch
) -> None:
    both.promote("digits", both.published("digits", 2.0))
    both.published("digits", 3.0)
    second = both.service.fleet.servers[1]
    check, seen = second.check_serves, []

    def fails_once(model: str, number: int) -> None:
        seen.append([ask_scale(server, "digits") for server in tritons])
        check(model, 999 if len(seen) == 1 else number)

    monkeypatch.setattr(second, "check_serves", fails_once)
    assert both.promote("digits", "0.0.2").status_code == 502
    assert seen[0] == [3.0, 3.0], "both had switched: the test is about going back"
    assert [ask_scale(server, "digits") for server in tritons] == [2.0, 2.0]
    assert both.client.get("/models/digits/champion").json()["version"] == "0.0.1"


def test_a_server_that_is_away_stops_a_promotion_and_the_others_go_back(
    both: Storage, tritons: list[TritonServer]
) -> None:
    both.promote("digits", both.published("digits", 2.0))
    both.published("digits", 3.0)
    tritons[1].stop(0.1)
    assert both.promote("digits", "0.0.2").status_code == 503
    assert ask_scale(tritons[0], "digits") == 2.0


def test_a_load_that_takes_too_long_is_a_503_and_the_old_version_is_served_in_the_end(
    database_url: str, tritons: list[TritonServer]
) -> None:
    url = database_url
    with serving(tritons[0], settings_for(tritons[0], url)) as storage:
        storage.promote("digits", storage.published("digits", 2.0))
        storage.published("digits", 3.0)
    with serving(tritons[0], settings_for(tritons[0], url, triton_timeout=0.02)) as storage:
        reply = storage.promote("digits", "0.0.2")
        assert (reply.status_code, "did not load digits" in reply.json()["detail"]) == (503, True)
        assert storage.client.get("/models/digits/champion").json()["version"] == "0.0.1"
    with serving(tritons[0], settings_for(tritons[0], url, watch_seconds=0.1)):
        wait_for(lambda: ask_scale(tritons[0], "digits") == 2.0)


def test_a_rollback_takes_the_build_of_the_same_graph_that_this_triton_can_load(storage: Storage, model: str) -> None:
    graph = json.dumps({"onnx_sha256": "of version 1's graph"})
    storage.upload(model, zip_of({"model.plan": b"for an older TensorRT", "meta.json": graph}))
    with storage.service.history.change(model) as change:  # an earlier Triton, with a T4, has served it
        change.add("promote", "0.0.1", 1, "tensorrt", Note(snapshot_id="first"))
    storage.upload(model, model_zip(model, 2.0, **{"meta.json": graph}))
    storage.promote(model, storage.published(model, 3.0))
    reply = storage.client.post(f"/models/{model}/rollback")
    assert reply.json() == {"model": model, "version": "0.0.2", "triton_version": 2, "previous_version": "0.0.3"}
    assert storage.scale_served(model) == 2.0
    champion = storage.client.get(f"/models/{model}/champion").json()
    assert (champion["target"], champion["snapshot_id"]) == ("onnx", "first")
    assert storage.client.post(f"/models/{model}/rollback").status_code == 409


def test_models_that_were_put_into_the_repository_by_hand_are_left_alone(
    database_url: str, tritons: list[TritonServer]
) -> None:
    folder = tritons[0].repository / "by_hand" / "1"
    folder.mkdir(parents=True)
    (folder / "model.onnx").write_bytes(scaling_model(7.0))
    (folder.parent / "config.pbtxt").write_text(scaling_config("by_hand"))
    with serving(tritons[0], settings_for(tritons[0], database_url)) as storage:
        storage.service.fleet.servers[0].load("by_hand")
    with serving(tritons[0], settings_for(tritons[0], database_url)):
        assert ask_scale(tritons[0], "by_hand") == 7.0
        assert (folder / "model.onnx").exists()
