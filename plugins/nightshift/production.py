"""Which version of each model was in production when, as the model storage tells it."""

from __future__ import annotations

from typing import Any

import httpx

from nightshift import connections
from nightshift.pipeline import load_pipeline, pipelines_folder
from nightshift.yaml_lines import PipelineError

SECONDS = 3.0
CHANGES = 10


def model_names() -> list[str]:
    """Return the models of all pipelines whose files can be read."""
    names = set()
    for file in pipelines_folder().glob("*.yaml"):
        try:
            names.add(load_pipeline(file).publish.model_name)
        except PipelineError:
            continue  # the page shows it as an import error
    return sorted(names)


def history() -> dict[str, list[dict[str, Any]]]:
    """Return the latest changes of what is in production by model, the latest first, as the storage writes them.

    Raises:
        JobMisconfigured: the storage's connection is not defined or not complete.
        httpx.HTTPError: the storage cannot be reached or answers with an error.
    """
    environment = connections.resolve(["storage"])
    token = environment.secrets.get("NIGHTSHIFT_STORAGE_TOKEN")
    headers = {"Authorization": f"Bearer {token}"} if token else {}
    found = {}
    with httpx.Client(
        base_url=environment.variables["NIGHTSHIFT_STORAGE_URL"], headers=headers, timeout=SECONDS
    ) as client:
        for name in model_names():
            answer = client.get(f"/history/{name}").raise_for_status()
            found[name] = list(answer.json())[:CHANGES]
    return found
