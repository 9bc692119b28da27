"""The versions of the models: publishing an archive as a version, and looking versions up."""

from __future__ import annotations

import json
import logging
import shutil
import threading
from collections.abc import Collection, Mapping
from pathlib import Path
from types import MappingProxyType

from nightshift_common.names import is_name
from services.model_storage.api.spool import Diverted
from services.model_storage.errors import AlreadyThere, NotFound, NotTrusted, Refused
from services.model_storage.repository import model_config, takeover
from services.model_storage.repository.archive import unpack
from services.model_storage.repository.examination import PythonModels, examine, write
from services.model_storage.repository.model_config import CONFIG_FILE
from services.model_storage.repository.record import (
    META_FILE,
    NEXT,
    RECORD_FILE,
    RESERVED,
    UPLOADED,
    WRITTEN,
    Record,
    check_model_name,
    following,
    is_version,
    order,
)
from services.model_storage.repository.signatures import SIGNATURE_FILE, Signatures
from services.model_storage.repository.store import ModelLocks, Store, digest_of, out_of_space

logger = logging.getLogger(__name__)

MAX_CACHED = 10_000  # records in memory, a few KiB each
DELETED = ".deleted"
EXISTS = "This model version already exists."

NOT_LOOKED_AT = Signatures("off")


class Catalog:
    """The versions in a store. Calls for one model come one after another where they change something."""

    def __init__(
        self,
        store: Store,
        max_unpacked_bytes: int,
        signatures: Signatures = NOT_LOOKED_AT,
        python_models: PythonModels = "off",
    ) -> None:
        self.store = store
        self._python_models = python_models
        self.signatures = signatures
        self.locks = ModelLocks()
        self._max_bytes = max_unpacked_bytes
        self._cache: dict[tuple[str, str], Record] = {}
        self._cache_guard = threading.Lock()
        self._known: set[str] = set()  # models with versions: one at least is never deleted

    def models(self) -> list[str]:
        """Return the names of the models, sorted."""
        return [name for name in self.store.folders() if not name.endswith(RESERVED)]

    def versions(self, model: str) -> list[Record]:
        """Return the versions of `model` in semantic order, the oldest first; empty where there is no such model."""
        check_model_name(model)
        names = [name for name in self.store.files(f"{model}/.versions") if is_name(name)]
        return [self._record(model, name) for name in sorted(names, key=order)]

    def version(self, model: str, version: str) -> Record:
        """Return one version.

        Raises:
            NotFound: there is none; the message says which there are.
        """
        check_model_name(model)
        if is_name(version) and self._is_there(model, version):
            return self._record(model, version)
        known = [record.version for record in self.versions(model)]
        if not known:
            raise NotFound(f"there is no model {model!r}")
        shown = ", ".join(known[-5:])
        raise NotFound(f"the model {model!r} has no version {version!r}; the latest are: {shown}")

    def has_versions(self, model: str, look_up: bool = True) -> bool:
        """Whether `model` has a version; where that is not known already, the repository is asked if `look_up`."""
        if model in self._known or not look_up or not is_name(model) or model.endswith(RESERVED):
            return model in self._known
        if self.store.files(f"{model}/.versions"):
            self._known.add(model)
        return model in self._known

    def by_number(self, model: str, number: int) -> Record:
        """Return the version in Triton's folder `number`.

        Raises:
            NotFound: there is none.
        """
        for record in self.versions(model):
            if record.triton_version == number:
                return record
        raise NotFound(f"the model {model!r} has no Triton version {number}")

    def has_taken_over(self, model: str) -> bool:
        """Whether `model` has a version that an earlier service left."""
        return is_name(model) and any(record.taken_over is not None for record in self.versions(model))

    def configured(self, model: str) -> Record | None:
        """Return the version that the model's `config.pbtxt` names, the latest of several; None where it names none."""
        text = self.store.read(f"{model}/{CONFIG_FILE}") or b""
        numbers = model_config.named_versions(text.decode(errors="replace"))
        named = [record for record in self.versions(model) if record.triton_version in numbers]
        return max(named, key=lambda record: record.triton_version, default=None)

    def config(self, record: Record, served_as: str) -> bytes:
        """Return the `config.pbtxt` that serves exactly `record` under the model name `served_as`."""
        if record.taken_over is not None:
            is_beside = served_as != record.model
            return model_config.as_found(record.taken_over, served_as, record.triton_version, is_beside).encode()
        if record.signed_by and CONFIG_FILE in record.files:  # from what was signed, whatever was made of it since
            signed = self.store.read(f"{record.folder}/{CONFIG_FILE}{UPLOADED}") or b""
            made, _ = model_config.read(signed.decode(), record.model, record.target, record.files)
            text = model_config.to_text(made)
            return model_config.bound(text, served_as, record.triton_version, record.files).encode()
        own = self.store.read(f"{record.folder}/{CONFIG_FILE}")
        if own is None:
            raise NotFound(f"version {record.version} of {record.model} has lost its {CONFIG_FILE}")
        return model_config.bound(own.decode(), served_as, record.triton_version, record.files).encode()

    def check(self, record: Record, before: Collection[str | None]) -> None:
        """Check that `record` may be loaded: it is what was signed, or need not be signed.

        Args:
            before: who had signed the version when it came into production, each time; None: nobody. A version that was
                in production without a signature may be so again; one that had a signature cannot lose it.

        Raises:
            NotTrusted: it may not be loaded.
        """
        policy, name = self.signatures.policy, f"version {record.version} of {record.model}"
        if policy == "off":
            return
        if record.signed_by:
            try:
                self.signatures.signer(record.model, self._digests(record), self._signature(record))
            except NotTrusted as error:
                raise NotTrusted(f"{name} is no longer what a trusted key has signed: {error}") from error
        elif any(before):
            raise NotTrusted(f"{name} was signed when it was in production, and is not now: it was altered")
        elif policy == "require" and not before:
            raise NotTrusted(
                f"{name} is not signed, and MODEL_STORAGE_SIGNATURES is 'require': publish it again, signed"
            )
        else:
            logger.warning("%s is loaded without a signature", name)

    def publish(
        self,
        model: str,
        wanted: str,
        archive: Path,
        sha256: str,
        number: int | None = None,
        diverted: Mapping[int, Diverted] = MappingProxyType({}),
        published_by: str | None = None,
    ) -> tuple[Record, bool]:
        """Make the zip `archive` a version; return it, and whether it was there already.

        With `wanted` = "next" the version is the next patch version after the latest, or the one that has exactly
        this content. `number` asks for a certain Triton folder; `diverted` is what is no longer in the archive.
        `published_by` is the name of the token; a version that is there already keeps its own.

        Raises:
            Refused: the name, the version or the archive is not acceptable, or the version exists.
        """
        check_model_name(model)
        if wanted != NEXT and not is_version(wanted):
            raise Refused(f"{wanted!r} is no semantic version such as 0.0.1, 1.0, v2 or 1.0.0-rc1, nor {NEXT!r}")
        if wanted != NEXT and self._is_there(model, wanted):
            raise AlreadyThere(EXISTS)
        if wanted != NEXT and wanted in self.store.files(f"{model}/{DELETED}"):
            raise AlreadyThere(f"{EXISTS} It was deleted, and its name is not used again.")
        folder = self.store.workspace()
        try:
            with out_of_space():
                files, junk = unpack(archive, folder, self._max_bytes, diverted)
            present = self.configured(model)
            champion = None if present is None else (present, self.config(present, model).decode())
            draft = examine(model, folder, files, sha256, self.signatures, self._python_models, champion)
            draft = draft.model_copy(update={"published_by": published_by, "left_out": [*draft.left_out, *junk]})
            with self.locks.of(model):
                return self._place(draft, wanted, folder, number)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def delete(self, record: Record) -> None:
        """Delete a version for good; what is left of it says that its name and its number are taken.

        The caller has seen that nothing needs it.
        """
        with self.locks.of(record.model):
            self.store.create(f"{record.model}/{DELETED}/{record.version}", record.model_dump_json(indent=2).encode())
            self._finish_deleting(record)
        logger.info("deleted %s %s, Triton version %d", record.model, record.version, record.triton_version)

    def _finish_deleting(self, record: Record) -> None:
        self.store.delete(f"{record.model}/.versions/{record.version}")
        with self._cache_guard:
            self._cache.pop((record.model, record.version), None)
        self.store.remove(record.folder)

    def _deleted(self, model: str) -> list[Record]:
        contents = [self.store.read(f"{model}/{DELETED}/{name}") for name in self.store.files(f"{model}/{DELETED}")]
        return [Record.model_validate_json(content) for content in contents if content is not None]

    def reconcile(self) -> None:
        """Finish or undo what an interrupted process has left: afterwards every version is whole.

        A version folder appears by a rename, so one without a record is complete and gets its record. What an
        earlier service, or a person, has put there is taken over as it is.
        """
        self.store.clean()
        for model in self.models():
            if not is_name(model):
                logger.warning("%r is no name of a model: ignored", model)
                continue
            for record in self._deleted(model):
                self._finish_deleting(record)
            numbers = {int(name) for name in self.store.folders(model) if name.isdecimal()}
            if len(numbers) != len(self.store.files(f"{model}/.versions")):  # or reading every record takes minutes
                self._adopt(model, numbers - {record.triton_version for record in self.versions(model)})
            if self.has_versions(model) and CONFIG_FILE not in self.store.files(model):
                self.store.create(f"{model}/{CONFIG_FILE}", self.config(self.versions(model)[-1], model))

    def _place(self, draft: Record, wanted: str, folder: Path, number: int | None) -> tuple[Record, bool]:
        model = draft.model
        while True:
            records = self.versions(model)
            same = [
                record
                for record in records
                if record.content_sha256 == draft.content_sha256
                and (draft.signed_by is None or record.signed_by in self.signatures.trusted)
            ]
            if wanted == NEXT and number is None and same:
                return same[0], True
            gone = self._deleted(model)
            version = following(record.version for record in [*records, *gone]) if wanted == NEXT else wanted
            taken = {int(name) for name in self.store.folders(model) if name.isdecimal()}
            taken |= {record.triton_version for record in gone}
            if any(record.version == version for record in records) or number in taken:
                raise AlreadyThere(EXISTS)
            chosen = number or max(taken, default=0) + 1
            meta = draft.meta | {"model_version": version}
            record = draft.model_copy(update={"version": version, "triton_version": chosen, "meta": meta})
            with out_of_space():
                write(folder / META_FILE, json.dumps(meta, indent=2, ensure_ascii=False) + "\n")
                write(folder / RECORD_FILE, record.model_dump_json(indent=2) + "\n")
            key = f"{model}/{chosen}"
            if not self.store.place(folder, key):
                continue
            if self._commit(record):
                return record, False
            self.store.take_back(key, folder)

    def _commit(self, record: Record) -> bool:
        created = self.store.create(
            f"{record.model}/.versions/{record.version}", record.model_dump_json(indent=2).encode()
        )
        if created:
            self._known.add(record.model)
        if created and record.taken_over is None:
            self.store.create(f"{record.model}/{CONFIG_FILE}", self.config(record, record.model))
            signer = f"signed by {record.signed_by}" if record.signed_by else "without a signature"
            logger.info(
                "published %s %s as Triton version %d, %s", record.model, record.version, record.triton_version, signer
            )
            if record.left_out:
                logger.warning("of %s %s was left out: %s", record.model, record.version, ", ".join(record.left_out))
        return created

    def _adopt(self, model: str, numbers: Collection[int]) -> None:
        """Give version folders without a record their records; a second folder of a version of ours is removed."""
        strange = []
        for number in numbers:
            key = f"{model}/{number}"
            written = self.store.read(f"{key}/{RECORD_FILE}")
            if written is None:
                strange.append(number)
            elif not self._commit(record := Record.model_validate_json(written)):
                logger.warning("%s is a second folder of version %s: removed", key, record.version)
                self.store.remove(key)
        known = self.store.files(f"{model}/.versions")
        for record in takeover.found(self.store, model, strange, known):
            self._commit(record)

    def _digests(self, record: Record) -> dict[str, str]:
        """Return name and SHA-256 of each file of a signed version as it was uploaded, read now."""
        there = self.store.tree(record.folder)
        digests: dict[str, str] = {}
        for name in record.files:
            if name == SIGNATURE_FILE:
                continue
            kept = f"{name}{UPLOADED}" if name in WRITTEN else name
            if kept not in there:
                raise NotTrusted(f"{kept} is missing")
            _, digests[name] = digest_of(self.store, f"{record.folder}/{kept}")
            if digests[name] != record.files[name].sha256:
                raise NotTrusted(f"{kept} was altered")
        return digests

    def _signature(self, record: Record) -> bytes:
        found = self.store.read(f"{record.folder}/{SIGNATURE_FILE}")
        if found is None:
            raise NotTrusted(f"{SIGNATURE_FILE} is missing")
        return found

    def _is_there(self, model: str, version: str) -> bool:
        with self._cache_guard:
            if (model, version) in self._cache:
                return True
        return self.store.read(f"{model}/.versions/{version}") is not None

    def _record(self, model: str, version: str) -> Record:
        with self._cache_guard:
            if found := self._cache.get((model, version)):
                return found
        content = self.store.read(f"{model}/.versions/{version}")
        if content is None:
            raise NotFound(f"the model {model!r} has no version {version!r}")
        record = Record.model_validate_json(content)
        with self._cache_guard:  # a record never changes, so it is never stale
            self._cache[model, version] = record
            if len(self._cache) > MAX_CACHED:
                del self._cache[next(iter(self._cache))]
        return record
