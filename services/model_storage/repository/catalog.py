"""The versions of the models: publishing an archive as a version, and looking versions up."""

from __future__ import annotations

import hashlib
import json
import logging
import re
import shutil
import threading
from collections.abc import Collection, Mapping
from contextlib import closing
from datetime import UTC, datetime
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from nightshift_common.archive import CHUNK
from nightshift_common.names import NAME_RULE, is_name
from services.model_storage.api.spool import Diverted
from services.model_storage.errors import NotFound, NotTrusted, Refused, StorageError, Unavailable
from services.model_storage.repository import model_config
from services.model_storage.repository.archive import File, unpack
from services.model_storage.repository.model_config import CONFIG_FILE, MODEL_FILES
from services.model_storage.repository.signatures import (
    PROVENANCE_FILE,
    SIGNATURE_FILE,
    Signatures,
    provenance_of,
)
from services.model_storage.repository.store import ModelLocks, Store, out_of_space

logger = logging.getLogger(__name__)

NEXT = "next"
META_FILE = "meta.json"
RECORD_FILE = "version.json"
WRITTEN = frozenset({META_FILE, CONFIG_FILE})  # files of an archive that are written anew after the upload
# What Triton serves beside a model has its name and one of these; the last one while a picture is tried.
CANDIDATE, CANARY, PREVIOUS = BESIDE = ("__candidate", "__canary", "__previous")
PICTURES = "_jpeg"  # ends the name of the entry that takes encoded pictures for a model
RESERVED = (*BESIDE, PICTURES)
UPLOADED = ".uploaded"  # ends the names of files of a signed package that were changed after the upload
MAX_SMALL_FILE = 1 << 20  # meta.json, config.pbtxt, the signature and the provenance are read into memory
MAX_CACHED = 10_000  # records in memory, a few KiB each
_VERSION = re.compile(r"(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})\.(0|[1-9]\d{0,8})", re.ASCII)

EXISTS = "This model version already exists."


class Record(BaseModel):
    """One version of a model; immutable."""

    model_config = ConfigDict(frozen=True)

    model: str
    version: str
    triton_version: int
    target: Literal["onnx", "tensorrt"]
    sha256: str
    """Of the archive as it was uploaded."""
    content_sha256: str
    """Of the names and contents of the files in it: the same for the same files packed, and signed, again."""
    created_at: datetime
    files: dict[str, File]
    meta: dict[str, Any]
    left_out: list[str] = []
    """Fields of the uploaded config.pbtxt that are not served."""
    published_by: str | None = None
    """The name of the token that it was uploaded with; None of earlier versions, and where there is no log-in."""
    signed_by: str | None = None
    """Fingerprint of the key, or the identity, that signed the package; None: it was not signed, or nobody looked."""
    provenance: dict[str, Any] | None = None
    """Of a signed package: what its provenance.json says."""

    @property
    def folder(self) -> str:
        """The version's folder in the store."""
        return f"{self.model}/{self.triton_version}"


NOT_LOOKED_AT = Signatures("off")


