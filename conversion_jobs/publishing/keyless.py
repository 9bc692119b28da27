"""Signing without a key, by Sigstore: an identity provider's token stands for who signs.

With the token, Sigstore's authority gives a certificate for a key that lives for this signature alone, and its
transparency log notes the signature. All three are asked over the network.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests

from jobkit import settings
from jobkit.errors import ConfigurationError, JobError, TransientError

AMBIENT = "ambient"


@dataclass(frozen=True)
class KeylessSigner:
    """Whoever has a token of an identity provider; nobody is asked to log in.

    Args:
        token: the token, or `AMBIENT`; None: it is in `token_file`.
        token_file: read when something is signed, since tokens are good for minutes.
        trust_config: a client's trust configuration, which names an instance of Sigstore; None: the public one.
    """

    token: str | None = field(repr=False)
    token_file: Path | None
    trust_config: Path | None

    def sign(self, config: Any, folder: Path, signature: Path) -> None:
        """Sign the files of `folder` by a `model_signing.signing.Config`, and write the signature.

        Raises:
            ConfigurationError: there is no token, or it is not accepted.
            TransientError: the identity provider, the authority or the log does not answer.
        """
        token = self._token()
        try:
            config.use_sigstore_signer(identity_token=token, trust_config=self.trust_config)
            config.sign(folder, signature)
        except Exception as error:
            raise _failure(error, self) from error

    def _token(self) -> str:
        """Return the token.

        Raises:
            ConfigurationError: there is none, or it is no token that is good now.
        """
        from sigstore.oidc import IdentityError, IdentityToken, detect_credential  # takes a second to import

        try:
            token = self.token_file.read_text().strip() if self.token_file else self.token
            if token == AMBIENT:
                token = detect_credential()
        except (OSError, UnicodeDecodeError) as error:
            raise ConfigurationError(f"{self._variable}: {self.token_file} cannot be read: {error}") from error
        except IdentityError as error:
            raise ConfigurationError(f"{self._variable} is {AMBIENT!r}, and no token could be had: {error}") from error
        if not token:
            lacks = f"{self.token_file} is empty" if self.token_file else "nothing around the job gives a token"
            raise ConfigurationError(f"{self._variable}: {lacks}; it is for the {settings.PURPOSE[self._variable]}")
        try:
            IdentityToken(token)  # without what it says: a token is a secret
        except IdentityError as error:
            raise ConfigurationError(
                f"{self._variable} holds no token that is good now, for the audience sigstore: {error}"
            ) from None
        return token

    @property
    def _variable(self) -> str:
        return settings.SIGNING_TOKEN_FILE if self.token_file else settings.SIGNING_TOKEN


def _failure(error: Exception, signer: KeylessSigner) -> JobError:
    """Return what a failure of the library is to a job."""
    from sigstore.oidc import ExpiredIdentity, IdentityError

    what = f"signing without a key failed: {type(error).__name__}: {error}"
    if isinstance(error, ExpiredIdentity | IdentityError):
        return ConfigurationError(f"{what}; the token in {signer._variable} has expired or is not accepted")
    cause: BaseException | None = error
    while cause is not None:
        answer = getattr(cause, "response", None)
        if isinstance(answer, requests.Response) and 400 <= answer.status_code < 500:
            return ConfigurationError(f"{what}: {answer.status_code} from {answer.url}")
        cause = cause.__cause__ or cause.__context__
    if isinstance(error, ValueError | OSError) and not isinstance(error, requests.RequestException):
        return ConfigurationError(f"{what}; {settings.SIGNING_TRUST_CONFIG}={signer.trust_config}")
    return TransientError(what)
