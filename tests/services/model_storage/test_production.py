"""Promotion, rollback, the candidate beside the champion, and the history: on the real Triton and PostgreSQL."""

import threading
from datetime import datetime

import pytest
import tritonclient.grpc
from tritonclient.utils import InferenceServerException

from tests.services.model_storage.support import Storage, ask_scale, model_zip
from tests.support.tiny_onnx import scaling_config


def champion(storage: Storage, model: str) -> str | None:
    reply = storage.client.get(f"/models/{model}/champion")
    return reply.json()["version"] if reply.status_code == 200 else None


def history(storage: Storage, model: str) -> list[tuple[str, str | None]]:
    return [(row["action"], row["version"]) for row in storage.client.get(f"/history/{model}").json()]


def test_a_promoted_version_is_served_and_its_origin_is_known(storage: Storage, model: str) -> None:
    storage.published(model, 2.0)
    reply = storage.promote(
        model, "0.0.1", run_id="run 1", snapshot_id="snap 1", reason="better", on_behalf_of="nightly"
    )
    answer = reply.json()
    proof = answer.pop("proof")
    assert answer == {"model": model, "version": "0.0.1", "triton_version": 1, "previous_version": None}
    assert proof["examples"] == 0
    assert "nothing was proved" in proof["notes"][0]
    assert storage.scale_served(model) == 2.0
    answer = storage.client.get(f"/models/{model}/champion").json()
    assert (answer["version"], answer["triton_version"], answer["target"]) == ("0.0.1", 1, "onnx")
    assert (answer["run_id"], answer["snapshot_id"]) == ("run 1", "snap 1")
    row = storage.client.get(f"/history/{model}").json()[0]
    assert (row["reason"], row["actor"], row["on_behalf_of"]) == ("better", "everything", "nightly")


def test_promoting_what_is_in_production_already_adds_no_row(storage: Storage, model: str) -> None:
    storage.published(model, 2.0)
    first = storage.promote(model, "0.0.1").json()
    assert storage.promote(model, "0.0.1").json() == first | {"proof": None}
    assert history(storage, model) == [("promote", "0.0.1")]


def test_a_version_that_triton_refuses_is_a_502_and_the_old_one_serves_on(storage: Storage, model: str) -> None:
    storage.published(model, 2.0)
    storage.promote(model, "0.0.1")
    config = (storage.repository / model / "config.pbtxt").read_bytes()
    assert storage.upload(model, model_zip(model, 9.0, **{"model.onnx": b"no model"})).status_code == 200
    reply = storage.promote(model, "0.0.2")
    assert reply.status_code == 502
    assert "onnx" in reply.json()["detail"].lower()
    assert storage.scale_served(model) == 2.0
    assert (storage.repository / model / "config.pbtxt").read_bytes() == config
    assert history(storage, model) == [("promote", "0.0.1")]
    storage.published(model, 4.0)
    assert storage.promote(model, "0.0.3").json()["previous_version"] == "0.0.1"
    assert storage.scale_served(model) == 4.0


def test_a_first_version_that_triton_refuses_leaves_nothing_in_production(storage: Storage, model: str) -> None:
    storage.upload(model, model_zip(model, 9.0, **{"model.onnx": b"no model"}))
    assert storage.promote(model, "0.0.1").status_code == 502
    assert champion(storage, model) is None
    with pytest.raises(InferenceServerException):
        storage.scale_served(model)


def test_a_rollback_goes_back_one_version_and_a_second_one_further(storage: Storage, model: str) -> None:
    for scale in (2.0, 3.0, 4.0):
        storage.promote(model, storage.published(model, scale), snapshot_id=f"snapshot of {scale}")
    reply = storage.client.post(f"/models/{model}/rollback", json={"reason": "wrong answers", "actor": "ops"})
    assert (reply.json()["version"], reply.json()["previous_version"]) == ("0.0.2", "0.0.3")
    assert storage.scale_served(model) == 3.0
    assert storage.client.get(f"/models/{model}/champion").json()["snapshot_id"] == "snapshot of 3.0"
    assert storage.client.post(f"/models/{model}/rollback").json()["version"] == "0.0.1"
    assert storage.scale_served(model) == 2.0
    reply = storage.client.post(f"/models/{model}/rollback")
    assert reply.status_code == 409
    assert "no earlier version" in reply.json()["detail"]
    assert [version for _, version in history(storage, model)] == ["0.0.1", "0.0.2", "0.0.3", "0.0.2", "0.0.1"]


