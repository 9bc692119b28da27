"""The HTTP API. The calls of the older model storage are in `legacy_calls`."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from typing import Annotated, Any

from fastapi import APIRouter, FastAPI, Query
from fastapi.responses import JSONResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from services.model_storage.api import canaries, legacy_calls
from services.model_storage.api.access import Access, Actor
from services.model_storage.api.changes import Change, Staged
from services.model_storage.api.download import stream_zip
from services.model_storage.errors import NotFound, Refused, StorageError
from services.model_storage.metrics import Measured
from services.model_storage.production.history import PRODUCTION, Note, Promotion, Text
from services.model_storage.production.promotions import Tried
from services.model_storage.production.proof import Proof
from services.model_storage.production.retention import Cleaned
from services.model_storage.production.stages import Stage, stages
from services.model_storage.repository.record import CANDIDATE, Record, check_model_name
from services.model_storage.service import Service

ERRORS: dict[int | str, dict[str, Any]] = {
    status: {"description": text, "content": {"application/json": {"schema": {"$ref": "#/components/schemas/Problem"}}}}
    for status, text in {
        400: "The request or the archive is not acceptable",
        401: "No valid token",
        403: "The token lacks the scope",
        404: "No such model or version",
        409: "The state of the model does not allow this now",
        413: "The body is too long",
        429: "Too many wrong tokens from this address; Retry-After says how long to wait",
        502: "Triton refused; the version before serves on",
        503: "PostgreSQL, Triton or the store does not answer; nothing was changed",
        507: "The disk is full; nothing was published",
    }.items()
}


class Problem(BaseModel):
    """What every error answers."""

    detail: str


class Champion(BaseModel):
    """The version in production."""

    version: str
    triton_version: int
    target: str
    run_id: str | None
    snapshot_id: str | None
    promoted_at: datetime
    stale_seconds: float | None = Field(
        None, description="how long ago this was known, where PostgreSQL does not answer; null: it is so now"
    )


class Switched(BaseModel):
    """What serves after a rollback, and what served before."""

    model: str
    version: str
    triton_version: int
    previous_version: str | None


class Promoted(Switched):
    """What a promotion came to; `proof` is null where the version was in production already."""

    proof: Proof | None


class Stages(BaseModel):
    """The versions in a stage, by target; under `all` whatever their target. And the version that is pinned."""

    stages: dict[str, dict[Stage, str]]
    pinned: str | None


class PromotionChange(Change):
    """Why a version is promoted, and what it need not show."""

    force: bool = Field(False, description="promote it although it has another interface or is not proved")
    max_latency_ms: float | None = Field(
        None, gt=0, description="milliseconds that one verified input may take; left out: MODEL_STORAGE_MAX_LATENCY_MS"
    )


class PinChange(Change):
    """Why a version is pinned, and what it need not show."""

    force: bool = Field(False, description="promote it although it has another interface or is not proved")


class RollbackChange(Change):
    """Why to go back, and from which version: another one in production is left alone."""

    from_version: Text | None = None


KeepDays = Annotated[
    float | None,
    Query(ge=0, le=36500, description="days since it was published; left out: MODEL_STORAGE_KEEP_DAYS"),
]
MAX_PICTURE = 32 << 20
PICTURE_BODY = {"required": True, "content": {"application/octet-stream": {"schema": {"format": "binary"}}}}


def create_app(service: Service) -> FastAPI:
    """Return the application; `service` starts and stops with it."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.start()
        yield
        service.stop()

    app = FastAPI(title="Model storage", description=__doc__, lifespan=lifespan, responses=ERRORS)
    app.add_middleware(Measured, metrics=service.metrics)
    app.add_exception_handler(StorageError, _answer)
    access = Access(service.settings)
    app.include_router(_health(service))
    reading, promoting = access.router("read"), access.router("promote")
    canaries.include(service, {"read": reading, "promote": promoting})
    app.include_router(_reading(service, reading), tags=["models"])
    app.include_router(_promoting(service, promoting), tags=["production"])
    app.include_router(canaries.reporting(service, access.router("report")), tags=["production"])
    app.include_router(_retaining(service, access.router("delete")), tags=["production"])
    app.include_router(_trying(service, access.router("promote", max_body=MAX_PICTURE)), tags=["production"])
    app.include_router(legacy_calls.router(service, access))
    return app


