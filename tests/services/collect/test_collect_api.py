"""The collection API over real HTTP, as its old and new clients speak it."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import uvicorn

from services.collect import app as module
from services.collect.app import Credentials, create_app
from services.collect.store import Picset, Picture, Store, picset_guid


@pytest.fixture
def store(tmp_path: Path) -> Store:
    store = Store(tmp_path / "collect")
    guids = {name: picset_guid("season", name, "1") for name in ("winter", "summer", "season_trash")}
    picsets = [Picset(guid, "season", name) for name, guid in guids.items()]
    pictures = []
    for name, guid in guids.items():
        for number in range(2):
            filepath = f"season/{guid}/{name}_{number}.png"
            store.write_picture(filepath, f"{name} {number}".encode())
            pictures.append(Picture(filepath, guid, 30, 20))
    assert store.add(picsets, pictures) == 6
    return store


@pytest.fixture
def url(store: Store) -> Iterator[str]:
    server = uvicorn.Server(
        uvicorn.Config(create_app(store, Credentials("someone", "a secret")), port=0, log_level="error")
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        assert thread.is_alive()
        thread.join(0.01)
    yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    server.should_exit = True
    thread.join(10)


@pytest.fixture
def client(url: str) -> Iterator[httpx.Client]:
    token = httpx.post(f"{url}/login", json={"login": "someone", "password": "a secret"}).json()["token"]
    with httpx.Client(base_url=url, headers={"Authorization": f"bearer {token}"}) as found:
        yield found


# what the older loader sends
ALL_MODES = ["PREPARING", "CHECKING", "VALIDATED"]


def ask(client: httpx.Client, **query: object) -> httpx.Response:
    body = {"listBy": 0, "categories": [], "groups": ["season"], "mode": ALL_MODES, **query}
    return client.post("/meta/pictures", json=body)


def names(answer: httpx.Response) -> dict[str, list[str]]:
    assert answer.status_code == 200, answer.text
    data = answer.json()["data"]
    return {name: [p["filepath"].rsplit("/", 1)[-1] for p in content["pictures"]] for name, content in data.items()}


def test_pictures_are_listed_by_category_with_their_picset(client: httpx.Client) -> None:
    answer = ask(client)
    assert names(answer) == {name: [f"{name}_0.png", f"{name}_1.png"] for name in ("season_trash", "summer", "winter")}
    picture = answer.json()["data"]["winter"]["pictures"][0]
    assert set(picture) == {"filepath", "picsetGuid"}
    assert picture["picsetGuid"] == picset_guid("season", "winter", "1")


def test_the_listing_can_be_narrowed(client: httpx.Client) -> None:
    assert set(names(ask(client, categories=["winter"]))) == {"winter"}
    assert names(ask(client, mode=["CHECKING"])) == {}
    assert len(names(ask(client, mode=[]))) == 3


def test_the_files_of_the_listing_are_served(client: httpx.Client) -> None:
    for content in ask(client).json()["data"].values():
        for picture in content["pictures"]:
            name = picture["filepath"].rsplit("/", 1)[-1].removesuffix(".png")
            assert client.get(f"/files/{picture['filepath']}").text == name.replace("_0", " 0").replace("_1", " 1")


def test_metadata_of_picsets(client: httpx.Client) -> None:
    guid = picset_guid("season", "winter", "1")
    (entry,) = client.post("/meta/picsets", json={"guids": [guid]}).json()["data"]
    assert entry["picset"] == {"guid": guid, "group": "season", "category": "winter", "mode": "VALIDATED"}
    assert [item["origin"] for item in entry["items"]] == [
        {"filepath": f"season/{guid}/winter_{n}.png", "width": 30, "height": 20} for n in range(2)
    ]


def test_an_unknown_picset_is_named(client: httpx.Client) -> None:
    guids = [picset_guid("season", "winter", "1"), "no-such-guid"]
    answer = client.post("/meta/picsets", json={"guids": guids})
    assert (answer.status_code, answer.json()["detail"]) == (404, "there is no picset no-such-guid")


def test_picsets_move_along(client: httpx.Client) -> None:
    guid = picset_guid("season", "winter", "1")
    for call, mode in (("preparing", "PREPARING"), ("checking", "CHECKING"), ("trained", "TRAINED")):
        assert client.post(f"/picset/{call}", json={"guids": [guid]}).status_code == 200
        assert set(names(ask(client, mode=[mode]))) == {"winter"}
    assert "winter" not in names(ask(client))


def test_a_move_is_all_or_nothing(client: httpx.Client) -> None:
    guid = picset_guid("season", "winter", "1")
    answer = client.post("/picset/checking", json={"guids": [guid, "no-such-guid"]})
    assert answer.status_code == 404
    assert "no-such-guid" in answer.json()["detail"]
    assert "winter" in names(ask(client, mode=["VALIDATED"]))


def test_a_group_that_does_not_exist_is_named_with_those_that_do(client: httpx.Client) -> None:
    answer = ask(client, groups=["season", "footwear"])
    assert answer.status_code == 404
    assert answer.json()["detail"] == "there is no group footwear; there is: season"


@pytest.mark.parametrize("query", [{"groups": []}, {"mode": ["DONE"]}, {"listBy": 1}, {"groups": "season"}])
def test_a_query_that_is_not_understood_is_refused(client: httpx.Client, query: dict[str, object]) -> None:
    assert ask(client, **query).status_code == 422


@pytest.mark.parametrize("path", ["/meta/pictures", "/meta/picsets", "/picset/checking", "/picset/trained"])
@pytest.mark.parametrize(
    "header", [None, "", "bearer", "bearer wrong", "bearer 99999999999.abc", "Basic abc", "bearer ж"]
)
def test_nothing_is_told_or_moved_without_a_token(url: str, store: Store, path: str, header: str | None) -> None:
    headers = {} if header is None else {"Authorization": header.encode()}
    body = {"groups": ["season"], "guids": [picset_guid("season", "winter", "1")]}
    assert httpx.post(f"{url}{path}", json=body, headers=headers).status_code == 401
    assert store.picsets([picset_guid("season", "winter", "1")])[0][0].mode == "VALIDATED"


@pytest.mark.parametrize("scheme", ["bearer", "Bearer", "token", "Token"])
def test_both_schemes_of_the_old_clients_are_understood(client: httpx.Client, scheme: str) -> None:
    token = client.headers["Authorization"].partition(" ")[2]
    client.headers["Authorization"] = f"{scheme} {token}"
    assert len(names(ask(client))) == 3


@pytest.mark.parametrize("body", [{"login": "someone", "password": "guess"}, {"login": "x", "password": "a secret"}])
def test_a_wrong_login_gets_no_token(url: str, body: dict[str, str]) -> None:
    answer = httpx.post(f"{url}/login", json=body)
    assert (answer.status_code, "token" in answer.text.replace("bearer <token>", "")) == (401, False)


def test_a_token_runs_out_and_ends_with_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    credentials = Credentials("someone", "a secret")
    token = credentials.token()
    assert credentials.accepts(token)
    assert Credentials("someone", "a secret").accepts(token), "a restart of the server changes nothing"
    assert not Credentials("someone", "another").accepts(token)
    until, _, signature = token.partition(".")
    assert not credentials.accepts(f"{int(until) + 1}.{signature}")
    monkeypatch.setattr(module.time, "time", lambda: int(until) + 1)
    assert not credentials.accepts(token)


@pytest.mark.parametrize(
    "path", ["../index.sqlite", "%2e%2e/index.sqlite", "..%2findex.sqlite", "season/../../index.sqlite"]
)
def test_only_pictures_are_served(url: str, path: str) -> None:
    import socket
    from urllib.parse import urlsplit

    parts = urlsplit(url)
    with socket.create_connection((parts.hostname, parts.port)) as line:  # httpx would tidy the path up
        line.sendall(f"GET /files/{path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
        answer = b"".join(iter(lambda: line.recv(65536), b""))
    assert answer.startswith((b"HTTP/1.1 404", b"HTTP/1.1 400"))


def test_health_needs_no_login(url: str) -> None:
    assert httpx.get(f"{url}/health").json() == {"status": "ok"}
