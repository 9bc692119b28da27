"""The key pair of the local stack: made without being asked for, once, and what the storage trusts."""

from pathlib import Path

import pytest

from local import airflow, components
from local.settings import Settings
from local.signing import private_key, public_key
from services.model_storage.repository.signatures import Signatures, fingerprint


def storage_environment(settings: Settings) -> dict[str, str]:
    (storage,) = (part for part in components.all_components(settings) if part.name == "model_storage")
    return storage.environment


def test_the_keys_are_made_once_and_the_private_one_is_its_owner_s_alone(tmp_path: Path) -> None:
    first = private_key(Settings(tmp_path)).read_text(), public_key(Settings(tmp_path)).read_text()
    assert (private_key(Settings(tmp_path)).read_text(), public_key(Settings(tmp_path)).read_text()) == first
    assert private_key(Settings(tmp_path)).stat().st_mode & 0o077 == 0
    assert private_key(Settings(tmp_path / "another")).read_text() != first[0]


def test_the_storage_trusts_what_publishing_signs_with_and_says_what_is_unsigned(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODEL_STORAGE_SIGNATURES", raising=False)
    settings = Settings(tmp_path)
    environment = storage_environment(settings)
    assert environment["MODEL_STORAGE_SIGNATURES"] == "warn"
    trusted = Signatures("require", environment["MODEL_STORAGE_PUBLIC_KEYS"]).trusted
    assert trusted == {fingerprint(public_key(settings).read_text())}
    connection = airflow.connections(settings)["AIRFLOW_CONN_NIGHTSHIFT_SIGNING"]
    assert "PRIVATE KEY" in connection and "PRIVATE KEY" not in str(environment)


def test_the_storage_can_be_made_to_refuse_what_is_unsigned(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MODEL_STORAGE_SIGNATURES", "require")
    assert storage_environment(Settings(tmp_path))["MODEL_STORAGE_SIGNATURES"] == "require"
