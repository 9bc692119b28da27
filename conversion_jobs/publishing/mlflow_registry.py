"""MLflow's model registry: one registered model a model of the storage, one model version a published version.

Its aliases (champion, previous, canary, candidate) are set by the model storage, as production changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from jobkit.tracking import server_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

VERSION_TAG = "semantic_version"  # by it the model storage finds what its aliases point to
DESCRIPTION_LIMIT = 5000  # characters that MLflow keeps


@dataclass(frozen=True)
class RegisteredVersion:
    """What is said of a published version."""

    model: str
    version: str
    source: str
    """folder of artifacts with `MLmodel`, from which MLflow loads the version"""
    run_id: str
    """the training, which the UI links to"""
    card: str
    """Markdown; as much of it as there is room for becomes the description"""
    tags: Mapping[str, str]


def register(client: MlflowClient, said: RegisteredVersion) -> str:
    """Return MLflow's number of the version, registered now unless it was before; tags and card are set in both cases.

    Raises:
        TransientError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    description = said.card
    if len(description) > DESCRIPTION_LIMIT:
        description = description[: DESCRIPTION_LIMIT - 1] + "…"
    with server_errors(f"registering {said.model} {said.version}"):
        try:
            client.create_registered_model(said.model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = _find(client, said.model, said.version)
        if known is None:
            every = {VERSION_TAG: said.version, **said.tags}
            known = client.create_model_version(
                said.model, said.source, run_id=said.run_id, tags=every, description=description
            )
        else:
            client.update_model_version(said.model, known.version, description=description)
            for key, value in said.tags.items():
                client.set_model_version_tag(said.model, known.version, key, value)
        return str(known.version)


def _find(client: MlflowClient, model: str, version: str) -> Any:
    name = model.replace("'", "")
    found = client.search_model_versions(f"name='{name}' and tags.`{VERSION_TAG}`='{version}'")
    return found[0] if found else None
