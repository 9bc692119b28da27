"""Where the local stack keeps its state, which ports it uses, and its generated secrets."""

from __future__ import annotations

import json
import os
import secrets
from base64 import urlsafe_b64encode
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from nightshift_common.storage_tokens import TOKENS

ROOT = Path(__file__).resolve().parent.parent
HOST = "127.0.0.1"
PREFERRED_PORTS = {
    "airflow": 8080,
    "airflow_logs": 8793,
    "airflow_trigger_logs": 8794,
    "mlflow": 5000,
    "model_storage": 8300,
    "collect": 8310,
    "postgres": 54320,
    "triton": 8100,
    "triton_grpc": 8101,
    "triton_metrics": 8102,
}


# The role of each part, and the database that it works in: docker/postgres/databases.sql says what it may do there.
DATABASES = {
    "airflow": "airflow",
    "mlflow": "mlflow",
    "nightshift": "nightshift",  # jobs
    "model_storage": "nightshift",
    "operations": "nightshift",  # Airflow's plugin: failures
}


PORTS_FILE = "ports.json"


class LocalStackError(Exception):
    """Something that the person at the terminal has to know; shown without a traceback."""


@dataclass(frozen=True)
class Settings:
    """The stack's state folder (`NIGHTSHIFT_STATE`, default `.nightshift/`) and ports (`NIGHTSHIFT_<NAME>_PORT`).

    A port is what its variable says, else what the stack was last started with, else the usual one.
    """

    state: Path = field(
        default_factory=lambda: Path(os.environ.get("NIGHTSHIFT_STATE") or ROOT / ".nightshift").absolute()
    )

    def port(self, name: str) -> int:
        """Return the port of a component.

        Raises:
            LocalStackError: the variable is not a port number.
        """
        text = os.environ.get(port_variable(name)) or str(self._remembered_ports().get(name, PREFERRED_PORTS[name]))
        if not text.isdecimal() or not 0 < int(text) < 65536:
            raise LocalStackError(f"{port_variable(name)}={text!r} is not a port: a whole number from 1 to 65535")
        return int(text)

    def remember_ports(self) -> None:
        """Write down which ports the stack uses, so that later commands need no variables to find it."""
        ports = {name: self.port(name) for name in PREFERRED_PORTS}
        if ports != self._remembered_ports():
            path = self.folder("run") / PORTS_FILE
            temporary = path.with_suffix(".new")
            temporary.write_text(json.dumps(ports, indent=2) + "\n")
            temporary.replace(path)

    def _remembered_ports(self) -> dict[str, int]:
        path = self.state / "run" / PORTS_FILE
        found: dict[str, int] = json.loads(path.read_text()) if path.is_file() else {}
        return found

    def url(self, name: str) -> str:
        """Return the HTTP address of a component."""
        return f"http://{HOST}:{self.port(name)}"

    def folder(self, name: str) -> Path:
        """Return a folder of the state, made if it is missing."""
        path = self.state / name
        path.mkdir(parents=True, exist_ok=True)
        return path

    def database_url(self, role: str, driver: str = "") -> str:
        """Return the address by which a part reaches its database in the embedded PostgreSQL.

        Args:
            role: one of `DATABASES`, or `postgres`, the superuser in a database of its own.
            driver: as in SQLAlchemy, say `+psycopg2`.
        """
        database = DATABASES.get(role, role)
        password = self.secrets["postgres"] if role == "postgres" else self.database_passwords()[role]
        return f"postgresql{driver}://{role}:{password}@{HOST}:{self.port('postgres')}/{database}"

    def database_passwords(self) -> dict[str, str]:
        """Return the password of each role of `DATABASES`."""
        return {role: self.secrets[f"database_{role}"] for role in DATABASES}

    @cached_property
    def secrets(self) -> dict[str, str]:
        """Passwords and keys of this machine's stack, generated once, readable by their owner alone."""
        path = self.state / "secrets.json"
        stored: dict[str, str] = json.loads(path.read_text()) if path.exists() else {}
        missing = {name: make() for name, make in _SECRETS.items() if name not in stored}
        if missing:
            stored |= missing
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary = path.with_suffix(".new")
            temporary.touch(mode=0o600)
            temporary.write_text(json.dumps(stored, indent=2) + "\n")
            temporary.replace(path)
        return stored


def port_variable(name: str) -> str:
    """Return the environment variable that moves a component to another port."""
    return f"NIGHTSHIFT_{name.upper()}_PORT"


def _token() -> str:
    return secrets.token_urlsafe(24)


_SECRETS = {
    "postgres": _token,
    **{f"database_{role}": _token for role in DATABASES},
    "airflow_admin": lambda: secrets.token_urlsafe(9),
    "airflow_fernet": lambda: urlsafe_b64encode(secrets.token_bytes(32)).decode(),
    "airflow_jwt": _token,
    "airflow_api": _token,
    "collect": _token,
    **{f"model_storage_{name}": _token for name in TOKENS},
}
