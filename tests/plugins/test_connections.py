"""What of a job's environment may show in no log."""

import json

import pytest

from nightshift.connections import JobEnvironment, resolve
from nightshift.errors import JobConfigurationError
from nightshift_common.storage_tokens import TOKENS


@pytest.mark.parametrize(
    ("secret", "hidden"),
    [
        ("token-1", {"token-1"}),
        ("postgresql://me:pass@host:5432/db", {"pass"}),
        ("postgresql://me:p%40ss@host/db", {"p%40ss", "p@ss"}),
        ("postgresql://host/db", set()),
        ("http://[broken", {"http://[broken"}),
    ],
)
def test_of_an_address_only_its_password_is_hidden(secret: str, hidden: set[str]) -> None:
    assert set(JobEnvironment(secrets={"NAME": secret}).masked()) == hidden


@pytest.mark.parametrize(
    ("url", "is_secret"),
    [("http://mlflow:5000", False), ("http://nightshift:pl4nted@mlflow:5000", True), ("http://[broken", False)],
)
def test_an_address_with_a_password_is_a_secret(url: str, is_secret: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AIRFLOW_CONN_NIGHTSHIFT_MLFLOW", json.dumps({"conn_type": "generic", "extra": {"url": url}}))
    environment = resolve(["mlflow"])
    assert (environment.secrets if is_secret else environment.variables)["MLFLOW_TRACKING_URI"] == url
    assert environment.masked() == (["pl4nted", "pl4nted"] if is_secret else [])
    assert "pl4nted" not in json.dumps(environment.variables)  # they stand in the job's job.json


def test_of_the_storage_s_tokens_a_job_gets_the_one_of_its_kind(monkeypatch: pytest.MonkeyPatch) -> None:
    for token in TOKENS:
        value = {"conn_type": "generic", "password": f"secret of {token}", "extra": {"url": "http://storage"}}
        monkeypatch.setenv(f"AIRFLOW_CONN_NIGHTSHIFT_STORAGE_{token.upper()}", json.dumps(value))
    environment = resolve(["storage_publish"])
    assert environment.variables == {"NIGHTSHIFT_STORAGE_URL": "http://storage"}
    assert environment.secrets == {"NIGHTSHIFT_STORAGE_TOKEN": "secret of publish"}
    with pytest.raises(KeyError):
        resolve(["storage_operator"])  # that is for people


def test_a_token_that_airflow_does_not_have_is_asked_for_by_its_connection() -> None:
    with pytest.raises(JobConfigurationError, match="connection nightshift_storage_deploy is not defined"):
        resolve(["storage_deploy"])


def test_the_key_that_signs_packages_is_a_secret_and_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(["signing"]) == JobEnvironment()
    with pytest.raises(JobConfigurationError, match="nightshift_storage_publish is not defined"):
        resolve(["signing", "storage_publish"])
    monkeypatch.setenv("AIRFLOW_CONN_NIGHTSHIFT_SIGNING", json.dumps({"conn_type": "generic", "password": "a\nkey"}))
    assert resolve(["signing"]) == JobEnvironment(secrets={"NIGHTSHIFT_SIGNING_KEY": "a\nkey"})


def test_who_signs_without_a_key_names_where_a_job_finds_its_token(monkeypatch: pytest.MonkeyPatch) -> None:
    assert resolve(["signing_identity"]) == JobEnvironment()
    for extra, known in (
        ({"token_file": "/t"}, {"NIGHTSHIFT_SIGNING_TOKEN_FILE": "/t"}),
        (
            {"token_file": "/t", "trust_config": "/c"},
            {"NIGHTSHIFT_SIGNING_TOKEN_FILE": "/t", "NIGHTSHIFT_SIGNING_TRUST_CONFIG": "/c"},
        ),
    ):
        connection = {"conn_type": "generic", "extra": extra}
        monkeypatch.setenv("AIRFLOW_CONN_NIGHTSHIFT_SIGNING_IDENTITY", json.dumps(connection))
        assert resolve(["signing_identity"]) == JobEnvironment(variables=known)
    monkeypatch.setenv("AIRFLOW_CONN_NIGHTSHIFT_SIGNING_IDENTITY", json.dumps({"conn_type": "generic"}))
    with pytest.raises(JobConfigurationError, match=r"nightshift_signing_identity lacks extra\.token_file"):
        resolve(["signing_identity"])
