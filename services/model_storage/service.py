"""The service's parts put together, and the watch that keeps Triton at what the history says."""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path

from services.model_storage.errors import StorageError
from services.model_storage.metrics import Metrics
from services.model_storage.production.canaries import Canaries
from services.model_storage.production.history import History
from services.model_storage.production.last_known import LastKnown
from services.model_storage.production.mlflow_aliases import Aliases
from services.model_storage.production.picture_entries import PictureEntries
from services.model_storage.production.promotions import Production
from services.model_storage.repository.catalog import Catalog
from services.model_storage.repository.store import FolderStore, Store
from services.model_storage.settings import Settings
from services.model_storage.triton import Fleet, Triton

logger = logging.getLogger(__name__)

JUDGE_SECONDS = 5.0  # between looks at the canaries
GLANCE_SECONDS = 0.5  # between looks at one model; one that is lost means that Triton was restarted


@dataclass
class Service:
    """One running model storage."""

    settings: Settings
    metrics: Metrics = field(default_factory=Metrics)

    def __post_init__(self) -> None:
        self.store = _open_store(self.settings)
        self.catalog = Catalog(
            self.store, self.settings.max_unpacked_bytes, self.settings.trusted, self.settings.python_models
        )
        seconds = self.settings.triton_timeout
        self.fleet = Fleet([Triton(address, seconds, key) for address, key in self.settings.triton_servers()])
        self.history = History(self.settings.database_url)
        entries = PictureEntries(self.catalog, self.fleet, self.settings.picture_entries == "on")
        self.production = Production(self.catalog, self.fleet, self.history, entries, self.settings.max_latency_ms)
        self.canaries = Canaries(self.production)
        self.known = LastKnown(self.history, self.settings.stale_seconds)
        self.aliases: Aliases | None = None
        if self.settings.mlflow_url:
            login = (self.settings.mlflow_username, self.settings.mlflow_password)
            self.aliases = Aliases(self.settings.mlflow_url, login if login[0] else None, self.catalog, self.history)
        self._reconciled = self._prepared = False
        self._stop = threading.Event()
        self._watch = threading.Thread(target=self._keep_watch, name="watch", daemon=True)

    def start(self) -> None:
        """Finish or undo what an earlier process left, bring Triton to the history, and keep it there."""
        self._look_after_everything()
        self._watch.start()
        if self.aliases is not None:
            self.aliases.start()

    def stop(self) -> None:
        """Stop the watch and let go of the repository and the database."""
        self._stop.set()
        self._watch.join(timeout=5)
        if self.aliases is not None:
            self.aliases.stop()
        self.history.close()
        self.store.close()

    def published(self, model: str) -> None:
        """Note that a model has a new version."""
        if self.aliases is not None:
            self.aliases.look_at(model)

    def troubles(self) -> dict[str, str]:
        """Return what keeps the service from working, by part; empty where it is ready."""
        found = {}
        for name, check in (("repository", self.store.check), ("postgresql", self._prepare_history)):
            try:
                check()
            except StorageError as error:
                found[name] = str(error)
        if away := self.fleet.away():
            found["triton"] = f"Triton at {', '.join(away)} does not answer or is not ready"
        return found

    def _prepare_history(self) -> None:
        if self._prepared:
            self.history.check()
        else:
            self.history.prepare()
            self._prepared = True

    def _keep_watch(self) -> None:
        """Look after everything now and then, and at once where a Triton that was restarted serves nothing."""
        looked = judged = time.monotonic()
        while not self._stop.wait(min(GLANCE_SECONDS, self.settings.watch_seconds)):
            if time.monotonic() - looked >= self.settings.watch_seconds or self.production.has_lost_a_model():
                self._look_after_everything()
                looked = time.monotonic()
            if time.monotonic() - judged >= min(JUDGE_SECONDS, self.settings.watch_seconds):
                self._judge_canaries()
                judged = time.monotonic()

    def _judge_canaries(self) -> None:
        try:
            self._prepare_history()
            self.known.refresh()
            self.canaries.look()
        except StorageError as error:
            logger.warning("the canaries could not be judged yet: %s", error)
        except Exception:
            logger.exception("the judging of canaries failed; it goes on")

    def _look_after_everything(self) -> None:
        try:
            if not self._reconciled:
                self.catalog.reconcile()
                self._reconciled = True
            self._prepare_history()
            failed = self.production.reconcile()
        except StorageError as error:
            logger.warning("could not see yet whether everything is as it should be: %s", error)
            return
        except Exception:
            logger.exception("the watch failed; it goes on")
            return
        for cause in failed:
            logger.error("a champion is not served: %s", cause)
        self.metrics.not_serving.set(len(failed))


def _open_store(settings: Settings) -> Store:
    repository = settings.repository
    if repository.startswith("s3://"):
        from services.model_storage.repository.s3_store import S3Store  # boto3 takes memory and time to import

        return S3Store(repository)
    return FolderStore(Path(repository), settings.min_free_bytes)
