"""The page answers which version was in production when, and brings the one before back, on a real storage."""

from __future__ import annotations

import io
import json
import re
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from local.settings import Settings
from tests.conversion_jobs.serving import TOKEN, TOKENS, Serving, serving
from tests.support.airflow import Airflow, signed
from tests.support.tiny_onnx import scaling_config, scaling_model
from tests.support.tiny_pictures import gray_png, picture_zip
from tests.support.waiting import wait_for

MODEL = "seasons"
TOKEN_AUDIENCE = "nightshift.operations.page"
PIPELINE = f"""\
description: A pipeline
owner: ml-team
data: {{group: season}}
train: {{config: configs/classifier/season.yaml}}
publish: {{model_name: {MODEL}}}
"""


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory, postgres_url: str) -> Iterator[Serving]:
    with serving(tmp_path_factory.mktemp("serving"), postgres_url) as running:
        yield running


@pytest.fixture(scope="module")
def connected(airflow: Airflow, storage: Serving) -> Iterator[Airflow]:
    """Airflow with a connection to the storage, made as in its UI, and a pipeline that makes the model."""
    connection = {
        "connection_id": "nightshift_storage_airflow", "conn_type": "generic", "password": TOKENS["airflow"],
        "extra": json.dumps({"url": storage.url}),
    }  # fmt: skip
    airflow.call("POST", "/connections", json=connection)
    config = airflow.home / "configs" / "classifier" / "season.yaml"
    config.parent.mkdir(exist_ok=True)
    config.write_text("experiment_name: season\nmodel: {backbone_name: resnet18.a1_in1k}\n")
    pipeline = airflow.home / "configs" / "pipelines" / "seasons.yaml"
    pipeline.write_text(PIPELINE)
    yield airflow
    pipeline.unlink()
    airflow.call("DELETE", "/connections/nightshift_storage_airflow")


@pytest.fixture
def promoted(storage: Serving) -> dict[str, str]:
    """Three versions, each in production after the one before; when each came, by version."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=storage.url, headers=headers, timeout=60) as client:
        for scale in (2.0, 3.0, 4.0):
            files = {"src_file": ("model.zip", flat_zip(scale))}
            version = client.post("/upload_new_version/", files=files, data={"model_name": MODEL}).json()["version"]
            client.delete(f"/models/{MODEL}/pin")
            client.post(f"/models/{MODEL}/versions/{version}/promote", json={}).raise_for_status()
        rows = client.get(f"/history/{MODEL}").json()
    return {row["version"]: row["promoted_at"] for row in reversed(rows)}


def flat_zip(scale: float) -> bytes:
    archive = io.BytesIO()
    with zipfile.ZipFile(archive, "w") as opened:
        opened.writestr("model.onnx", scaling_model(scale))
        opened.writestr("config.pbtxt", scaling_config(MODEL))
        opened.writestr("meta.json", "{}")
    return archive.getvalue()


def page(airflow: Airflow, **query: str) -> str:
    return airflow.client.get("/nightshift/", params=query).raise_for_status().text


def send(airflow: Airflow, path: str, form: dict[str, str], **headers: str) -> httpx.Response:
    """Send a form as a browser does: with the page's token, unless the form says another."""
    return airflow.client.post(f"/nightshift/{path}", data={"token": token_of(airflow.client), **form}, headers=headers)


def token_of(client: httpx.Client) -> str:
    tokens = set(re.findall('name="token" value="([^"]+)"', client.get("/nightshift/").raise_for_status().text))
    assert len(tokens) == 1, "the forms of a page carry its token"
    return str(tokens.pop())


@pytest.fixture
def guest(connected: Airflow) -> Iterator[httpx.Client]:
    """Who may see everything and change nothing."""
    passwords = next(connected.state.rglob("passwords.json"))
    credentials = {"username": "guest", "password": json.loads(passwords.read_text())["guest"]}
    token = httpx.post(f"{connected.url}/auth/token", json=credentials, timeout=30).json()["access_token"]
    with httpx.Client(base_url=connected.url, headers={"Authorization": f"Bearer {token}"}, timeout=30) as client:
        yield client


def champion(storage: Serving) -> str:
    return str(storage.get(f"/models/{MODEL}/champion").json()["version"])


def test_the_page_shows_stages_history_and_the_way_back(connected: Airflow, promoted: dict[str, str]) -> None:
    shown = page(connected)
    assert "champion 0.0.3" in shown and "previous 0.0.2" in shown
    assert "Roll back to 0.0.2" in shown
    assert shown.index("<td>0.0.3</td>") < shown.index("<td>0.0.2</td>") < shown.index("<td>0.0.1</td>")