async def _answer(_: Request, error: Exception) -> Response:
    known = error if isinstance(error, StorageError) else StorageError(str(error))
    return JSONResponse(known.body(), known.status, {"Retry-After": "5"} if known.status == 503 else None)


def _health(service: Service) -> APIRouter:
    router = APIRouter(tags=["health"])

    @router.get("/health/live")
    def live() -> dict[str, str]:
        """Whether the process answers."""
        return {"status": "ok"}

    @router.get("/health/ready")
    def ready() -> JSONResponse:
        """Whether the repository, PostgreSQL and Triton answer; 503 names those that do not."""
        troubles = service.troubles()
        return JSONResponse(
            {"status": "ok"} if not troubles else {"status": "not ready", **troubles}, 503 if troubles else 200
        )

    @router.get("/metrics", response_class=Response)
    def metrics() -> Response:
        """Prometheus metrics."""
        return Response(generate_latest(service.metrics.registry), media_type=CONTENT_TYPE_LATEST)

    return router


def _reading(service: Service, router: APIRouter) -> APIRouter:
    catalog, history = service.catalog, service.history

    @router.get("/models")
    def models() -> list[str]:
        """The names of all models."""
        return catalog.models()

    @router.get("/models/{model}/versions")
    def versions(model: str) -> list[Record]:
        """All versions of a model, the oldest first."""
        if found := catalog.versions(model):
            return found
        raise NotFound(f"there is no model {model!r}")

    @router.get("/models/{model}/versions/{version}")
    def version(model: str, version: str) -> Record:
        """One version: its Triton version, checksums, target, files and meta.json."""
        return catalog.version(model, version)

    @router.get("/models/{model}/versions/{version}/archive", response_class=StreamingResponse)
    def archive(
        model: str,
        version: str,
        as_signed: Annotated[
            bool, Query(description="the files as they were signed and uploaded: what the signature is of")
        ] = False,
    ) -> StreamingResponse:
        """The version as a flat zip."""
        record = catalog.version(model, version)
        if as_signed and record.signed_by is None:
            raise NotFound(f"version {version} of {model!r} is not signed")
        name = f"{model}-{version}.zip"
        return StreamingResponse(
            stream_zip(service.store, record, as_signed),
            media_type="application/zip",
            headers={"Content-Disposition": f'attachment; filename="{name}"'},
        )

    @router.get("/models/{model}/champion")
    def champion(model: str) -> Champion:
        """The version in production; 404 where nothing is. As last known where PostgreSQL does not answer."""
        check_model_name(model)
        found = service.known.of(model)
        if row := found.champion:
            return Champion.model_validate({**row.model_dump(), "stale_seconds": found.stale_seconds})
        raise NotFound(f"no version of {model!r} is in production")

    @router.get("/models/{model}/stages")
    def stages_of(model: str) -> Stages:
        """Which version is champion, previous, canary, candidate: by target, and of all."""
        records = versions(model)
        pin = history.pin(model)
        return Stages(stages=stages(records, history.rows(model)[::-1]), pinned=pin.version if pin else None)

    @router.get("/history/{model}")
    def changes(
        model: str,
        at: Annotated[datetime | None, Query(description="only what was in production at this time")] = None,
    ) -> list[Promotion]:
        """All changes of what is in production, the latest first; with `at` the one that was in force then."""
        check_model_name(model)
        if at is None:
            return history.rows(model)
        return history.rows(model, _in_utc(at), limit=1, actions=PRODUCTION)

    return router


