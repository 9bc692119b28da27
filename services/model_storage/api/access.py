"""Bearer tokens and what they may do."""

from __future__ import annotations

import hmac
from collections.abc import Mapping, Sequence
from functools import partial

from fastapi import APIRouter, HTTPException, Request, Security
from fastapi.security import HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param

from services.guard import MAX_BODY, FailedLogins, guarded, unauthorized
from services.model_storage.settings import Scope, Settings

_bearer = HTTPBearer(auto_error=False, description="a token of MODEL_STORAGE_TOKENS")
HOW_TO_LOG_IN = "send 'Authorization: Bearer <token>' with a token of this model storage"


class Access:
    """Who may call what. A request is judged before any of its body is read."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._failed = FailedLogins()

    def router(self, scope: Scope, max_body: int | None = MAX_BODY) -> APIRouter:
        """Return a router whose calls need a token with `scope` and take a body of at most `max_body` bytes.

        Without a token they answer 401; with a wrong one too, and 429 from the eleventh within a minute of one client;
        with one that lacks the scope 403.
        """
        route_class = guarded(partial(self._check, scope), max_body)
        return APIRouter(route_class=route_class, dependencies=[Security(_bearer)])  # describes it in /docs

    def _check(self, scope: Scope, request: Request) -> None:
        if self._settings.auth == "off":
            return
        scheme, token = get_authorization_scheme_param(request.headers.get("authorization"))
        if scheme.lower() != "bearer" or not token:
            raise unauthorized(HOW_TO_LOG_IN)
        scopes = _scopes(self._settings.tokens, token)
        if scopes is None:
            raise self._failed.fail(request, HOW_TO_LOG_IN)
        if scope not in scopes:
            raise HTTPException(403, f"this token may {', '.join(scopes) or 'do nothing'}; this call needs {scope!r}")


def _scopes(tokens: Mapping[str, Sequence[Scope]], given: str) -> Sequence[Scope] | None:
    """Return the scopes of a token, None for an unknown one; takes as long for any that is wrong."""
    found = None
    for token, scopes in tokens.items():
        if hmac.compare_digest(token.encode(), given.encode()):
            found = scopes
    return found
