"""A real Triton and the real model storage in front of it, for tests of publishing and deploying."""

from __future__ import annotations

import json
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

from local.triton import TritonServer
from nightshift_common import storage_tokens
from tests.support.servers import ROOT, SERVICES, answers, free_port, free_ports, running

TOKENS = {name: f"a token to {name} with" for name in storage_tokens.TOKENS}
TOKEN = TOKENS[storage_tokens.OPERATOR]
LACKING = {scope: f"a token that may not {scope}" for scope in storage_tokens.TOKENS[storage_tokens.OPERATOR]}
"""Tokens that may do all but one thing: what needs a scope fails with one, and what does not goes well."""


@dataclass
class Serving:
    """Where they are."""

    triton: TritonServer
    url: str

    def get(self, path: str) -> httpx.Response:
        return httpx.get(f"{self.url}{path}", headers={"Authorization": f"Bearer {TOKEN}"}, timeout=20)

    def models_in_triton(self) -> dict[str, str]:
        """Return the ready models and their versions."""
        url, headers = f"http://{self.triton.http}/v2/repository/index", self.triton.http_headers
        index = httpx.post(url, json={}, headers=headers, timeout=20).json()
        return {entry["name"]: entry["version"] for entry in index if entry.get("state") == "READY"}


def known_tokens() -> dict[str, dict[str, object]]:
    """Return the tokens as the storage's settings have them."""
    known = {name: {"token": TOKENS[name], "scopes": scopes} for name, scopes in storage_tokens.TOKENS.items()}
    for scope, token in LACKING.items():
        known[f"no-{scope}"] = {"token": token, "scopes": [other for other in LACKING if other != scope]}
    return known


@contextmanager
def serving(folder: Path, postgres_url: str, **settings: str) -> Iterator[Serving]:
    """Start both; the storage's history is in a database of its own. `settings` are further ones of the storage."""
    import psycopg2

    database = f"storage_{uuid.uuid4().hex[:12]}"
    connection = psycopg2.connect(postgres_url)
    connection.autocommit = True
    with connection.cursor() as cursor:
        cursor.execute(f"CREATE DATABASE {database}")
    connection.close()
    triton = TritonServer(folder / "models", folder / "triton", *free_ports(3), log=folder / "triton.log")
    port = free_port()
    environment = {
        "PYTHONPATH": str(ROOT),
        "MODEL_STORAGE_REPOSITORY": str(triton.repository),
        "MODEL_STORAGE_DATABASE_URL": f"{postgres_url.rpartition('/')[0]}/{database}",
        "MODEL_STORAGE_TRITON_GRPC": triton.grpc,
        "MODEL_STORAGE_TRITON_KEY_FILE": str(triton.key_file),
        "MODEL_STORAGE_TOKENS": json.dumps(known_tokens()),
        "MODEL_STORAGE_PORT": str(port),
        **settings,
    }
    command = [str(SERVICES / "python"), "-m", "services.model_storage"]
    url = f"http://127.0.0.1:{port}"
    with triton:
        triton.wait_ready()
        with running(command, folder / "storage.log", answers(f"{url}/health/ready"), **environment):
            yield Serving(triton, url)