def test_the_history_answers_which_version_was_in_production_at_a_time(storage: Storage, model: str) -> None:
    times = []
    for scale in (2.0, 3.0):
        storage.promote(model, storage.published(model, scale))
        times.append(datetime.fromisoformat(storage.client.get(f"/models/{model}/champion").json()["promoted_at"]))
    between = times[0] + (times[1] - times[0]) / 2
    for moment, version in ((times[0], "0.0.1"), (between, "0.0.1"), (times[1], "0.0.2")):
        rows = storage.client.get(f"/history/{model}", params={"at": moment.isoformat()}).json()
        assert [row["version"] for row in rows] == [version]
    early = times[0].replace(year=2020).isoformat()
    assert storage.client.get(f"/history/{model}", params={"at": early}).json() == []


def test_each_version_is_served_by_its_own_configuration(storage: Storage, model: str) -> None:
    for scale, batch in ((2.0, 8), (3.0, 16)):
        config = scaling_config(model, max_batch_size=batch)
        storage.upload(model, model_zip(model, scale, **{"config.pbtxt": config}))
    with tritonclient.grpc.InferenceServerClient(storage.triton.grpc) as client:
        for version, batch in (("0.0.2", 16), ("0.0.1", 8)):
            storage.promote(model, version)
            assert client.get_model_config(model).config.max_batch_size == batch


def test_a_candidate_is_served_beside_the_champion_under_a_name_of_its_own(storage: Storage, model: str) -> None:
    for scale in (2.0, 3.0, 4.0):
        storage.published(model, scale)
    storage.promote(model, "0.0.1")
    for version, scale in (("0.0.2", 3.0), ("0.0.3", 4.0)):
        reply = storage.client.post(f"/models/{model}/versions/{version}/stage")
        assert reply.json() == {"model": f"{model}__candidate", "triton_version": version[-1]}
        assert storage.scale_served(f"{model}__candidate") == scale
        assert storage.scale_served(model) == 2.0
    assert f"{model}__candidate" not in storage.client.get("/models").json()
    assert storage.client.delete(f"/models/{model}/stage").json() == {"removed": True}
    assert storage.client.delete(f"/models/{model}/stage").json() == {"removed": False}
    assert not (storage.repository / f"{model}__candidate").exists()
    with pytest.raises(InferenceServerException):
        storage.scale_served(f"{model}__candidate")
    assert (storage.repository / model / "3" / "model.onnx").exists(), "the version itself stays"


def test_a_candidate_that_triton_refuses_is_removed(storage: Storage, model: str) -> None:
    storage.upload(model, model_zip(model, 9.0, **{"model.onnx": b"no model"}))
    assert storage.client.post(f"/models/{model}/versions/0.0.1/stage").status_code == 502
    assert not (storage.repository / f"{model}__candidate").exists()


def test_no_request_fails_while_versions_change(storage: Storage, model: str) -> None:
    for scale in (2.0, 3.0):
        storage.published(model, scale)
    storage.promote(model, "0.0.1")
    answers: list[float] = []
    stop = threading.Event()

    def ask() -> None:
        while not stop.is_set():
            answers.append(ask_scale(storage.triton, model))

    thread = threading.Thread(target=ask)
    thread.start()
    for version in ("0.0.2", "0.0.1", "0.0.2"):
        before = len(answers)
        assert storage.promote(model, version).status_code == 200
        while len(answers) < before + 10 and thread.is_alive():
            stop.wait(0.01)
    stop.set()
    thread.join(20)
    assert set(answers) == {2.0, 3.0}
    assert answers[-1] == 3.0


def test_two_promotions_at_once_come_one_after_the_other(storage: Storage, model: str) -> None:
    for scale in (2.0, 3.0, 4.0, 5.0):
        storage.published(model, scale)
    versions = ["0.0.1", "0.0.2", "0.0.3", "0.0.4"]
    threads = [threading.Thread(target=storage.promote, args=(model, version)) for version in versions]
    [thread.start() for thread in threads]
    [thread.join(60) for thread in threads]
    rows = storage.client.get(f"/history/{model}").json()
    assert sorted(row["version"] for row in rows) == versions
    assert [row["previous_version"] for row in rows[:-1]] == [row["version"] for row in rows[1:]]
    assert storage.scale_served(model) == float(rows[0]["version"][-1]) + 1
