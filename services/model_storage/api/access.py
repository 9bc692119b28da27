"""Bearer tokens and what they may do."""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping
from functools import partial
from typing import Annotated

from fastapi import APIRouter, Depends, HTTPException, Request, Security
from fastapi.security import HTTPBearer
from fastapi.security.utils import get_authorization_scheme_param

from nightshift_common.storage_tokens import Scope
from services.guard import MAX_BODY, FailedLogins, guarded, unauthorized
from services.model_storage.settings import Settings, Token

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
        name = _name_of(self._settings.tokens, token)
        if name is None:
            raise self._failed.fail(request, HOW_TO_LOG_IN)
        request.state.token_name = name
        scopes = self._settings.tokens[name].scopes
        if scope not in scopes:
            raise HTTPException(403, f"the token {name!r} may {', '.join(scopes)}; this call needs {scope!r}")


def token_name(request: Request) -> str | None:
    """Return the name of the token that a request came with; None where there is no log-in."""
    name: str | None = getattr(request.state, "token_name", None)
    return name


Actor = Annotated[str | None, Depends(token_name)]
"""Who calls, by the name of the token."""


def _name_of(tokens: Mapping[str, Token], given: str) -> str | None:
    """Return the name of a token, None for an unknown one; takes as long for any that is wrong."""
    digest = hashlib.sha256(given.encode(errors="replace")).hexdigest()
    found = None
    for name, token in tokens.items():
        if hmac.compare_digest(token.sha256, digest):
            found = name
    return found