def test_the_page_answers_which_version_was_in_production_at_a_time(
    connected: Airflow, promoted: dict[str, str]
) -> None:
    assert "UTC: version 0.0.2<" in page(connected, at=promoted["0.0.2"].rstrip("Z")[:26], model=MODEL)
    assert "UTC: version none<" in page(connected, at="2001-01-01T03:00")
    assert "Nothing can be read from the model storage" in page(connected, at="on tuesday")


def test_one_click_brings_the_version_before_back_and_a_second_one_changes_nothing(
    connected: Airflow, storage: Serving, promoted: dict[str, str]
) -> None:
    form = {"model": MODEL, "from_version": "0.0.3", "reason": "it flickers"}
    clicked = send(connected, "rollback", form, Origin=connected.url)
    assert (clicked.status_code, clicked.headers["location"]) == (303, "./")
    assert champion(storage) == "0.0.2"
    assert storage.models_in_triton()[MODEL] == "2"
    latest = storage.get(f"/history/{MODEL}").json()[0]
    assert (latest["action"], latest["reason"]) == ("rollback", "it flickers")
    assert (latest["actor"], latest["on_behalf_of"]) == ("airflow", "admin")
    assert "<td>airflow on behalf of admin</td>" in page(connected)
    again = send(connected, "rollback", form)
    assert again.status_code == 409
    assert "Nothing was changed: 409: not version 0.0.3" in again.text
    assert champion(storage) == "0.0.2"


def test_a_rollback_can_be_pinned_and_unpinned(connected: Airflow, storage: Serving, promoted: dict[str, str]) -> None:
    assert send(connected, "rollback", {"model": MODEL, "from_version": "0.0.3", "pin": "true"}).status_code == 303
    assert "pinned 0.0.2" in page(connected)
    assert "Roll back to" not in page(connected)
    assert send(connected, "unpin", {"model": MODEL}).status_code == 303
    assert "pinned 0.0.2" not in page(connected)


def test_a_canary_is_shown_with_its_numbers_while_it_is_under_way_and_when_it_has_ended(
    connected: Airflow, storage: Serving, promoted: dict[str, str]
) -> None:
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=storage.url, headers=headers, timeout=60) as client:
        client.post(f"/models/{MODEL}/versions/0.0.2/canary", json={"share": 0.2}).raise_for_status()
        shown = page(connected)
        assert "canary 0.0.2" in shown
        assert "canary, answers 20 % of the requests: 0 of 100 answers at its last share" in shown
        assert "the numbers" not in shown
        client.delete(f"/models/{MODEL}/canary").raise_for_status()
    shown = page(connected)
    assert "end canary: ended by hand" in shown and "the numbers" in shown
    assert "of the requests" not in shown


def test_only_who_may_edit_the_dag_and_only_from_this_page(
    connected: Airflow, storage: Serving, promoted: dict[str, str], guest: httpx.Client
) -> None:
    form = {"model": MODEL, "from_version": "0.0.3"}
    for origin in ("http://elsewhere.example", "null", f"{connected.url}.elsewhere.example"):
        elsewhere = send(connected, "rollback", form, Origin=origin)
        assert (elsewhere.status_code, champion(storage)) == (403, "0.0.3")
    refused = guest.post("/nightshift/rollback", data={"token": token_of(guest), **form})
    assert (refused.status_code, champion(storage)) == (403, "0.0.3")
    assert "the right to edit retrain_seasons" in refused.json()["detail"]
    assert httpx.post(f"{connected.url}/nightshift/rollback", data=form).status_code == 401


def test_a_form_needs_the_token_of_its_users_page_with_and_without_an_origin(
    connected: Airflow, storage: Serving, promoted: dict[str, str], guest: httpx.Client
) -> None:
    form = {"model": MODEL, "from_version": "0.0.3"}
    right, anothers = token_of(connected.client), token_of(guest)
    changed = right[:-2] + ("A" if right[-2] != "A" else "B") + right[-1]
    login = connected.client.headers["Authorization"].removeprefix("Bearer ")
    secrets = Settings(connected.state).secrets
    of_a_worker = signed(secrets["airflow_api"], sub="admin", aud=TOKEN_AUDIENCE)  # the key of a worker's log server
    old = signed(secrets["airflow_jwt"], seconds=-60, sub="admin", aud=TOKEN_AUDIENCE)
    wrong = ["", "wrong", "\u0436", changed, right.partition(".")[0], anothers, login, of_a_worker, old]
    for headers in ({}, {"Origin": connected.url}):
        for token in wrong:
            for path in ("rollback", "unpin"):
                refused = send(connected, path, {"token": token, **form}, **headers)
                assert (refused.status_code, champion(storage)) == (403, "0.0.3"), token
                assert "not of this page" in refused.json()["detail"]
        without = connected.client.post("/nightshift/rollback", data=form, headers=headers)
        assert (without.status_code, champion(storage)) == (403, "0.0.3")
    refused = httpx.get(f"{connected.url}/api/v2/dags", headers={"Authorization": f"Bearer {right}"}, timeout=30)
    assert refused.status_code in (401, 403), "a form's token is no log-in"
    assert send(connected, "rollback", {"token": right, **form}).status_code == 303
    assert champion(storage) == "0.0.2"


