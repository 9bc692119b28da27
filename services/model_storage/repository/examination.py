"""Looking at an unpacked archive: what it holds, who signed it, how Triton is to serve it."""

from __future__ import annotations

import hashlib
import json
import logging
import shutil
from collections.abc import Collection, Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from pydantic import ValidationError

from services.model_storage.errors import NotTrusted, Refused
from services.model_storage.repository import model_config
from services.model_storage.repository.archive import File
from services.model_storage.repository.model_config import CONFIG_FILE, MODEL_FILES, PYTHON_FILE
from services.model_storage.repository.record import (
    MAX_SMALL_FILE,
    META_FILE,
    RECORD_FILE,
    UPLOADED,
    WRITTEN,
    Inherited,
    Record,
    Target,
)
from services.model_storage.repository.signatures import (
    PROVENANCE_FILE,
    SIGNATURE_FILE,
    Signatures,
    provenance_of,
)
from services.model_storage.repository.store import out_of_space

logger = logging.getLogger(__name__)


PythonModels = Literal["off", "signed", "on"]


def examine(
    model: str,
    folder: Path,
    files: Mapping[str, File],
    sha256: str,
    signatures: Signatures,
    python_models: PythonModels = "off",
    champion: tuple[Record, str] | None = None,
) -> Record:
    """Return a record of the unpacked archive, its version still to come; make its configuration.

    Args:
        champion: the version in production and its configuration, which an archive without one takes over.
    """
    for name in {RECORD_FILE, *(f"{name}{UPLOADED}" for name in WRITTEN)} & set(files):
        raise Refused(f"{name} is written by the model storage; the archive must not hold one")
    for name in (META_FILE, CONFIG_FILE, SIGNATURE_FILE, PROVENANCE_FILE):
        if name in files and files[name].size > MAX_SMALL_FILE:
            raise Refused(f"{name} is {files[name].size} bytes long; at most {MAX_SMALL_FILE} are allowed")
    signed_by = _signer(model, folder, files, signatures)
    target = _target(files, python_models == "on" or (python_models == "signed" and signed_by is not None))
    provenance = folder / PROVENANCE_FILE
    with out_of_space():
        if signed_by is not None:
            for name in WRITTEN & set(files):
                shutil.copyfile(folder / name, folder / f"{name}{UPLOADED}")
        meta = _meta(folder)
        config, left_out, inherited = _config(model, folder, target, files, meta, champion)
        write(folder / CONFIG_FILE, model_config.to_text(config))
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
            meta=meta,
            inherited=inherited,
            left_out=left_out,
            signed_by=signed_by,
            provenance=provenance_of(provenance.read_bytes()) if signed_by and provenance.exists() else None,
        )
    except ValidationError as error:
        raise Refused(f"{META_FILE} is not acceptable: {error}") from error


def _target(files: Collection[str], may_be_code: bool) -> Target:
    """Return what runs the model: code where there is some and it may run, else the one model file."""
    if PYTHON_FILE in files and may_be_code:
        return "python"
    found = [target for name, target in MODEL_FILES.items() if name in files]
    if len(found) == 1:
        return found[0]
    if PYTHON_FILE in files and not found:
        raise Refused(
            f"{PYTHON_FILE} is code, which Triton would run: this model storage takes none, or none that is not signed "
            "(MODEL_STORAGE_PYTHON_MODELS)"
        )
    raise Refused(
        f"the archive must hold exactly one of {' and '.join(MODEL_FILES)}; it holds: {', '.join(sorted(files))}"
    )


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


def _config(
    model: str,
    folder: Path,
    target: str,
    files: Collection[str],
    meta: Mapping[str, Any],
    champion: tuple[Record, str] | None,
) -> tuple[Any, list[str], Inherited | None]:
    """Return the configuration, what of an uploaded one was left out, and what was taken from the champion's."""
    path = folder / CONFIG_FILE
    if not path.exists():
        made = model_config.generate(target, folder)
        told = made if made.input else model_config.described(target, meta)
        if champion is not None and champion[0].target == target and told is not None:
            record, text = champion
            if found := model_config.inherit(told, text, files):
                return found[0], [], Inherited(version=record.version, settings=found[1])
        return made, [], None
    try:
        return *model_config.read(path.read_text(), model, target, files), None
    except UnicodeDecodeError as error:
        raise Refused(f"{CONFIG_FILE} is not UTF-8 text: {error}") from error


def write(path: Path, text: str) -> None:
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
