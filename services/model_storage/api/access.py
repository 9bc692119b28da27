"""Bearer tokens and what they may do."""

from __future__ import annotations

import hmac
from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

from fastapi import HTTPException, Security
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer

from services.model_storage.settings import Scope, Settings

_bearer = HTTPBearer(auto_error=False, description="a token of MODEL_STORAGE_TOKENS")


def requires(settings: Settings, scope: Scope) -> Callable[..., None]:
    """Return a dependency that lets a request pass whose token has `scope`: 401 without a token, 403 without it."""

    def check(credentials: Annotated[HTTPAuthorizationCredentials | None, Security(_bearer)]) -> None:
        if settings.auth == "off":
            return
        scopes = _scopes(settings.tokens, credentials.credentials) if credentials else None
        if scopes is None:
            raise HTTPException(
                401,
                "send 'Authorization: Bearer <token>' with a token of this model storage",
                {"WWW-Authenticate": "Bearer"},
            )
        if scope not in scopes:
            raise HTTPException(403, f"this token may {', '.join(scopes) or 'do nothing'}; this call needs {scope!r}")

    return check


def _scopes(tokens: Mapping[str, Sequence[Scope]], given: str) -> Sequence[Scope] | None:
    """Return the scopes of a token, None for an unknown one; takes as long for any that is wrong."""
    found = None
    for token, scopes in tokens.items():
        if hmac.compare_digest(token.encode(), given.encode()):
            found = scopes
    return found
