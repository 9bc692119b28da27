"""Publishing, and the calls of the older model storage service, which its clients go on using."""

from __future__ import annotations

import shutil
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from fastapi import APIRouter, Query
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request

from nightshift_common.names import NAME_PATTERN
from services.model_storage.api.access import Access, Actor, token_name
from services.model_storage.api.uploads import Upload, received
from services.model_storage.errors import AlreadyThere, InOldWords, NotFound, NotNamed, NoZip, Refused, StorageError
from services.model_storage.production.history import Note
from services.model_storage.repository.catalog import EXISTS
from services.model_storage.repository.model_config import MODEL_FILES
from services.model_storage.repository.record import META_FILE, NEXT, Record, check_model_name
from services.model_storage.service import Service

NO_CONFIG = "Model config file not found"


def router(service: Service, access: Access) -> APIRouter:
    """Return the calls, each with the scope that it needs."""
    routes = APIRouter()
    for calls in (
        _uploads(service, access.router("publish", max_body=None)),  # a form is received by `uploads`, with its bounds
        _questions(service, access.router("read")),
        _serving(service, access.router("promote")),
    ):
        routes.include_router(calls)
    return routes


def _uploads(service: Service, routes: APIRouter) -> APIRouter:
    @routes.post("/upload_new_version/", tags=["publish"], openapi_extra=_form(
        "src_file",
        model_version={"type": "string", "description": "0.0.1, or 'next' (as if left out): the next patch version"},
        triton_version={"type": "integer", "minimum": 1, "description": "Triton's folder; left out: the next free"},
        sha256={"type": "string", "description": "checksum of the file, verified"},
    ))  # fmt: skip
    async def upload_new_version(request: Request) -> dict[str, Any]:
        """Publish a zip (model.onnx, model.plan or model.pt, meta.json, files beside them) as a version.

        Left out, or as "next", the version is the next patch version; the same content again answers the version that
        it has already, with `already_published`. `left_out` names the fields of config.pbtxt that will not be
        served, and files such as .DS_Store.
        """
        record, already = await _publish(service, request, "src_file", "triton_version")
        answer: dict[str, Any] = {"version": record.version} | _besides(record)
        return answer | {"already_published": True} if already else answer

    @routes.post("/upload_model", tags=["publish"], openapi_extra=_form(
        "file", version={"type": "integer", "minimum": 1, "description": "Triton's folder; left out: the next free"}
    ))  # fmt: skip
    async def upload_model(request: Request) -> dict[str, Any]:
        """Publish a zip, or a bare .onnx or .plan file, as the next version in a given folder of Triton's."""
        with in_old_words("Invalid Zip file", NoZip), in_old_words(EXISTS, AlreadyThere):
            record, _ = await _publish(service, request, "file", "version")
        message = f"Model '{record.model}' uploaded successfully with version {record.triton_version}"
        return {"message": message, "semantic_version": record.version} | _besides(record)

    return routes


def _questions(service: Service, routes: APIRouter) -> APIRouter:
    @routes.get("/get_version/{model}", tags=["models"])
    def get_version(model: str) -> str:
        """The Triton version in production, else the one that the model's config.pbtxt names."""
        with in_old_words(NO_CONFIG, NotFound), in_old_words("Version info not found in the config file", NotNamed):
            return str(_active(service, model).triton_version)

    @routes.get("/get_meta/{model}", tags=["models"])
    def get_meta(model: str) -> dict[str, Any]:
        """The meta.json of the version that get_version answers."""
        with in_old_words(NO_CONFIG, NotFound), in_old_words("Version info not found in config file", NotNamed):
            record = _active(service, model)
        if record.taken_over is not None and META_FILE not in record.files:
            raise NotFound("Meta file not found")
        return record.meta

    @routes.get("/latest_semantic_version/{model}", tags=["models"])
    def latest_semantic_version(model: str) -> dict[str, str]:
        """The latest version that was published."""
        if versions := service.catalog.versions(model):
            return {"latest_version": versions[-1].version}
        raise NotFound(f"there is no model {model!r}")

    @routes.get("/index/", tags=["production"])
    def index() -> list[dict[str, str]]:
        """Triton's repository index."""
        return service.fleet.index()

    return routes


