"""The command-line client against the running service."""

import json
import socket
import zipfile
from pathlib import Path

import pytest

from services.model_storage import cli
from tests.services.model_storage.support import TOKEN, Storage, model_zip
from tests.support.tiny_onnx import scaling_model


@pytest.fixture(autouse=True)
def address(storage: Storage, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_URL", storage.url)
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_TOKEN", TOKEN)


def run(capsys: pytest.CaptureFixture[str], *arguments: str) -> object:
    assert cli.main(["--json", *arguments]) == 0, capsys.readouterr().err
    return json.loads(capsys.readouterr().out)


def test_a_model_goes_from_a_file_into_production_and_back(
    storage: Storage, model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    archive = tmp_path / "model_onnx.zip"
    for scale, version in ((2.0, "0.0.1"), (3.0, "0.0.2")):
        archive.write_bytes(model_zip(model, scale))
        assert run(capsys, "upload", model, str(archive)) == {"version": version}
        assert run(capsys, "promote", model, version, "--reason", "better")["version"] == version
    assert run(capsys, "upload", model, str(archive))["already_published"] is True
    assert [version["version"] for version in run(capsys, "list", model)] == ["0.0.1", "0.0.2"]
    assert model in run(capsys, "list")
    output = tmp_path / "champion.zip"
    assert run(capsys, "get", model, "--output", str(output)) == {"file": str(output), "version": "0.0.2"}
    with zipfile.ZipFile(output) as opened:
        assert opened.read("model.onnx") == scaling_model(3.0)
    assert run(capsys, "rollback", model)["version"] == "0.0.1"
    rows = run(capsys, "history", model)
    assert [(row["action"], row["reason"]) for row in rows] == [
        ("rollback", "by hand"), ("promote", "better"), ("promote", "better")
    ]  # fmt: skip
    assert run(capsys, "history", model, "--at", rows[1]["promoted_at"])[0]["version"] == "0.0.2"
    assert [path.name for path in tmp_path.iterdir() if path.name.startswith(".")] == []


def test_people_see_tables(storage: Storage, model: str, capsys: pytest.CaptureFixture[str]) -> None:
    storage.promote(model, storage.published(model, 2.0))
    for command in ("list", "history"):
        assert cli.main([command, model]) == 0
        assert "0.0.1" in capsys.readouterr().out


def test_a_refusal_is_told_and_is_not_the_same_as_no_answer(
    storage: Storage, model: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    assert cli.main(["list", model]) == 1
    assert f"404: there is no model '{model}'" in capsys.readouterr().err
    assert cli.main(["upload", model, "/no/such.zip"]) == 1
    assert "/no/such.zip" in capsys.readouterr().err
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{taken.getsockname()[1]}"
        assert cli.main(["--url", url, "list"]) == 75
    assert f"{url} does not answer" in capsys.readouterr().err
