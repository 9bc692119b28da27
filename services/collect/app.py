"""The collection API over HTTP, and the picture files under `/files/`."""

from __future__ import annotations

import hashlib
import hmac
import time
from dataclasses import dataclass
from typing import Annotated, Any, Literal

from fastapi import Depends, FastAPI, Header, HTTPException
from fastapi.staticfiles import StaticFiles
from pydantic import BaseModel, Field

from services.collect.store import Mode, Picture, Store, UnknownPicset

TOKEN_SECONDS = 12 * 3600


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
        until, _, signature = token.partition(".")
        genuine = hmac.compare_digest(signature.encode(), self._signature(until).encode())
        return genuine and until.isdecimal() and int(until) > time.time()

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
    """Return the server for the pictures in `store`."""

    def authorized(authorization: Annotated[str, Header()] = "") -> None:
        scheme, _, token = authorization.partition(" ")
        if scheme.lower() not in ("bearer", "token") or not credentials.accepts(token.strip()):
            raise HTTPException(401, "log in with POST /login and send 'Authorization: bearer <token>'")

    app = FastAPI(title="collect", description=__doc__)
    guarded = [Depends(authorized)]

    @app.get("/health")
    def health() -> dict[str, str]:
        return {"status": "ok"}

    @app.post("/login")
    def login(body: Login) -> dict[str, str]:
        given, wanted = (f"{c.login}\n{c.password}".encode() for c in (body, credentials))
        if not hmac.compare_digest(given, wanted):
            raise HTTPException(401, "login or password is wrong")
        return {"token": credentials.token()}

    @app.post("/meta/pictures", dependencies=guarded)
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

    @app.post("/meta/picsets", dependencies=guarded)
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

    @app.post("/picset/preparing", dependencies=guarded)
    def preparing(query: Guids) -> dict[str, str]:
        return move(query.guids, "PREPARING")

    @app.post("/picset/checking", dependencies=guarded)
    def checking(query: Guids) -> dict[str, str]:
        return move(query.guids, "CHECKING")

    @app.post("/picset/trained", dependencies=guarded)
    def trained(query: Guids) -> dict[str, str]:
        return move(query.guids, "TRAINED")

    app.mount("/files", StaticFiles(directory=store.pictures), name="files")
    return app


def _origin(picture: Picture) -> dict[str, Any]:
    return {"filepath": picture.filepath, "width": picture.width, "height": picture.height}
