"""MLflow's aliases follow the stages: `champion` and, by target, `champion-onnx`; so for each stage.

The storage is the truth. A promotion never waits for MLflow: this thread brings the aliases to what the history says,
within seconds, and goes on once an MLflow that was away is back.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Mapping
from typing import Any, get_args

import httpx

from services.model_storage.errors import StorageError
from services.model_storage.production.history import History
from services.model_storage.production.stages import ALL, Stage, stages
from services.model_storage.repository.catalog import Catalog
from services.model_storage.repository.record import Target

logger = logging.getLogger(__name__)
LOOK_SECONDS = 2.0
VERSION_TAG = "semantic_version"  # what publish_model writes to a registered version
PATIENCE_SECONDS = 3600.0  # a version is registered after its upload: looked for ever more rarely, until this pause
OURS = {stage + end for stage in get_args(Stage) for end in ("", *(f"-{target}" for target in get_args(Target)))}


class Aliases:
    """The aliases of the models in MLflow's registry."""

    def __init__(self, url: str, login: tuple[str, str] | None, catalog: Catalog, history: History) -> None:
        self._mlflow = httpx.Client(base_url=f"{url.rstrip('/')}/api/2.0/mlflow", auth=login, timeout=10)
        self._catalog, self._history = catalog, history
        self._seen = 0
        self._pending: dict[str, tuple[float, float]] = {}  # model -> when to look at it, and the pause after that
        self._away = False
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._follow, name="aliases", daemon=True)

    def start(self) -> None:
        """Start to follow."""
        self._thread.start()

    def stop(self) -> None:
        """Stop to follow."""
        self._stop.set()
        self._thread.join(timeout=15)
        self._mlflow.close()

    def look_at(self, model: str) -> None:
        """Look at a model soon: one of its versions is new."""
        self._pending[model] = time.monotonic(), LOOK_SECONDS

    def _follow(self) -> None:
        while not self._stop.wait(LOOK_SECONDS):
            try:
                self._look()
            except StorageError as error:
                logger.warning("could not see what changed: %s", error)
            except httpx.HTTPError as error:
                if not self._away:
                    logger.warning("MLflow does not answer; its aliases follow when it does: %r", error)
                self._away = True
            except Exception:
                logger.exception("following the stages with MLflow's aliases failed; it goes on")
            else:
                self._away = False

    def _look(self) -> None:
        changed, self._seen = self._history.changed_since(self._seen)
        for model in changed:
            self.look_at(model)
        for model, (due, pause) in list(self._pending.items()):
            if due > time.monotonic():
                continue
            complete = self._try_to_bring(model)
            if self._pending[model] != (due, pause):
                continue  # changed meanwhile
            if complete or pause > PATIENCE_SECONDS:
                del self._pending[model]
            else:
                self._pending[model] = time.monotonic() + pause, 2 * pause

    def _try_to_bring(self, model: str) -> bool:
        """Bring a model's aliases to its stages; what MLflow refuses for one model holds no other one up."""
        try:
            return self._bring(model, self._wanted(model))
        except httpx.HTTPStatusError as error:
            logger.warning("MLflow refuses the aliases of %s: %s", model, error.response.text[:500])
            return False

    def _wanted(self, model: str) -> dict[str, str]:
        found = stages(self._catalog.versions(model), self._history.rows(model)[::-1])
        return {
            stage if target == ALL else f"{stage}-{target}": version
            for target, versions in found.items()
            for stage, version in versions.items()
        }

    def _bring(self, model: str, wanted: Mapping[str, str]) -> bool:
        """Bring the aliases of a model to `wanted`; return whether all their versions are registered."""
        reply = self._mlflow.get("/registered-models/get", params={"name": model})
        if reply.status_code == httpx.codes.NOT_FOUND:
            return False
        registered = reply.raise_for_status().json()["registered_model"]
        present = {entry["alias"]: str(entry["version"]) for entry in registered.get("aliases", [])}
        numbers = {version: self._number(model, version) for version in set(wanted.values())}
        for alias, version in wanted.items():
            number = numbers[version]
            if number is not None and present.get(alias) != number:
                self._change("POST", {"name": model, "alias": alias, "version": number})
        for alias in set(present) & OURS - set(wanted):
            self._change("DELETE", {"name": model, "alias": alias})
        return None not in numbers.values()

    def _number(self, model: str, version: str) -> str | None:
        """Return MLflow's number of a version; None where it is not registered."""
        which = f"name='{model}' and tags.`{VERSION_TAG}`='{version}'"
        found: list[dict[str, Any]] = (
            self._mlflow.get("/model-versions/search", params={"filter": which})
            .raise_for_status()
            .json()
            .get("model_versions", [])
        )
        return str(found[0]["version"]) if found else None

    def _change(self, method: str, body: dict[str, str]) -> None:
        self._mlflow.request(method, "/registered-models/alias", json=body).raise_for_status()
        logger.info("MLflow: %s alias %s", method, body)
