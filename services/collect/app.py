"""The collection API over HTTP, and the picture files under `/files/`."""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, FastAPI, HTTPException, Request
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from services.collect.store import Mode, Picture, Store, UnknownPicset
from services.guard import FailedLogins, guarded, unauthorized

TOKEN_SECONDS = 12 * 3600
LOG_IN = "log in with POST /login and send 'Authorization: bearer <token>'"


@dataclass(frozen=True)
class Credentials:
    """Who may log in. Tokens are signed with the password: they survive a restart and end with a new password."""

    login: str
    password: str

    def token(self) -> str:
        """Return a token that is valid for `TOKEN_SECONDS`."""
        until = str(int(time.time()) + TOKEN_SECONDS)
        return f"{until}.{self._signature(until)}"

    def accepts(self, token: str) -> bool:
        """Whether `token` was made by this server and has not run out."""
        until = token.partition(".")[0]
        return self.made(token) and until.isdecimal() and int(until) > time.time()

    def made(self, token: str) -> bool:
        """Whether `token` was made by this server; it may have run out."""
        until, _, signature = token.partition(".")
        return hmac.compare_digest(signature.encode(), self._signature(until).encode())

    def _signature(self, text: str) -> str:
        return hmac.new(f"{self.login}\n{self.password}".encode(), text.encode(), hashlib.sha256).hexdigest()


class Login(BaseModel):
    """Body of `/login`."""

    login: str
    password: str


class PicturesQuery(BaseModel):
    """Body of `/meta/pictures`; an empty list means all."""

    listBy: Literal[0] = 0
    groups: list[str] = Field(min_length=1)
    categories: list[str] = []
    mode: list[Mode] = []


class Guids(BaseModel):
    """Body of `/meta/picsets` and of the calls that move picsets along."""

    guids: list[str] = Field(min_length=1)


def create_app(store: Store, credentials: Credentials) -> FastAPI:
    """Return the server for the pictures in `store`.

    A request is judged before its body is read. From the eleventh failed login within a minute on, a client's wrong
    tokens and all its calls of `/login` answer 429; a valid token goes on being good.
    """
    failed = FailedLogins()

    def authorized(request: Request) -> None:
        scheme, _, token = request.headers.get("authorization", "").partition(" ")
        if scheme.lower() not in ("bearer", "token") or not token.strip():
            raise unauthorized(LOG_IN)
        if not credentials.accepts(token.strip()):
            raise unauthorized(LOG_IN) if credentials.made(token.strip()) else failed.fail(request, LOG_IN)

    app = FastAPI(title="collect", description=__doc__)
    logins = APIRouter(route_class=guarded(failed.check))
    calls = APIRouter(route_class=guarded(authorized))

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @logins.post("/login")
    def login(request: Request, body: Login) -> dict[str, str]:
        given, wanted = (f"{c.login}\n{c.password}".encode() for c in (body, credentials))
        if not hmac.compare_digest(given, wanted):
            raise failed.fail(request, "login or password is wrong")
        return {"token": credentials.token()}

    @calls.post("/meta/pictures")
    def pictures(query: PicturesQuery) -> dict[str, Any]:
        known = store.groups()
        if missing := sorted(set(query.groups) - set(known)):
            raise HTTPException(404, f"there is no group {', '.join(missing)}; there is: {', '.join(known) or 'none'}")
        found = store.by_category(query.groups, query.categories, query.mode)
        return {
            "data": {
                category: {"pictures": [{"filepath": p.filepath, "picsetGuid": p.guid} for p in pictures]}
                for category, pictures in found.items()
            }
        }

    @calls.post("/meta/picsets")
    def picsets(query: Guids) -> dict[str, Any]:
        try:
            found = store.picsets(query.guids)
        except UnknownPicset as error:
            raise HTTPException(404, f"there is no picset {error.args[0]}") from error
        return {
            "data": [
                {
                    "picset": {
                        "guid": picset.guid,
                        "group": picset.group,
                        "category": picset.category,
                        "mode": picset.mode,
                    },
                    "items": [{"origin": _origin(picture)} for picture in pictures],
                }
                for picset, pictures in found
            ]
        }

    def move(guids: list[str], mode: Mode) -> dict[str, str]:
        try:
            store.move(guids, mode)
        except UnknownPicset as error:
            raise HTTPException(404, f"there is no picset {error.args[0]}; none was moved") from error
        return {"mode": mode}

    @calls.post("/picset/preparing")
    def preparing(query: Guids) -> dict[str, str]:
        return move(query.guids, "PREPARING")

    @calls.post("/picset/checking")
    def checking(query: Guids) -> dict[str, str]:
        return move(query.guids, "CHECKING")

    @calls.post("/picset/trained")
    def trained(query: Guids) -> dict[str, str]:
        return move(query.guids, "TRAINED")

    app.include_router(logins)
    app.include_router(calls)
    app.mount("/files", StaticFiles(directory=store.pictures), name="files")
    return app


def _origin(picture: Picture) -> dict[str, Any]:
    return {"filepath": picture.filepath, "width": picture.width, "height": picture.height}