def _retaining(service: Service, router: APIRouter) -> APIRouter:
    production, days = service.production, service.settings.keep_days

    @router.delete("/models/{model}/versions/{version}")
    def delete(model: str, version: str, older_than_days: KeepDays = None) -> Cleaned:
        """Delete a version for good: 409 where it is served, pinned, what a rollback goes to, or too young.

        Its name and its number are not used again.
        """
        return production.delete(model, version, days if older_than_days is None else older_than_days)

    @router.delete("/models/{model}/versions")
    def clean(model: str, older_than_days: KeepDays = None, dry_run: bool = False) -> Cleaned:
        """Delete all versions of a model that may be deleted, and tell why each other one is kept."""
        return production.clean(model, days if older_than_days is None else older_than_days, dry_run)

    return router


def _in_utc(moment: datetime) -> datetime:
    """Return a time in UTC; one without a zone is in the service's."""
    try:
        return moment.astimezone(UTC)
    except (OverflowError, ValueError) as error:
        raise Refused(f"{moment} is no time that a calendar has") from error


def _trying(service: Service, router: APIRouter) -> APIRouter:
    @router.post("/models/{model}/try", openapi_extra={"requestBody": PICTURE_BODY})
    async def try_picture(model: str, request: Request) -> list[Tried]:
        """What the version in production and the one before it say of a picture: the body is the file as it is."""
        return await run_in_threadpool(service.production.try_picture, model, await request.body())

    return router


def _promoting(service: Service, router: APIRouter) -> APIRouter:
    production, changes = service.production, service.metrics.changes

    @router.post("/models/{model}/versions/{version}/stage")
    def stage(model: str, version: str) -> Staged:
        """Serve a version as `<model>__candidate`, beside the one in production."""
        record = production.stage(model, version)
        return Staged(model=model + CANDIDATE, triton_version=str(record.triton_version))

    @router.delete("/models/{model}/stage")
    def unstage(model: str) -> dict[str, bool]:
        """Take the candidate out of Triton and remove it."""
        return {"removed": production.unstage(model)}

    @router.post("/models/{model}/versions/{version}/promote")
    def promote(model: str, version: str, actor: Actor, change: PromotionChange | None = None) -> Promoted:
        """Bring a version into production; on any failure the one before serves on.

        Before that it has to show that it has the interface of the one in production and answers its verified inputs,
        else the answer is 409.
        """
        with changes.labels("promote", "failed").count_exceptions():
            wanted = change or PromotionChange()
            row, proof = production.promote_with_proof(
                model, version, wanted.note(actor), wanted.force, wanted.max_latency_ms
            )
        changes.labels("promote", "done").inc()
        return Promoted.model_validate({**row.model_dump(), "proof": proof})

    @router.post("/models/{model}/versions/{version}/pin")
    def pin(model: str, version: str, actor: Actor, change: PinChange | None = None) -> Champion:
        """Bring a version into production and keep it: until it is unpinned, promotions and rollbacks answer 409."""
        wanted = change or PinChange()
        row = production.pin(model, version, wanted.note(actor), wanted.force)
        return Champion.model_validate(row.model_dump())

    @router.delete("/models/{model}/pin")
    def unpin(
        model: str,
        actor: Actor,
        on_behalf_of: Annotated[Text | None, Query(description="whom the caller acts for")] = None,
        said: Annotated[
            Text | None, Query(alias="actor", deprecated=True, description="what earlier clients send for on_behalf_of")
        ] = None,
    ) -> dict[str, bool]:
        """Let other versions come into production again."""
        note = Note(reason="unpinned", actor=actor, on_behalf_of=on_behalf_of or said)
        return {"removed": production.unpin(model, note)}

    @router.post("/models/{model}/rollback")
    def rollback(model: str, actor: Actor, change: RollbackChange | None = None) -> Switched:
        """Go back to the version that was in production before."""
        with changes.labels("rollback", "failed").count_exceptions():
            change = change or RollbackChange()
            row = production.rollback(model, change.note(actor), change.from_version)
        changes.labels("rollback", "done").inc()
        return Switched.model_validate(row.model_dump())

    return router