class Catalog:
    """The versions in a store. Calls for one model come one after another where they change something."""

    def __init__(self, store: Store, max_unpacked_bytes: int, signatures: Signatures = NOT_LOOKED_AT) -> None:
        self.store = store
        self.signatures = signatures
        self.locks = ModelLocks()
        self._max_bytes = max_unpacked_bytes
        self._cache: dict[tuple[str, str], Record] = {}
        self._cache_guard = threading.Lock()

    def models(self) -> list[str]:
        """Return the names of the models, sorted."""
        return [name for name in self.store.folders() if not name.endswith(RESERVED)]

    def versions(self, model: str) -> list[Record]:
        """Return the versions of `model` in semantic order, the oldest first; empty where there is no such model."""
        check_model_name(model)
        names = [name for name in self.store.files(f"{model}/.versions") if _VERSION.fullmatch(name)]
        return [self._record(model, name) for name in sorted(names, key=order)]

    def version(self, model: str, version: str) -> Record:
        """Return one version.

        Raises:
            NotFound: there is none; the message says which there are.
        """
        check_model_name(model)
        if _VERSION.fullmatch(version) and self._is_there(model, version):
            return self._record(model, version)
        known = [record.version for record in self.versions(model)]
        if not known:
            raise NotFound(f"there is no model {model!r}")
        shown = ", ".join(known[-5:])
        raise NotFound(f"the model {model!r} has no version {version!r}; the latest are: {shown}")

    def has_versions(self, model: str) -> bool:
        """Whether `model` has a version here; Triton may serve others that were put there by hand."""
        return bool(is_name(model) and self.store.files(f"{model}/.versions"))

    def by_number(self, model: str, number: int) -> Record:
        """Return the version in Triton's folder `number`.

        Raises:
            NotFound: there is none.
        """
        for record in self.versions(model):
            if record.triton_version == number:
                return record
        raise NotFound(f"the model {model!r} has no Triton version {number}")

    def config(self, record: Record, served_as: str) -> bytes:
        """Return the `config.pbtxt` that serves exactly `record` under the model name `served_as`."""
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
        if wanted != NEXT and not _VERSION.fullmatch(wanted):
            raise Refused(f"{wanted!r} is no semantic version such as 0.0.1, nor {NEXT!r}")
        if wanted != NEXT and self._is_there(model, wanted):
            raise Refused(EXISTS)
        folder = self.store.workspace()
        try:
            with out_of_space():
                files = unpack(archive, folder, self._max_bytes, diverted)
            draft = _examine(model, folder, files, sha256, self.signatures)
            draft = draft.model_copy(update={"published_by": published_by})
            with self.locks.of(model):
                return self._place(draft, wanted, folder, number)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def reconcile(self) -> None:
        """Finish or undo what an interrupted process has left: afterwards every version is whole.

        A version folder appears by a rename, so one without a record is complete and gets its record. One
        that was put there by hand is left alone.
        """
        self.store.clean()
        for model in self.models():
            if not is_name(model):
                logger.warning("%r is no name of a model: ignored", model)
                continue
            numbers = {int(name) for name in self.store.folders(model) if name.isdecimal()}
            if len(numbers) != len(self.store.files(f"{model}/.versions")):  # or reading every record takes minutes
                for number in numbers - {record.triton_version for record in self.versions(model)}:
                    self._adopt(model, number)
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
            version = following(records) if wanted == NEXT else wanted
            taken = {int(name) for name in self.store.folders(model) if name.isdecimal()}
            if any(record.version == version for record in records) or number in taken:
                raise Refused(EXISTS)
            chosen = number or max(taken, default=0) + 1
            meta = draft.meta | {"model_version": version}
            record = draft.model_copy(update={"version": version, "triton_version": chosen, "meta": meta})
            with out_of_space():
                _write(folder / META_FILE, json.dumps(meta, indent=2, ensure_ascii=False) + "\n")
                _write(folder / RECORD_FILE, record.model_dump_json(indent=2) + "\n")
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
            self.store.create(f"{record.model}/{CONFIG_FILE}", self.config(record, record.model))
            signer = f"signed by {record.signed_by}" if record.signed_by else "without a signature"
            logger.info(
                "published %s %s as Triton version %d, %s", record.model, record.version, record.triton_version, signer
            )
            if record.left_out:
                logger.warning(
                    "of the %s of %s %s was left out: %s",
                    CONFIG_FILE, record.model, record.version, ", ".join(record.left_out),
                )  # fmt: skip
        return created

    def _adopt(self, model: str, number: int) -> None:
        """Give the version folder without a record its record, or remove it where the version has another folder."""
        key = f"{model}/{number}"
        written = self.store.read(f"{key}/{RECORD_FILE}")
        if written is None:
            logger.warning("%s has no %s: put there by hand, or another service uploads it now", key, RECORD_FILE)
            return
        record = Record.model_validate_json(written)
        if not self._commit(record):
            logger.warning("%s is a second folder of version %s: removed", key, record.version)
            self.store.remove(key)

    def _digests(self, record: Record) -> dict[str, str]:
        """Return name and SHA-256 of each file of a signed version as it was uploaded, read now."""
        there, digests = self.store.files(record.folder), {}
        for name in record.files:
            if name == SIGNATURE_FILE:
                continue
            kept = f"{name}{UPLOADED}" if name in WRITTEN else name
            if kept not in there:
                raise NotTrusted(f"{kept} is missing")
            digests[name] = self._sha256(f"{record.folder}/{kept}")
            if digests[name] != record.files[name].sha256:
                raise NotTrusted(f"{kept} was altered")
        return digests

    def _sha256(self, key: str) -> str:
        digest = hashlib.sha256()
        try:
            with closing(self.store.open(key)) as source:
                while chunk := source.read(CHUNK):
                    digest.update(chunk)
        except StorageError:
            raise
        except Exception as error:  # each back end has its own
            raise Unavailable(f"{key} could not be read: {error}") from error
        return digest.hexdigest()

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


