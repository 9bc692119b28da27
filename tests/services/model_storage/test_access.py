"""Who may do what, and how the service starts."""

import hashlib
import itertools
import os
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from pydantic import ValidationError

from services.model_storage.settings import Settings
from tests.services.model_storage.support import PUBLISH_TOKEN, READ_TOKEN, Storage, model_zip

ROOT = Path(__file__).resolve().parents[3]
OPEN = {"/health/live", "/health/ready", "/metrics"}
LONG = "a token that is long enough"
VALUES = {"repository": "models", "database_url": "postgresql://nobody@127.0.0.1:1/none"}


def test_every_call_needs_a_token_but_health_and_metrics(storage: Storage) -> None:
    paths = storage.client.get("/openapi.json").json()["paths"]
    assert len(paths) > 15
    addresses = itertools.count(1)
    for path, calls in paths.items():
        for method in calls:
            url = storage.url + path.format(model="m", version="0.0.1")
            address = f"127.0.1.{next(addresses)}"  # one address with many wrong tokens would be answered 429
            for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
                with httpx.Client(transport=httpx.HTTPTransport(local_address=address)) as client:
                    reply = client.request(method, url, headers=headers)
                assert (reply.status_code == 401) == (path not in OPEN), f"{method} {path}: {reply.status_code}"


@pytest.mark.parametrize(("token", "may_publish"), [(READ_TOKEN, False), (PUBLISH_TOKEN, True)])
def test_a_token_may_do_only_what_its_scopes_say(storage: Storage, model: str, token: str, may_publish: bool) -> None:
    with httpx.Client(base_url=storage.url, headers={"Authorization": f"Bearer {token}"}) as client:
        assert client.get("/models").status_code == 200
        files = {"src_file": model_zip(model, 2.0)}
        reply = client.post("/upload_new_version/", files=files, data={"model_name": model})
        assert reply.status_code == (200 if may_publish else 403)
        for call in (f"/models/{model}/versions/0.0.1/promote", f"/load_model/{model}", f"/models/{model}/rollback"):
            refused = client.post(call)
            assert refused.status_code == 403
            name, may = ("publisher", "read, publish") if may_publish else ("reader", "read")
            assert refused.json()["detail"] == f"the token '{name}' may {may}; this call needs 'promote'"


@pytest.mark.parametrize(
    ("more", "reason"),
    [
        ({}, "MODEL_STORAGE_TOKENS is empty"),
        ({"auth": "off", "host": "0.0.0.0"}, "loopback"),
        ({"auth": "off", "host": "storage.example"}, "loopback"),
        ({"tokens": {"evaluate": {"token": "short", "scopes": ["read"]}}}, "less than 16"),
        (
            {"tokens": {"evaluate": {"token": LONG, "scopes": ["everything"]}}},
            "'read', 'publish', 'promote', 'delete' or 'report'",
        ),
        ({"tokens": {"evaluate": {"token": LONG, "scopes": []}}}, "at least 1 item"),
        ({"tokens": {"evaluate": {"scopes": ["read"]}}}, "sha256"),
        ({"tokens": {"evaluate": {"sha256": LONG, "scopes": ["read"]}}}, "sha256"),
        ({"tokens": {"evaluate": {"token": LONG, "sha256": "0" * 64, "scopes": ["read"]}}}, "not both"),
        ({"tokens": {"on behalf of": {"token": LONG, "scopes": ["read"]}}}, "a token's name has letters"),
        (
            {"tokens": {name: {"token": LONG, "scopes": ["read"]} for name in ("evaluate", "publish")}},
            "one token under two names",
        ),
        ({"tokens": {LONG: ["read", "publish"]}}, r'tokens have names now: .*{"evaluate": {"token": '),
    ],
)
def test_settings_that_would_let_anyone_in_are_refused(more: dict, reason: str) -> None:
    with pytest.raises(ValidationError, match=reason) as refused:
        Settings(**VALUES, **more)
    assert LONG not in str(refused.value), "a message may stand in a log"


def test_a_token_may_be_given_by_its_sha256() -> None:
    digest = hashlib.sha256(LONG.encode()).hexdigest()
    told, hashed = (
        Settings(**VALUES, tokens={"evaluate": {**value, "scopes": ["read"]}}).tokens
        for value in ({"token": LONG}, {"sha256": digest})
    )
    assert told == hashed
    assert LONG not in str(told)


@pytest.mark.parametrize("host", ["127.0.0.1", "localhost", "::1"])
def test_access_may_be_open_on_loopback_when_asked_for(host: str) -> None:
    assert Settings(**VALUES, auth="off", host=host).auth == "off"


def test_a_start_with_wrong_settings_names_the_variables(tmp_path: Path) -> None:
    environment = {key: value for key, value in os.environ.items() if not key.startswith("MODEL_STORAGE_")}
    environment |= {"MODEL_STORAGE_REPOSITORY": str(tmp_path), "MODEL_STORAGE_PORT": "99999"}
    done = subprocess.run(
        [sys.executable, "-m", "services.model_storage"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 1
    assert "MODEL_STORAGE_DATABASE_URL: Field required" in done.stderr
    assert "MODEL_STORAGE_PORT: Input should be less than 65536" in done.stderr


def test_requests_are_counted_by_route_and_not_by_path(storage: Storage) -> None:
    for path in ("/models/none/versions", "/models/nothing/versions", "/an/address/of/a/stranger"):
        assert storage.client.get(path).status_code == 404
    lines = storage.client.get("/metrics").text.splitlines()
    counted = [line for line in lines if line.startswith("model_storage_requests_total")]
    assert any('route="/models/{model}/versions",status="404",token="everything"' in line for line in counted)
    assert not any("stranger" in line or "nothing" in line for line in counted)
