"""Signing a package with OpenSSF model-signing, so that the model storage can tell who made it.

The signature, `model.sig` in the archive, is of every other file in it and of the model's name: the name of the folder
that the library signs.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from conversion_jobs.publishing.package_archive import write_archive
from jobkit import settings
from jobkit.errors import ConfigurationError
from jobkit.model_storage import ARCHIVE
from jobkit.unpack import open_archive
from nightshift_common.archive import copy_entry

SIGNATURE_FILE = "model.sig"
PROVENANCE_FILE = "provenance.json"
_BEGIN = "-----BEGIN "


def sign_archive(archive: Path, target: Path, model: str, key: str, provenance: Mapping[str, Any] | None) -> None:
    """Write the flat zip `archive` to `target` with a signature, in the place of one that it may have.

    Args:
        archive: a package for the model storage.
        target: a new file.
        model: the name under which it will be published, and no other.
        key: the private key, as `settings.SIGNING_KEY` takes it.
        provenance: where the model comes from: becomes the file `provenance.json`, which is signed too; None: nothing
            is added.

    Raises:
        DataValidationError: the archive is no package.
        ConfigurationError: the key is not one.
    """
    with (
        tempfile.TemporaryDirectory(prefix="nightshift-sign-", dir=target.parent) as scratch,
        _key_file(key) as private,
    ):
        folder, signature = Path(scratch) / model, Path(scratch) / SIGNATURE_FILE
        folder.mkdir()
        with open_archive(archive, ARCHIVE, archive.name) as found:
            for entry in found.infolist():
                if entry.filename != SIGNATURE_FILE:
                    with found.open(entry) as source:
                        copy_entry(source, entry, folder / entry.filename, len)
        if provenance is not None:
            (folder / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
        _signer(private).sign(folder, signature)
        write_archive(target, {path.name: path for path in (*folder.iterdir(), signature)})


def _signer(private: Path) -> Any:
    from model_signing import hashing, signing  # takes a second to import

    files = hashing.Config()  # type: ignore[no-untyped-call]
    files.set_ignored_paths(paths=[], ignore_git_paths=False)
    config = signing.Config()  # type: ignore[no-untyped-call]
    try:
        return config.set_hashing_config(files).use_elliptic_key_signer(private_key=private)
    except (ValueError, TypeError, AttributeError) as error:  # AttributeError: of a key that is on no curve
        raise ConfigurationError(
            f"the key in {settings.SIGNING_KEY} cannot sign: {error}; make one by openssl genpkey -algorithm EC "
            "-pkeyopt ec_paramgen_curve:P-256"
        ) from error


@contextmanager
def _key_file(key: str) -> Iterator[Path]:
    """Yield a file with the PEM text of `key`, in memory alone: the library reads keys from files."""
    pem = key if _BEGIN in key else f"-----BEGIN PRIVATE KEY-----\n{key}\n-----END PRIVATE KEY-----\n"
    descriptor = os.memfd_create("nightshift-signing-key")
    try:
        os.write(descriptor, pem.encode())
        yield Path(f"/proc/self/fd/{descriptor}")
    finally:
        os.close(descriptor)