def check_model_name(model: str) -> None:
    """Refuse a name that cannot be a folder of the repository."""
    if not is_name(model) or model.endswith(RESERVED):
        raise Refused(f"{model!r} is no name for a model: {NAME_RULE}, and not ending in {' or '.join(RESERVED)}")


def order(version: str) -> tuple[int, ...]:
    """Return the sort key of a semantic version."""
    return tuple(int(part) for part in version.split("."))


def following(records: list[Record]) -> str:
    """Return the patch version after the latest of `records`, which are in order."""
    if not records:
        return "0.0.1"
    major, minor, patch = order(records[-1].version)
    return f"{major}.{minor}.{patch + 1}"


def _examine(model: str, folder: Path, files: Mapping[str, File], sha256: str, signatures: Signatures) -> Record:
    """Return a record of the unpacked archive, its version still to come; make its configuration."""
    found = [name for name in MODEL_FILES if name in files]
    if len(found) != 1:
        raise Refused(
            f"the archive must hold exactly one of {' and '.join(MODEL_FILES)}; it holds: {', '.join(sorted(files))}"
        )
    for name in {RECORD_FILE, *(f"{name}{UPLOADED}" for name in WRITTEN)} & set(files):
        raise Refused(f"{name} is written by the model storage; the archive must not hold one")
    for name in (META_FILE, CONFIG_FILE, SIGNATURE_FILE, PROVENANCE_FILE):
        if name in files and files[name].size > MAX_SMALL_FILE:
            raise Refused(f"{name} is {files[name].size} bytes long; at most {MAX_SMALL_FILE} are allowed")
    target = MODEL_FILES[found[0]]
    signed_by = _signer(model, folder, files, signatures)
    provenance = folder / PROVENANCE_FILE
    with out_of_space():
        if signed_by is not None:
            for name in WRITTEN & set(files):
                shutil.copyfile(folder / name, folder / f"{name}{UPLOADED}")
        config, left_out = _config(model, folder, target, files)
        _write(folder / CONFIG_FILE, model_config.to_text(config))
    about = (SIGNATURE_FILE, PROVENANCE_FILE)  # others each time that the same model is packed
    lines = sorted(f"{file.sha256}  {name}\n" for name, file in files.items() if name not in about)
    try:
        return Record(
            model=model,
            version="0.0.0",
            triton_version=0,
            target=target,
            sha256=sha256,
            content_sha256=hashlib.sha256("".join(lines).encode()).hexdigest(),
            created_at=datetime.now(UTC),
            files=dict(files),
            meta=_meta(folder),
            left_out=left_out,
            signed_by=signed_by,
            provenance=provenance_of(provenance.read_bytes()) if signed_by and provenance.exists() else None,
        )
    except ValidationError as error:
        raise Refused(f"{META_FILE} is not acceptable: {error}") from error


def _signer(model: str, folder: Path, files: Mapping[str, File], signatures: Signatures) -> str | None:
    """Return who signed the unpacked archive; None where nobody did, or nobody asks.

    Raises:
        NotTrusted: it should be signed and is not, or the signature does not hold.
    """
    if signatures.policy == "off":
        return None
    if SIGNATURE_FILE in files:
        digests = {name: file.sha256 for name, file in files.items() if name != SIGNATURE_FILE}
        return signatures.signer(model, digests, (folder / SIGNATURE_FILE).read_bytes())
    if signatures.policy == "require":
        raise NotTrusted(
            f"the package is not signed ({SIGNATURE_FILE} is missing), and MODEL_STORAGE_SIGNATURES is 'require': sign "
            f"it by python -m conversion_jobs.sign_package --model_name {model} --archive <zip>; see docs/security.md"
        )
    logger.warning("a package of %s is taken without a signature", model)
    return None


def _config(model: str, folder: Path, target: str, files: Collection[str]) -> tuple[Any, list[str]]:
    path = folder / CONFIG_FILE
    if not path.exists():
        return model_config.generate(target, folder), []
    try:
        return model_config.read(path.read_text(), model, target, files)
    except UnicodeDecodeError as error:
        raise Refused(f"{CONFIG_FILE} is not UTF-8 text: {error}") from error


def _write(path: Path, text: str) -> None:
    path.unlink(missing_ok=True)  # it may be read-only by now
    path.write_text(text)


def _meta(folder: Path) -> dict[str, Any]:
    path = folder / META_FILE
    if not path.exists():
        return {}
    try:
        meta = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise Refused(f"{META_FILE} is not JSON: {error}") from error
    if not isinstance(meta, dict):
        raise Refused(f"{META_FILE} must be a JSON object, not {type(meta).__name__}")
    return meta
