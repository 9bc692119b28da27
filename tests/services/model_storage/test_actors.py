"""Who changed what: the name of the token, whatever the caller says of itself."""

import psycopg2
import pytest

from services.model_storage.production.history import History
from tests.services.model_storage.support import PUBLISH_TOKEN, Storage, model_zip


def rows(storage: Storage, model: str) -> list[tuple[str, str | None, str | None]]:
    """Return action, actor and on_behalf_of of every change, the latest first."""
    found = storage.client.get(f"/history/{model}").json()
    return [(row["action"], row["actor"], row["on_behalf_of"]) for row in found]


def test_every_kind_of_change_is_made_by_the_token_and_nobody_can_name_another(storage: Storage, model: str) -> None:
    for scale in (2.0, 3.0):
        storage.published(model, scale)
    path, claim = f"/models/{model}", {"actor": "deploy"}  # what earlier clients send, and who wants to be another
    for method, call, body in (
        ("POST", f"{path}/versions/0.0.1/promote", claim),
        ("POST", f"{path}/versions/0.0.2/canary", {"share": 0.1, **claim}),
        ("DELETE", f"{path}/canary", None),
        ("POST", f"{path}/versions/0.0.2/pin", {"on_behalf_of": "alice"}),
        ("DELETE", f"{path}/pin?actor=deploy", None),
        ("POST", f"{path}/rollback", claim),
        ("POST", f"/set_semantic_version/?model_name={model}&semantic_version=0.0.2", None),
        ("POST", f"/set_version/{model}?version=1", None),
        ("POST", f"/unload_model/{model}", None),
        ("POST", f"/load_model/{model}", None),
        ("DELETE", f"{path}/pin?on_behalf_of=nobody", None),  # nothing is pinned: no row
    ):
        storage.client.request(method, call, json=body).raise_for_status()
    made = [(action, claimed) for action, _, claimed in reversed(rows(storage, model))]
    assert made == [
        ("promote", "deploy"), ("canary", "deploy"), ("end_canary", None), ("promote", "alice"), ("pin", "alice"),
        ("unpin", "deploy"), ("rollback", "deploy"), ("promote", None), ("promote", None), ("unload", None),
        ("load", None),
    ]  # fmt: skip
    assert {actor for _, actor, _ in rows(storage, model)} == {"everything"}


@pytest.mark.parametrize("form", ["upload_new_version/", "upload_model"])
def test_a_version_says_who_uploaded_it_first(storage: Storage, model: str, form: str) -> None:
    field = "src_file" if form == "upload_new_version/" else "file"
    headers = {"Authorization": f"Bearer {PUBLISH_TOKEN}"}
    data = {"model_name": model, "published_by": "everything", "actor": "everything"}
    files = {field: ("model.zip", model_zip(model, 2.0, **{"meta.json": '{"published_by": "everything"}'}))}
    storage.client.post(f"/{form}", files=files, data=data, headers=headers).raise_for_status()
    record = storage.client.get(f"/models/{model}/versions/0.0.1").json()
    assert record["published_by"] == "publisher"
    again = storage.client.post("/upload_new_version/", files={"src_file": files[field]}, data=data)
    assert again.json() == {"version": "0.0.1", "already_published": True}
    assert storage.client.get(f"/models/{model}/versions/0.0.1").json() == record


def test_what_earlier_releases_took_for_an_actor_becomes_a_claim_once(database_url: str) -> None:
    earlier = History(database_url)
    earlier.prepare()
    with psycopg2.connect(database_url) as connection, connection.cursor() as cursor:
        cursor.execute("ALTER TABLE model_storage.promotions DROP COLUMN on_behalf_of")
        cursor.execute(
            "INSERT INTO model_storage.promotions (model, action, version, actor) "
            "VALUES ('m', 'promote', '0.0.1', 'ops')"
        )
    for _ in range(2):
        earlier.prepare()
        (row,) = earlier.rows("m")
        assert (row.actor, row.on_behalf_of, row.by) == (None, "ops", "nobody named on behalf of ops")
    earlier.close()
