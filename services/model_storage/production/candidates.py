"""Versions that Triton serves beside the one in production: hard links to a version's files under another name."""

from __future__ import annotations

import logging

from services.model_storage.errors import StorageError
from services.model_storage.production.picture_entries import PictureEntries
from services.model_storage.repository.catalog import Catalog
from services.model_storage.repository.model_config import CONFIG_FILE
from services.model_storage.repository.record import BESIDE, Record
from services.model_storage.triton import Fleet

logger = logging.getLogger(__name__)


class Beside:
    """The candidates and canaries in Triton. The caller holds the lock of the model."""

    def __init__(self, catalog: Catalog, fleet: Fleet, entries: PictureEntries) -> None:
        self._catalog, self._fleet, self._entries = catalog, fleet, entries

    def serve(self, record: Record, name: str, with_pictures: bool = True) -> None:
        """Serve `record` as the model `name`, in place of what had that name; where that fails nothing has it.

        Its entry for pictures is served too, unless that is not wanted.
        """
        config = self._catalog.config(record, name)
        self._catalog.store.link(record.folder, name, {CONFIG_FILE: config})
        try:
            self._fleet.serve(name, record.triton_version)
            if with_pictures:
                self._entries.follow(record, name)
        except Exception:
            try:
                self.remove(name)
            except StorageError as error:
                logger.warning("%s could not be removed yet: %s", name, error)
            raise

    def remove(self, name: str) -> bool:
        """Take the model `name` out of Triton and remove its folder; return whether there was one."""
        self._entries.remove(name)
        if not self._catalog.store.files(name):
            return False
        self._fleet.unload(name)
        self._catalog.store.remove(name)
        return True

    def names(self) -> list[tuple[str, str]]:
        """Return name and model of every folder of this kind."""
        folders = self._catalog.store.folders()
        return [(name, name.removesuffix(end)) for name in folders for end in BESIDE if name.endswith(end)]
