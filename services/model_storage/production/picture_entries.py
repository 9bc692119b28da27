"""The entries `<model>_jpeg` in Triton, which follow the models that they take pictures for."""

from __future__ import annotations

import logging
from typing import Any

from google.protobuf import text_format  # type: ignore[import-untyped]
from tritonclient.grpc.model_config_pb2 import ModelConfig

from services.model_storage.errors import Refused, ServingFailed
from services.model_storage.picture_entry.files import SPEC_FILE, entry_files, spec_of
from services.model_storage.repository.catalog import Catalog
from services.model_storage.repository.record import MAX_SMALL_FILE, PICTURES, Record
from services.model_storage.triton import Fleet, Served

logger = logging.getLogger(__name__)


class PictureEntries:
    """The entries of what is served. The caller holds the lock of the model.

    A model does not depend on its entry: where a Triton does not load one, say for lack of OpenCV, the log says so and
    the model is served without.
    """

    def __init__(self, catalog: Catalog, fleet: Fleet, wanted: bool) -> None:
        self._catalog, self._fleet, self._wanted = catalog, fleet, wanted
        self._specs: dict[str, dict[str, Any] | None] = {}  # by the version's folder; versions never change
        self._refused: dict[str, int] = {}  # entries that Triton did not load, and for which version

    def follow(self, record: Record, name: str, before: Record | None = None) -> None:
        """Serve the entry of the model `name`, which `record` is or will be served as; `before` serves until then.

        Called before the model is switched: the entry then knows both versions and asks the one that answers.
        """
        entry, spec = name + PICTURES, self._spec(record)
        self._refused.pop(entry, None)
        if spec is None:
            self.remove(name)
            return
        versions = {record.triton_version: spec}
        if before is not None and (earlier := self._spec(before)) is not None:
            versions = {before.triton_version: earlier, **versions}
        self._catalog.store.make(entry, entry_files(entry, name, record.triton_version, versions))
        try:
            self._fleet.serve(entry, record.triton_version)
        except ServingFailed as error:
            logger.warning("pictures cannot be sent to %s %s: %s", name, record.version, error)
            self.remove(name)
            self._refused[entry] = record.triton_version

    def remove(self, name: str) -> None:
        """Take the entry of the model `name` out of Triton and remove it; nothing happens where there is none."""
        if self._catalog.store.files(name + PICTURES):
            self._fleet.unload(name + PICTURES)
            self._catalog.store.remove(name + PICTURES)

    def is_right(self, served: Served, name: str, record: Record | None) -> bool:
        """Whether every server has the entry that the model `name` should have, by what it served; None: none."""
        entry = name + PICTURES
        spec = None if record is None else self._spec(record)
        number = None if record is None or spec is None else record.triton_version
        if number is not None and self._refused.get(entry) == number:
            return True  # tried, and said; the next change of the model tries again
        return served.exactly(entry, number)

    def _spec(self, record: Record) -> dict[str, Any] | None:
        """Return what the entry needs to know of a version; None where it takes no pictures or tells no classes."""
        if not self._wanted:
            return None
        if record.folder not in self._specs:
            try:
                self._specs[record.folder] = self._read(record)
            except Refused as error:
                logger.warning("pictures cannot be sent to %s %s: %s", record.model, record.version, error)
                self._specs[record.folder] = None
        return self._specs[record.folder]

    def _read(self, record: Record) -> dict[str, Any] | None:
        if SPEC_FILE not in record.files:
            return None
        if record.files[SPEC_FILE].size > MAX_SMALL_FILE:
            raise Refused(f"{SPEC_FILE} is {record.files[SPEC_FILE].size} bytes long")
        content = self._catalog.store.read(f"{record.folder}/{SPEC_FILE}")
        config = text_format.Parse(self._catalog.config(record, record.model).decode(), ModelConfig())
        spec = spec_of(content or b"", config)
        return None if spec is None else spec.as_values(record.version, config)
