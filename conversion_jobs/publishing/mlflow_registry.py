"""MLflow's model registry: one registered model a model of the storage, one model version a published version.

Its aliases (champion, previous, canary, candidate) are set by the model storage, as production changes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from jobkit.tracking import server_errors

if TYPE_CHECKING:
    from mlflow import MlflowClient

VERSION_TAG = "semantic_version"  # by it the model storage finds what its aliases point to


def register(client: MlflowClient, model: str, version: str, source: str, run_id: str, tags: dict[str, str]) -> str:
    """Return MLflow's number of the version, registered now unless it was before; `tags` are set in both cases.

    Raises:
        TransientError: MLflow does not answer.
    """
    from mlflow.exceptions import MlflowException

    with server_errors(f"registering {model} {version}"):
        try:
            client.create_registered_model(model)
        except MlflowException as error:
            if error.error_code != "RESOURCE_ALREADY_EXISTS":
                raise
        known = _find(client, model, version)
        if known is None:
            every = {VERSION_TAG: version, **tags}
            known = client.create_model_version(model, source, run_id=run_id, tags=every)
        else:
            for key, value in tags.items():
                client.set_model_version_tag(model, known.version, key, value)
        return str(known.version)


def _find(client: MlflowClient, model: str, version: str) -> Any:
    name = model.replace("'", "")
    found = client.search_model_versions(f"name='{name}' and tags.`{VERSION_TAG}`='{version}'")
    return found[0] if found else None
