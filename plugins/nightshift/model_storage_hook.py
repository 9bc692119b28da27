"""Airflow's hook for the model storage: its client, by one of the connections `nightshift_storage_<token>`."""

from __future__ import annotations

from airflow.sdk import BaseHook

from nightshift import connections
from nightshift_common.model_storage_client import TIMEOUT, ModelStorageClient


class ModelStorageHook(BaseHook):
    """Gives tasks and pages a `ModelStorageClient`.

    Args:
        caller: which token of the storage is used, and so what may be done (`nightshift_common/storage_tokens.py`).
        timeout: seconds for one call; a promotion answers when the model is loaded.
    """

    def __init__(self, caller: str = "evaluate", timeout: float | None = None) -> None:
        super().__init__()
        self.caller = caller
        self.timeout = TIMEOUT if timeout is None else timeout

    def get_conn(self) -> ModelStorageClient:
        """Return a client; close it, or use it as a context manager.

        Raises:
            JobConfigurationError: the connection is not defined or not complete.
        """
        environment = connections.resolve([f"storage_{self.caller}"])
        return ModelStorageClient(
            environment.variables["NIGHTSHIFT_STORAGE_URL"],
            environment.secrets.get("NIGHTSHIFT_STORAGE_TOKEN", ""),
            self.timeout,
        )
