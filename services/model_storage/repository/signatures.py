"""Signatures of packages, by OpenSSF model-signing: `model.sig` says who signed which files of which model.

It is a Sigstore bundle: a DSSE envelope around an in-toto statement whose subject is the model's name and whose
predicate lists every other file of the archive with its SHA-256. Here it is checked with the keys and for the
identities that the settings trust.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import json
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal

from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_der_public_key

from services.model_storage.errors import NotTrusted
from services.model_storage.repository.keyless import CERTIFICATES, Identity, Keyless

SIGNATURE_FILE = "model.sig"
PROVENANCE_FILE = "provenance.json"
STATEMENT = "https://model_signing/signature/v1.0"
SHOWN = 12  # digits of a fingerprint in a message

Policy = Literal["off", "warn", "require"]
_BEGIN, _END = "-----BEGIN PUBLIC KEY-----", "-----END PUBLIC KEY-----"


class Signatures:
    """The keys and identities whose signatures count, and what happens to packages without one.

    Args:
        policy: `off`: nobody looks at signatures; `warn`: a package without one is taken, and the log says so;
            `require`: it is refused. Unless off, a signature that is there must hold.
        keys: PEM texts (SubjectPublicKeyInfo, EC on P-256, P-384 or P-521) one after another; or the base64 lines in
            such a text alone, each key in one line, separated by commas.
        identities: who may sign without a key.
        trust_root: by which that is checked, as `Keyless` takes it.

    Raises:
        ValueError: a key is not one, or `require` has neither key nor identity, or the trust root is none.
    """

    def __init__(
        self, policy: Policy, keys: str = "", identities: Sequence[Identity] = (), trust_root: Path | None = None
    ) -> None:
        self.policy = policy
        self._verifiers = {fingerprint(pem): pem for pem in _pem_texts(keys)}
        self._keyless = Keyless(identities, trust_root)
        if policy == "require" and not self.trusted:
            raise ValueError("no package could be published: 'require' asks for a key or an identity that is trusted")
        for pem in self._verifiers.values():
            _verifier(pem)  # a curve that signatures cannot have is refused now

    @property
    def trusted(self) -> frozenset[str]:
        """Who is trusted, as a version's `signed_by` names them: fingerprints of keys, and identities."""
        return frozenset(self._verifiers) | self._keyless.trusted

    def signer(self, model: str, digests: Mapping[str, str], signature: bytes) -> str:
        """Return who, of those that are trusted, signed exactly the files `digests` for `model`.

        Args:
            digests: name -> SHA-256, 64 hex digits, of every file but the signature.
            signature: the content of `model.sig`.

        Raises:
            NotTrusted: somebody else signed, or for another model, or other files, or it is no signature.
        """
        bundle = _parsed(signature, SIGNATURE_FILE)
        material = bundle.get("verificationMaterial")
        keyless = isinstance(material, dict) and CERTIFICATES & set(material)
        signer, verifier = self._keyless.signer(signature) if keyless else self._key(material)
        with tempfile.NamedTemporaryFile(prefix="nightshift-signature-") as file:
            file.write(signature)
            file.flush()
            try:
                verifier.set_hashing_config(_known(digests)).verify(Path(model), Path(file.name))
            except Exception as error:  # whatever the library says of what it cannot read or what does not hold
                why = str(error) or type(error).__name__
                raise NotTrusted(f"{SIGNATURE_FILE} does not hold for these files: {why[:1000]}") from error
        _check_subject(bundle, model)
        return signer

    def _key(self, material: Any) -> tuple[str, Any]:
        """Return the fingerprint of the trusted key that a bundle names, and what checks that it signed."""
        try:
            hint = str(material["publicKey"]["hint"])
        except (KeyError, TypeError) as error:
            raise NotTrusted(f"{SIGNATURE_FILE} does not say which key signed: it lacks {error}") from error
        if hint not in self._verifiers:
            known = ", ".join(sorted(key[:SHOWN] for key in self._verifiers)) or "none"
            raise NotTrusted(f"{SIGNATURE_FILE} is of the key {hint[:SHOWN]!r}; trusted keys: {known}")
        return hint, _verifier(self._verifiers[hint])


def _known(digests: Mapping[str, str]) -> Any:
    """Return a way of hashing by which files, whose digests are known, are not read once more, and none is left out."""
    from model_signing import hashing, manifest
    from model_signing._hashing.hashing import Digest  # what a manifest's item takes; there is no public name for it

    class Known(hashing.Config):
        def hash(self, model_path: hashing.PathLike, *, files_to_hash: object = None) -> manifest.Manifest:
            items = [
                manifest.FileManifestItem(path=PurePosixPath(name), digest=Digest("sha256", bytes.fromhex(digest)))
                for name, digest in digests.items()
            ]
            files = {"method": "files", "hash_type": "sha256", "allow_symlinks": False}
            return manifest.Manifest(Path(str(model_path)).name, items, manifest.SerializationType.from_args(files))

    return Known()  # type: ignore[no-untyped-call]


def fingerprint(pem: str) -> str:
    """Return the SHA-256 of a public key's PEM text (what `sha256sum` says of its file), as signatures name it."""
    return hashlib.sha256(pem.encode()).hexdigest()


def provenance_of(content: bytes) -> dict[str, Any]:
    """Return what a package's `provenance.json` says.

    Raises:
        NotTrusted: it is no JSON object.
    """
    return _parsed(content, PROVENANCE_FILE)


def _verifier(pem: str) -> Any:
    from model_signing import verifying  # half a second and 26 MB, which a storage without keys need not spend

    with tempfile.NamedTemporaryFile(prefix="nightshift-key-") as file:
        file.write(pem.encode())
        file.flush()
        config = verifying.Config()  # type: ignore[no-untyped-call]
        return config.use_elliptic_key_verifier(public_key=file.name)


def _check_subject(bundle: dict[str, Any], model: str) -> None:
    """Check that the statement, whose signature holds, is of the model's whole folder and names it."""
    try:
        statement = json.loads(base64.b64decode(bundle["dsseEnvelope"]["payload"], validate=True))
        kind, (subject,) = statement["predicateType"], statement["subject"]
        name = subject["name"]
    except (KeyError, TypeError, ValueError, binascii.Error) as error:
        raise NotTrusted(f"{SIGNATURE_FILE} is of another form: {error}") from error
    if kind != STATEMENT:
        raise NotTrusted(f"{SIGNATURE_FILE} is a statement {kind!r}; what counts is {STATEMENT}")
    if name != model:
        raise NotTrusted(f"{SIGNATURE_FILE} is of a package of the model {name!r}, the upload is for {model!r}")


def _parsed(content: bytes, name: str) -> dict[str, Any]:
    try:
        found = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise NotTrusted(f"{name} is not JSON: {error}") from error
    if not isinstance(found, dict):
        raise NotTrusted(f"{name} must be a JSON object, not {type(found).__name__}")
    return found


def _pem_texts(keys: str) -> list[str]:
    """Return the keys one by one, each in the form of which fingerprints are made."""
    parts = keys.replace(_BEGIN, ",").replace(_END, ",").split(",")
    texts = []
    for number, part in enumerate((body for part in parts if (body := "".join(part.split()))), 1):
        try:
            key = load_der_public_key(base64.b64decode(part, validate=True))
            text = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
        except ValueError as error:
            raise ValueError(
                f"key {number} is no public key in PEM or base64 (SubjectPublicKeyInfo): {error}"
            ) from error
        texts.append(text)
    return texts
