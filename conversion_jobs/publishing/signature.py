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
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from conversion_jobs.publishing.keyless import KeylessSigner
from conversion_jobs.publishing.package_archive import write_archive
from jobkit import settings
from jobkit.errors import ConfigurationError
from jobkit.model_storage import ARCHIVE
from jobkit.unpack import open_archive
from nightshift_common.archive import copy_entry

SIGNATURE_FILE = "model.sig"
PROVENANCE_FILE = "provenance.json"
_BEGIN = "-----BEGIN "


class Signer(Protocol):
    """Who signs."""

    def sign(self, config: Any, folder: Path, signature: Path) -> None:
        """Sign the files of `folder` by a `model_signing.signing.Config`, and write the signature."""


@dataclass(frozen=True)
class KeySigner:
    """Whoever has a private key, as `settings.SIGNING_KEY` takes it."""

    key: str = field(repr=False)

    def sign(self, config: Any, folder: Path, signature: Path) -> None:
        """See `Signer`.

        Raises:
            ConfigurationError: the key is not one.
        """
        with _key_file(self.key) as private:
            try:
                config.use_elliptic_key_signer(private_key=private)
            except (ValueError, TypeError, AttributeError) as error:  # AttributeError: of a key that is on no curve
                raise ConfigurationError(
                    f"the key in {settings.SIGNING_KEY} cannot sign: {error}; make one by openssl genpkey "
                    "-algorithm EC -pkeyopt ec_paramgen_curve:P-256"
                ) from error
            config.sign(folder, signature)


def signer_of_settings() -> Signer | None:
    """Return who signs by the environment: an identity, or else a key; None where it names neither.

    Raises:
        ConfigurationError: it names a token twice.
    """
    token, token_file = settings.optional(settings.SIGNING_TOKEN), settings.optional(settings.SIGNING_TOKEN_FILE)
    if token and token_file:
        raise ConfigurationError(f"{settings.SIGNING_TOKEN} and {settings.SIGNING_TOKEN_FILE} are set: give one")
    if token or token_file:
        trust = settings.optional(settings.SIGNING_TRUST_CONFIG)
        return KeylessSigner(token, Path(token_file) if token_file else None, Path(trust) if trust else None)
    key = settings.optional(settings.SIGNING_KEY)
    return KeySigner(key) if key else None


def sign_archive(archive: Path, target: Path, model: str, signer: Signer, provenance: Mapping[str, Any] | None) -> None:
    """Write the flat zip `archive` to `target` with a signature, in the place of one that it may have.

    Args:
        archive: a package for the model storage.
        target: a new file.
        model: the name under which it will be published, and no other.
        signer: who signs.
        provenance: where the model comes from: becomes the file `provenance.json`, which is signed too; None: nothing
            is added.

    Raises:
        DataValidationError: the archive is no package.
        ConfigurationError: the signer's key or token is none.
        TransientError: what a signature without a key is asked of does not answer.
    """
    with tempfile.TemporaryDirectory(prefix="nightshift-sign-", dir=target.parent) as scratch:
        folder, signature = Path(scratch) / model, Path(scratch) / SIGNATURE_FILE
        folder.mkdir()
        with open_archive(archive, ARCHIVE, archive.name) as found:
            for entry in found.infolist():
                if entry.filename != SIGNATURE_FILE:
                    with found.open(entry) as source:
                        copy_entry(source, entry, folder / entry.filename, len)
        if provenance is not None:
            (folder / PROVENANCE_FILE).write_text(json.dumps(provenance, indent=2) + "\n", encoding="utf-8")
        signer.sign(_config(), folder, signature)
        write_archive(target, {path.name: path for path in (*folder.iterdir(), signature)})


def _config() -> Any:
    from model_signing import hashing, signing  # takes a second to import

    files = hashing.Config()  # type: ignore[no-untyped-call]
    files.set_ignored_paths(paths=[], ignore_git_paths=False)
    return signing.Config().set_hashing_config(files)  # type: ignore[no-untyped-call]


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
