"""Airflow connections as the environment of a job. They are read while the task runs, never when the DAG is parsed."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any
from urllib.parse import unquote, urlsplit

from airflow.sdk import Connection
from airflow.sdk.exceptions import AirflowNotFoundException

from nightshift.errors import JobConfigurationError
from nightshift_common.storage_tokens import OPERATOR, TOKENS


@dataclass
class JobEnvironment:
    """What a job gets: plain variables, and secrets, which are written nowhere."""

    variables: dict[str, str] = field(default_factory=dict)
    secrets: dict[str, str] = field(default_factory=dict)

    def masked(self) -> list[str]:
        """Return the texts that no log may show: the secrets; of an address its password, as written and as meant."""
        return [text for value in self.secrets.values() for text in _hidden_parts(value) if text]


STORAGE = [("NIGHTSHIFT_STORAGE_URL", "extra.url", False), ("NIGHTSHIFT_STORAGE_TOKEN", "password?", True)]

# connection -> (variable, where its value stands in the connection, whether it is a secret)
VARIABLES: dict[str, list[tuple[str, str, bool]]] = {
    "bottle": [
        ("NIGHTSHIFT_BOTTLE", "extra.root", False),
        ("AWS_ENDPOINT_URL", "extra.endpoint_url?", False),
        ("AWS_DEFAULT_REGION", "extra.region?", False),
        ("AWS_ACCESS_KEY_ID", "login?", True),
        ("AWS_SECRET_ACCESS_KEY", "password?", True),
    ],
    "database": [("NIGHTSHIFT_DATABASE_URL", "extra.url", True)],
    "mlflow": [
        ("MLFLOW_TRACKING_URI", "extra.url", False),
        ("NIGHTSHIFT_MLFLOW_UI", "extra.ui?", False),
        ("MLFLOW_TRACKING_USERNAME", "login?", True),
        ("MLFLOW_TRACKING_PASSWORD", "password?", True),
    ],
    "collect": [
        ("NIGHTSHIFT_COLLECT_URL", "extra.url", False),
        ("NIGHTSHIFT_COLLECT_FILES_URL", "extra.files_url", False),
        ("NIGHTSHIFT_COLLECT_LOGIN", "login", False),
        ("NIGHTSHIFT_COLLECT_PASSWORD", "password", True),
    ],
    **{f"storage_{token}": STORAGE for token in TOKENS if token != OPERATOR},
    "triton": [("NIGHTSHIFT_TRITON_URL", "extra.url", False)],
    "signing": [("NIGHTSHIFT_SIGNING_KEY", "password", True)],
    "signing_identity": [
        ("NIGHTSHIFT_SIGNING_TOKEN_FILE", "extra.token_file", False),
        ("NIGHTSHIFT_SIGNING_TRUST_CONFIG", "extra.trust_config?", False),
    ],
}
OPTIONAL = frozenset({"signing", "signing_identity"})  # without it a job does without its variables


def resolve(names: list[str]) -> JobEnvironment:
    """Return the environment made of the connections `nightshift_<name>`.

    An address with a password in it is a secret, whatever it is the address of.

    Raises:
        JobConfigurationError: a connection is not defined or lacks a value; the message names the connection and
            the field.
    """
    environment = JobEnvironment()
    for name in names:
        try:
            connection = _connection(f"nightshift_{name}")
        except JobConfigurationError:
            if name in OPTIONAL:
                continue
            raise
        extra = connection.extra_dejson
        for variable, place, secret in VARIABLES[name]:
            key = place.removesuffix("?")
            value = extra.get(key.removeprefix("extra.")) if key.startswith("extra.") else getattr(connection, key)
            if value:
                hidden = secret or _has_password(str(value))
                (environment.secrets if hidden else environment.variables)[variable] = str(value)
            elif key == place:
                raise JobConfigurationError(
                    f"the connection nightshift_{name} lacks {key}, which becomes the job's {variable}"
                )
    return environment


def _has_password(value: str) -> bool:
    try:
        return "://" in value and bool(urlsplit(value).password)
    except ValueError:
        return False


def _hidden_parts(value: str) -> list[str]:
    if "://" not in value:
        return [value]
    try:
        password = urlsplit(value).password or ""
    except ValueError:
        return [value]
    return [password, unquote(password)]


def _connection(conn_id: str) -> Connection:
    try:
        connection: Connection = Connection.get(conn_id)
    except AirflowNotFoundException as error:
        raise JobConfigurationError(
            f"the connection {conn_id} is not defined: add it in Airflow (Admin, Connections) or as the environment"
            f" variable AIRFLOW_CONN_{conn_id.upper()}; docs/architecture.md lists its fields"
        ) from error
    return connection


def operations_url() -> str:
    """Return the address of the database that failures are written to, in whichever of Airflow's processes.

    No job is given it: a failure that a job could rewrite would say nothing.

    Raises:
        JobConfigurationError: the connection is not defined or has no address.
    """
    name = "nightshift_operations"
    extra: dict[str, Any]
    try:
        extra = _connection(name).extra_dejson
    except JobConfigurationError:
        # Airflow's servers read connections from its database by its models; a worker has no way there.
        from airflow.models.connection import Connection as StoredConnection

        extra = StoredConnection.get_connection_from_secrets(name).extra_dejson
    if not extra.get("url"):
        raise JobConfigurationError(f"the connection {name} lacks extra.url, the address of the database of failures")
    return str(extra["url"])
