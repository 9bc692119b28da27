"""Keyless signatures, as Sigstore makes them: in the place of a key stands a certificate for an identity.

An identity provider told Sigstore's authority who signs; the authority gave a certificate for minutes, and a public log
noted the signature. Whether that holds is computed here from the trust root alone: nothing is asked over the network.
"""

from __future__ import annotations

import importlib.resources
import json
from collections.abc import Sequence
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import Annotated, Any
from urllib.parse import quote

from pydantic import BaseModel, ConfigDict, StringConstraints

from services.model_storage.errors import NotTrusted

PUBLIC_INSTANCE = "https://tuf-repo-cdn.sigstore.dev"  # as the package sigstore names the folder with its trust root
CERTIFICATES = frozenset({"certificate", "x509CertificateChain"})  # of a bundle: one of them, where it is keyless

_TRUST_CONFIG = "application/vnd.dev.sigstore.clienttrustconfig.v0.1+json"
_Text = Annotated[str, StringConstraints(min_length=1, pattern=r"^\S+$")]


class Identity(BaseModel):
    """Who may sign, exactly as certificates name them."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    identity: _Text
    """An email address, or the address of a workflow or a service account."""
    identity_provider: Annotated[_Text, StringConstraints(pattern="^https?://")]
    """The issuer of the token with which the certificate was asked for."""

    def __str__(self) -> str:
        return f"{self.identity} ({self.identity_provider})"


class Keyless:
    """The identities whose signatures count.

    Args:
        identities: who may sign.
        trust_root: a file with Sigstore's trusted root (`trusted_root.json`) or a client's trust configuration, which
            holds one; None: the public instance's, as it was when the installed package `sigstore` was released.

    Raises:
        ValueError: the file cannot be read, or holds no trust root.
    """

    def __init__(self, identities: Sequence[Identity], trust_root: Path | None = None) -> None:
        self._identities = tuple(identities)
        self._trust = _trust_config(trust_root) if identities else ""
        for identity in self._identities:
            try:
                self._verifier(identity)
            except Exception as error:  # each part of the library has its own
                raise ValueError(f"{trust_root} holds no trust root of Sigstore: {error}") from error

    @property
    def trusted(self) -> frozenset[str]:
        """The trusted identities, as a version's `signed_by` names them."""
        return frozenset(map(str, self._identities))

    def signer(self, signature: bytes) -> tuple[str, Any]:
        """Return the trusted identity that the certificate of a bundle names, and what checks that it signed.

        Raises:
            NotTrusted: the certificate is for somebody else, or there is none.
        """
        if not self._identities:
            raise NotTrusted("the package is signed by an identity, and MODEL_STORAGE_IDENTITIES trusts none")
        from sigstore.errors import VerificationError
        from sigstore.models import Bundle
        from sigstore.verify.policy import Identity as Policy

        try:
            certificate = Bundle.from_json(signature).signing_certificate
        except Exception as error:  # whatever a bundle can lack
            raise NotTrusted(f"the signature's certificate cannot be read: {str(error)[:1000]}") from error
        said = []
        for identity in self._identities:
            try:
                Policy(identity=identity.identity, issuer=identity.identity_provider).verify(certificate)
            except VerificationError as error:
                said.append(f"it is not {identity}: {error}")
            except Exception as error:  # a certificate without a name
                raise NotTrusted(f"the signature's certificate names nobody: {error}") from error
            else:
                return str(identity), self._verifier(identity)
        raise NotTrusted(f"the package is signed by an identity that is not trusted: {'; '.join(said)[:1000]}")

    def _verifier(self, identity: Identity) -> Any:
        from model_signing import verifying

        with NamedTemporaryFile("w", prefix="nightshift-trust-", encoding="utf-8") as file:
            file.write(self._trust)
            file.flush()
            # Without a configuration of its own the library asks Sigstore's servers for the newest.
            return verifying.Config().use_sigstore_verifier(  # type: ignore[no-untyped-call]
                identity=identity.identity, oidc_issuer=identity.identity_provider, trust_config=Path(file.name)
            )


def _trust_config(file: Path | None) -> str:
    """Return the JSON of a client's trust configuration with the trusted root in `file`; the rest of it is not used."""
    packaged = importlib.resources.files("sigstore._store") / quote(PUBLIC_INSTANCE, safe="")
    try:
        found = json.loads((file or packaged / "trusted_root.json").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise ValueError(f"the trust root {file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise ValueError(f"the trust root {file} must be a JSON object, not {type(found).__name__}")  # noqa: TRY004
    if "trustedRoot" in found:
        return json.dumps(found)
    signing = json.loads((packaged / "signing_config.v0.2.json").read_text(encoding="utf-8"))
    return json.dumps({"mediaType": _TRUST_CONFIG, "trustedRoot": found, "signingConfig": signing})
