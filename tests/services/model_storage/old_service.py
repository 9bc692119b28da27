"""A double of the older model storage service: it answers, and writes into the repository, as that one was seen to.

What it did, not how: one `config.pbtxt` a model that it never makes and in which it changes one line; versions told by
`model_version` in the `meta.json` of numbered folders; zips unpacked as they are; nothing loaded but by `load_model`.
"""

from __future__ import annotations

import io
import json
import re
import threading
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import httpx
import uvicorn
from fastapi import FastAPI, File, Form, HTTPException, UploadFile
from fastapi.responses import JSONResponse

from local.settings import HOST
from local.triton import TritonServer
from services.model_storage.errors import ServingFailed
from services.model_storage.triton import Triton
from tests.services.model_storage.support import wait_for

NO_CONFIG = "Model config file not found"
_LINE = "version_policy: { specific: { versions: ["


def old_config(text: str, number: int = 1) -> str:
    """Return a configuration as people placed it by hand for the older service: its line names a version."""
    return f"{text}{_LINE}{number}]}}}}\n"


def create_old_app(repository: Path, triton: Triton) -> FastAPI:
    """Return the double of the service on `repository`."""
    app = FastAPI()

    def set_number(model: str, number: str) -> bool:
        path = repository / model / "config.pbtxt"
        if not path.exists():
            return False
        lines = path.read_text().splitlines(keepends=True)
        path.write_text("".join(f"{_LINE}{number}]}}}}" if line.startswith(_LINE) else line for line in lines))
        return True

    def folder_of(model: str, version: str) -> str | None:
        for path in (repository / model).glob("*/meta.json"):
            if json.loads(path.read_text()).get("model_version") == version:
                return path.parent.name
        return None

    def number_of(model: str) -> tuple[str | None, bool]:
        path = repository / model / "config.pbtxt"
        if not path.exists():
            return None, False
        found = re.search(r"versions: \[(\d+)\]", path.read_text())
        return (found.group(1) if found else None), True

    @app.post("/upload_model")
    def upload_model(
        file: Annotated[UploadFile, File()], model_name: Annotated[str, Form()], version: Annotated[int, Form()] = 1
    ) -> Any:
        folder = repository / model_name / str(version)
        folder.mkdir(parents=True, exist_ok=True)
        if not zipfile.is_zipfile(file.file):
            return JSONResponse({"message": "Invalid Zip file"}, 400)
        zipfile.ZipFile(file.file).extractall(folder)
        return {"message": f"Model '{model_name}' uploaded successfully with version {version}"}

    @app.post("/upload_new_version/")
    def upload_new_version(
        src_file: Annotated[UploadFile, File()],
        model_name: Annotated[str, Form()],
        model_version: Annotated[str, Form()],
    ) -> dict[str, str]:
        if folder_of(model_name, model_version) is not None:
            raise HTTPException(400, "This model version already exists.")
        number = 1
        while (repository / model_name / str(number)).exists():
            number += 1
        folder = repository / model_name / str(number)
        folder.mkdir(parents=True)
        zipfile.ZipFile(io.BytesIO(src_file.file.read())).extractall(folder)
        meta = folder / "meta.json"
        values = json.loads(meta.read_text()) if meta.exists() else {}
        meta.write_text(json.dumps(values | {"model_version": model_version}))
        return {"version": model_version}

    @app.post("/set_semantic_version/")
    def set_semantic_version(model_name: str, semantic_version: str) -> dict[str, str]:
        number = folder_of(model_name, semantic_version)
        if number is None:
            raise HTTPException(404, "Semantic version not found.")
        if not set_number(model_name, number):
            raise HTTPException(404, "Config file not found.")
        return {"version": number}

    @app.post("/set_version/{model}")
    def set_version(model: str, version: int) -> Any:
        if not set_number(model, str(version)):
            return JSONResponse({"message": NO_CONFIG}, 404)
        return {"message": f"Version set to {version} for model '{model}'"}

    @app.get("/get_version/{model}")
    def get_version(model: str) -> Any:
        number, is_there = number_of(model)
        if number is None:
            why = "Version info not found in the config file" if is_there else NO_CONFIG
            return JSONResponse({"message": why}, 404)
        return number

    @app.get("/get_meta/{model}")
    def get_meta(model: str) -> Any:
        number, is_there = number_of(model)
        if number is None:
            raise HTTPException(404, "Version info not found in config file" if is_there else NO_CONFIG)
        path = repository / model / number / "meta.json"
        if not path.exists():
            raise HTTPException(404, "Meta file not found")
        return json.loads(path.read_text())

    @app.post("/load_model/{model}")
    def load_model(model: str) -> dict[str, str]:
        try:
            triton.load(model)
        except ServingFailed as error:
            raise HTTPException(400, {"error": str(error)}) from error
        return {"message": f"Model '{model}' loaded successfully"}

    @app.post("/unload_model/{model}")
    def unload_model(model: str) -> dict[str, str]:
        triton.unload(model)
        return {"message": f"Model '{model}' unloaded successfully"}

    return app


@contextmanager
def old_service(triton: TritonServer) -> Iterator[httpx.Client]:
    """Run the double on the repository of `triton`; yield a client of it."""
    app = create_old_app(triton.repository, Triton(triton.grpc, 60, triton.key_file))
    server = uvicorn.Server(uvicorn.Config(app, host=HOST, port=0, log_level="warning"))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        wait_for(lambda: server.started or not thread.is_alive())
        port = server.servers[0].sockets[0].getsockname()[1]
        with httpx.Client(base_url=f"http://{HOST}:{port}", timeout=60) as client:
            yield client
    finally:
        server.should_exit = True
        thread.join(20)
