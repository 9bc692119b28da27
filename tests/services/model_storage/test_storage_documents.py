"""The table of calls says what the service answers."""

import re

import httpx

from tests.services.model_storage.support import Storage
from tests.support.documents import ROOT, quoted, table


def written(cell: str) -> set[tuple[str, str]]:
    """Return method and path of each call in a cell; `[/x]` may be left out, `{v}` is some name."""
    found, method = set(), "GET"
    for text in quoted(cell):
        words = text.split()
        method = words[0] if len(words) > 1 else method
        if not words[-1].startswith("/"):
            continue
        path = re.sub(r"\[\?[^\]]*\]|\?.*", "", words[-1])
        parts = re.split(r"[\[\]]+", path)
        found |= {(method, _plain("".join(parts[:length]))) for length in range(1, len([p for p in parts if p]) + 1)}
    return found


def _plain(path: str) -> str:
    return re.sub(r"\{[^}]*\}", "{}", path).rstrip("/")


def test_each_call_of_the_table_is_one_of_the_service_and_each_of_the_service_is_told(storage: Storage) -> None:
    paths = httpx.get(f"{storage.url}/openapi.json", timeout=30).json()["paths"]
    routes = {(method.upper(), _plain(path)) for path, methods in paths.items() for method in methods}
    told = {call for row in table("docs/architecture.md", "call") for call in written(row[0])}
    assert told - routes == set(), "calls that there are not"
    compatible = (ROOT / "docs" / "compatibility.md").read_text()
    silent = {path for _, path in routes - told if path.split("/{")[0] not in compatible}
    assert silent == set(), "calls that nobody is told of"
