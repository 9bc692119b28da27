"""A canary: a version that answers a share of the requests beside the one in production."""

import pytest
from tritonclient.utils import InferenceServerException

from local.triton import TritonServer
from services.model_storage.production.canary_judge import Rules
from services.model_storage.production.history import Change, Note
from tests.services.model_storage.support import Storage, model_zip, new_triton, serving, settings_for


def start(storage: Storage, model: str, version: str, share: float = 0.25) -> object:
    return storage.client.post(f"/models/{model}/versions/{version}/canary", json={"share": share, "actor": "ops"})


def routes(storage: Storage, model: str, keys: int = 200) -> list[str]:
    return [
        storage.client.get(f"/models/{model}/route", params={"key": f"user {number}"}).json()["version"]
        for number in range(keys)
    ]


@pytest.fixture
def named(storage: Storage, model: str) -> str:
    """A model with 0.0.1 (times 2) in production and 0.0.2 (times 3) published."""
    storage.promote(model, storage.published(model, 2.0))
    storage.published(model, 3.0)
    return model


def test_a_canary_gets_its_share_of_the_keys_and_each_key_always_the_same(storage: Storage, named: str) -> None:
    assert set(routes(storage, named, 20)) == {"0.0.1"}
    reply = start(storage, named, "0.0.2")
    assert reply.json() == {"model": f"{named}__canary", "triton_version": "2"}
    assert storage.scale_served(f"{named}__canary") == 3.0
    assert storage.scale_served(named) == 2.0
    first = routes(storage, named)
    assert 30 <= first.count("0.0.2") <= 70, "about a quarter of 200"
    assert routes(storage, named) == first
    assert start(storage, named, "0.0.2", 0.5).status_code == 200
    wider = routes(storage, named)
    assert all(new == "0.0.2" for new, old in zip(wider, first, strict=True) if old == "0.0.2"), "nobody goes back"
    assert storage.client.get(f"/models/{named}/champion").json()["version"] == "0.0.1"
    assert [(row["action"], row["share"]) for row in storage.client.get(f"/history/{named}").json()] == [
        ("canary", 0.5), ("canary", 0.25), ("promote", None)
    ]  # fmt: skip
    at = storage.client.get(f"/history/{named}").json()[0]["promoted_at"]
    assert storage.client.get(f"/history/{named}", params={"at": at}).json()[0]["version"] == "0.0.1"


@pytest.mark.parametrize("way", ["end", "promote", "rollback"])
def test_a_canary_is_over_when_it_is_ended_or_production_changes(storage: Storage, named: str, way: str) -> None:
    if way == "rollback":
        storage.promote(named, storage.published(named, 4.0))
    start(storage, named, "0.0.2")
    if way == "end":
        assert storage.client.delete(f"/models/{named}/canary").json() == {"removed": True}
    elif way == "promote":
        assert storage.promote(named, "0.0.2").json()["previous_version"] == "0.0.1"
    else:
        assert storage.client.post(f"/models/{named}/rollback").json()["version"] == "0.0.1"
    with pytest.raises(InferenceServerException):
        storage.scale_served(f"{named}__canary")
    assert not (storage.repository / f"{named}__canary").exists()
    assert set(routes(storage, named, 20)) == {"0.0.2" if way == "promote" else "0.0.1"}
    assert storage.client.delete(f"/models/{named}/canary").json() == {"removed": False}


def test_a_canary_that_makes_no_sense_or_does_not_load_is_refused(storage: Storage, named: str) -> None:
    assert start(storage, named, "0.0.1").status_code == 409
    assert start(storage, named, "9.9.9").status_code == 404
    for share in (0, 2.7e-159, 0.6, -1, "much"):
        assert start(storage, named, "0.0.2", share).status_code == 422
    storage.upload(named, model_zip(named, 9.0, **{"model.onnx": b"no model"}))
    assert start(storage, named, "0.0.3").status_code == 502
    assert not (storage.repository / f"{named}__canary").exists()
    assert start(storage, named, "0.0.2").status_code == 200
    storage.published(named, 4.0)
    assert start(storage, named, "0.0.4").status_code == 409
    new = storage.published(f"{named}x", 2.0)
    assert start(storage, f"{named}x", new).status_code == 409, "nothing is in production"
    assert storage.client.get(f"/models/{named}x/route", params={"key": "a"}).status_code == 404


def test_a_canary_whose_row_is_not_written_is_undone(
    storage: Storage, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise ArithmeticError("value out of range")

    with monkeypatch.context() as patch:
        patch.setattr(Change, "add", fail)
        with pytest.raises(ArithmeticError):
            storage.service.canaries.start(named, "0.0.2", Rules(), Note())
    assert not (storage.repository / f"{named}__canary").exists()
    assert f"{named}__canary" not in storage.service.fleet.served().models()
    assert start(storage, named, "0.0.2").status_code == 200


def test_a_canary_comes_back_with_a_restarted_triton(database_url: str, tmp_path: object) -> None:
    triton: TritonServer = new_triton(tmp_path)
    triton.start()
    triton.wait_ready()
    try:
        with serving(triton, settings_for(triton, database_url)) as storage:
            storage.promote("digits", storage.published("digits", 2.0))
            start(storage, "digits", storage.published("digits", 3.0))
            triton.stop(0.1)
            triton.start()
            triton.wait_ready()
            assert storage.service.production.reconcile() == []
            assert storage.scale_served("digits__canary") == 3.0
    finally:
        triton.stop(0.1)
