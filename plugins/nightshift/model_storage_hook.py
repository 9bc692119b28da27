"""Airflow's hook for the model storage: its client, by the connection `nightshift_storage`."""

from __future__ import annotations

from airflow.sdk import BaseHook

from nightshift import connections
from nightshift_common.model_storage_client import TIMEOUT, ModelStorageClient


class ModelStorageHook(BaseHook):
    """Gives tasks and pages a `ModelStorageClient`.

    Args:
        timeout: seconds for one call; a promotion answers when the model is loaded.
    """

    def __init__(self, timeout: float | None = None) -> None:
        super().__init__()
        self.timeout = TIMEOUT if timeout is None else timeout

    def get_conn(self) -> ModelStorageClient:
        """Return a client; close it, or use it as a context manager.

        Raises:
            JobConfigurationError: the connection is not defined or not complete.
        """
        environment = connections.resolve(["storage"])
        return ModelStorageClient(
            environment.variables["NIGHTSHIFT_STORAGE_URL"],
            environment.secrets.get("NIGHTSHIFT_STORAGE_TOKEN", ""),
            self.timeout,
        )
