import json
from pathlib import Path

import pytest

from local.settings import LocalStackError, Settings, port_variable


def test_secrets_are_generated_once_and_readable_by_their_owner_alone(tmp_path: Path) -> None:
    first = Settings(tmp_path).secrets
    assert Settings(tmp_path).secrets == first
    assert all(len(value) >= 12 for value in first.values())
    assert (tmp_path / "secrets.json").stat().st_mode & 0o077 == 0


def test_a_secret_that_a_newer_version_needs_is_added_and_the_others_are_kept(tmp_path: Path) -> None:
    (tmp_path / "secrets.json").write_text(json.dumps({"collect": "kept"}))
    found = Settings(tmp_path).secrets
    assert found["collect"] == "kept"
    assert "airflow_admin" in found


def test_a_port_can_be_moved_by_its_variable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(port_variable("mlflow"), "5999")
    assert Settings(tmp_path).url("mlflow") == "http://127.0.0.1:5999"


@pytest.mark.parametrize("text", ["0", "65536", "http", "-1", "50 00"])
def test_a_variable_that_is_no_port_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(port_variable("mlflow"), text)
    with pytest.raises(LocalStackError, match="NIGHTSHIFT_MLFLOW_PORT"):
        Settings(tmp_path).port("mlflow")