def _serving(service: Service, routes: APIRouter) -> APIRouter:
    production, catalog = service.production, service.catalog

    @routes.post("/set_semantic_version/", tags=["production"])
    def set_semantic_version(model_name: str, semantic_version: str, actor: Actor) -> dict[str, str]:
        """Bring a version into production; answers its folder in Triton's repository."""
        with in_old_words("Semantic version not found.", NotFound):
            row = production.promote(model_name, semantic_version, Note(reason="set_semantic_version", actor=actor))
        return {"version": str(row.triton_version)}

    @routes.post("/set_version/{model}", tags=["production"])
    def set_version(model: str, actor: Actor, version: int = Query(ge=1)) -> dict[str, str]:
        """Bring the version in a given folder of Triton's into production."""
        with in_old_words(NO_CONFIG, NotFound):
            record = catalog.by_number(model, version)
            production.promote(model, record.version, Note(reason="set_version", actor=actor))
        return {"message": f"Version set to {version} for model '{model}'", "semantic_version": record.version}

    @routes.post("/load_model/{model}", tags=["production"])
    def load_model(model: str, actor: Actor) -> dict[str, str]:
        """Load what is in production, or was before it was unloaded; of a new model the latest version."""
        row = production.load(model, Note(reason="load_model", actor=actor))
        return {"message": f"Model '{model}' loaded successfully", "semantic_version": str(row.version)}

    @routes.post("/unload_model/{model}", tags=["production"])
    def unload_model(model: str, actor: Actor) -> dict[str, str]:
        """Take a model out of Triton: nothing is in production then."""
        production.unload(model, Note(reason="unload_model", actor=actor))
        return {"message": f"Model '{model}' unloaded successfully"}

    return routes


def _besides(record: Record) -> dict[str, Any]:
    """Return what a publisher should know of a version besides its name."""
    left_out: dict[str, Any] = {"left_out": record.left_out} if record.left_out else {}
    return left_out | ({"inherited": record.inherited.model_dump()} if record.inherited else {})


@contextmanager
def in_old_words(words: str, kind: type[StorageError]) -> Iterator[None]:
    """Tell an error of `kind`, and no more special one, in the words of the older service."""
    try:
        yield
    except StorageError as error:
        if type(error) is not kind:
            raise
        raise InOldWords(words, error) from error


async def _publish(service: Service, request: Request, file_field: str, number_field: str) -> tuple[Record, bool]:
    folder = await run_in_threadpool(service.store.workspace)
    try:
        async with received(request, folder, file_field, service.settings.max_upload_bytes) as upload:
            service.metrics.uploaded_bytes.inc(upload.size)
            model = upload.fields.get("model_name", "")
            wanted = upload.fields.get("model_version", "").strip() or NEXT
            number = _folder_number(upload.fields.get(number_field, ""))
            archive = upload.path
            if file_field == "file":
                archive = await run_in_threadpool(_zipped, upload)
            publish = partial(service.catalog.publish, published_by=token_name(request))
            found = await run_in_threadpool(publish, model, wanted, archive, upload.sha256, number, upload.diverted)
            service.published(model)
            return found
    finally:
        await run_in_threadpool(shutil.rmtree, folder, ignore_errors=True)


def _folder_number(text: str) -> int | None:
    if not text.strip():
        return None
    if not text.strip().isascii() or not text.strip().isdecimal() or not 0 < int(text) < 2**31:
        raise Refused(f"{text!r} is no folder of Triton's: a whole number from 1")
    return int(text)


def _zipped(upload: Upload) -> Path:
    """Return an archive around a bare model file; a zip is returned as it is."""
    names = [name for name in MODEL_FILES if Path(name).suffix == Path(upload.filename).suffix]
    if upload.diverted:  # only of a zip something is diverted
        return upload.path
    if not names:
        if not zipfile.is_zipfile(upload.path):
            raise NoZip(f"the file {upload.filename!r} is no zip file, nor one of: {', '.join(MODEL_FILES)}")
        return upload.path
    archive = upload.path.with_name("archive")
    with zipfile.ZipFile(archive, "w", zipfile.ZIP_STORED) as opened:
        opened.write(upload.path, names[0])
    return archive


def _active(service: Service, model: str) -> Record:
    """Return the version in production, or before there was one the version that `config.pbtxt` names."""
    check_model_name(model)
    champion = service.known.of(model).champion
    if champion is not None and champion.version is not None:
        return service.catalog.version(model, champion.version)
    if not service.catalog.has_versions(model):
        raise NotFound(f"there is no model {model!r}")
    if named := service.catalog.configured(model):
        return named
    raise NotNamed(f"no version of {model!r} is in production, and its configuration names none")


def _form(file_field: str, **optional: dict[str, Any]) -> dict[str, Any]:
    """Return the OpenAPI description of an upload form."""
    properties = {
        file_field: {"type": "string", "format": "binary"},
        "model_name": {"type": "string", "pattern": NAME_PATTERN},
        **optional,
    }
    schema = {"type": "object", "required": [file_field, "model_name"], "properties": properties}
    return {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": schema}}}}
