"""The client's paths: a name is one part of a path, or no call is made."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from nightshift_common.model_storage_client import ModelStorageClient, StorageRefused, StorageUnavailable

NOBODY = "http://127.0.0.1:1"
OF_A_MODEL: dict[str, Callable[[ModelStorageClient, str], object]] = {
    "GET /models/{}/versions": lambda client, name: client.versions(name),
    "GET /models/{}/versions/1": lambda client, name: client.version(name, "1"),
    "GET /models/{}/champion": lambda client, name: client.champion(name),
    "GET /models/{}/stages": lambda client, name: client.stages(name),
    "GET /history/{}": lambda client, name: client.history(name),
    "GET /models/{}/versions/1/archive": lambda client, name: client.download(name, "1", Path("/nowhere/x")),
    "POST /models/{}/versions/1/stage": lambda client, name: client.stage(name, "1"),
    "DELETE /models/{}/stage": lambda client, name: client.unstage(name),
    "POST /models/{}/versions/1/promote": lambda client, name: client.promote(name, "1"),
    "POST /models/{}/rollback": lambda client, name: client.rollback(name),
    "POST /unload_model/{}": lambda client, name: client.unload(name),
    "POST /models/{}/versions/1/pin": lambda client, name: client.pin(name, "1"),
    "DELETE /models/{}/pin": lambda client, name: client.unpin(name, "someone"),
    "GET /models/m/versions/{}": lambda client, name: client.version("m", name),
    "GET /models/m/versions/{}/archive": lambda client, name: client.download("m", name, Path("/nowhere/x")),
    "POST /models/m/versions/{}/stage": lambda client, name: client.stage("m", name),
    "POST /models/m/versions/{}/promote": lambda client, name: client.promote("m", name),
    "POST /models/m/versions/{}/pin": lambda client, name: client.pin("m", name),
}


@pytest.mark.parametrize("path", OF_A_MODEL)
def test_no_call_is_made_for_what_is_no_name(path: str) -> None:
    with ModelStorageClient(NOBODY) as client:
        for name in ("x/../m", "..", ".", "", "x%2F..%2Fm", "x%252F..", "m/", "m?", "m#", "m\n", "x\\m", "m;x", "é"):
            with pytest.raises(StorageRefused, match="no name for a model or version") as refused:
                OF_A_MODEL[path](client, name)
            assert (refused.value.call, refused.value.status) == ("", None)
        with pytest.raises(StorageUnavailable) as away:
            OF_A_MODEL[path](client, "a-1.0_b")
    assert away.value.call == path.format("a-1.0_b")


def test_the_address_of_an_archive_is_of_names_only() -> None:
    with ModelStorageClient(NOBODY) as client:
        assert client.address("m", "0.0.1") == f"{NOBODY}/models/m/versions/0.0.1/archive"
        for model, version in (("..", "0.0.1"), ("m", "../../n")):
            with pytest.raises(StorageRefused):
                client.address(model, version)