@pytest.mark.parametrize(
    "name",
    [
        f"x/../{MODEL}",
        f"../models/{MODEL}",
        f"./{MODEL}",
        f"{MODEL}/",
        f"{MODEL}/versions/..",
        f"x%2F..%2F{MODEL}",
        f"x%252F..%252F{MODEL}",
        f"%73{MODEL[1:]}",
        "..",
        ".",
        "",
        f"{MODEL}\n",
        f"{MODEL}?",
        f"{MODEL}#",
        f"x\\..\\{MODEL}",
    ],
)
def test_what_is_no_name_is_refused_before_rights_are_looked_up_by_it(
    connected: Airflow, storage: Serving, promoted: dict[str, str], guest: httpx.Client, name: str
) -> None:
    for path, form in (
        ("rollback", {"model": name, "from_version": "0.0.3"}),
        ("rollback", {"model": MODEL, "from_version": name}),
        ("unpin", {"model": name}),
    ):
        for client in (connected.client, guest):
            refused = client.post(f"/nightshift/{path}", data={"token": token_of(client), **form})
            assert (refused.status_code, champion(storage)) == (422, "0.0.3")
            assert not name or "letters, digits" in refused.json()["detail"]
    if name:
        shown = connected.client.get("/nightshift/", params={"model": name})
        assert (shown.status_code, "cannot be the name of a model" in shown.text) == (422, True)


def test_a_pipelines_model_that_was_never_published_is_shown_as_such(connected: Airflow) -> None:
    other: Path = connected.home / "configs" / "pipelines" / "unborn.yaml"
    other.write_text(PIPELINE.replace(MODEL, "unborn"))
    try:
        wait_for(lambda: "never been in production" in page(connected), "the new pipeline's row")
    finally:
        other.unlink()


@pytest.fixture
def photographed(storage: Serving) -> None:
    """Two versions that take pictures, the second in production; each tells another class first."""
    headers = {"Authorization": f"Bearer {TOKEN}"}
    with httpx.Client(base_url=storage.url, headers=headers, timeout=60) as client:
        for swap in (False, True):
            files = {"src_file": ("model.zip", picture_zip(swap=swap))}
            reply = client.post("/upload_new_version/", files=files, data={"model_name": MODEL}).raise_for_status()
            client.delete(f"/models/{MODEL}/pin")
            promote = f"/models/{MODEL}/versions/{reply.json()['version']}/promote"
            client.post(promote, json={"force": True}).raise_for_status()  # what was served before takes no pictures


def try_picture(client: httpx.Client, content: bytes, model: str = MODEL, **headers: str) -> httpx.Response:
    headers = {"X-Nightshift-Token": token_of(client)} | headers
    return client.post("/nightshift/try", params={"model": model}, content=content, headers=headers, timeout=60)


def test_who_sees_the_page_may_try_a_picture_on_the_champion_and_the_version_before(
    connected: Airflow, photographed: None, guest: httpx.Client
) -> None:
    shown = guest.get("/nightshift/").text
    assert "Try it" in shown and f"<option>{MODEL}</option>" in shown
    answer = try_picture(guest, gray_png(51))
    assert answer.status_code == 200
    firsts = re.findall(r'<dt class="first">([^<]+)</dt>', answer.text)
    assert firsts == ["pixel 1", "pixel 0"]
    assert answer.text.index("champion <small>") < answer.text.index("previous <small>")
    assert "20.0 %" in answer.text


def test_what_cannot_be_tried_is_said_in_a_sentence(connected: Airflow, photographed: None) -> None:
    client = connected.client
    assert "no picture that can be decoded" in try_picture(client, b"<script>alert(1)</script>").text
    large = try_picture(client, bytes((16 << 20) + 1))
    assert (large.status_code, "larger than 16 MiB" in large.text) == (413, True)
    none = try_picture(client, gray_png(1), model="nobody")
    assert (none.status_code, "no version of &#39;nobody&#39; is in production" in none.text) == (422, True)
    assert try_picture(client, gray_png(1), model="../x").status_code == 422
    assert try_picture(client, gray_png(1), **{"X-Nightshift-Token": "another"}).status_code == 403
    assert try_picture(client, gray_png(1), Origin="http://elsewhere").status_code == 403
