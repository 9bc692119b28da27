"""The two models that an evaluation compares: the candidate of an experiment, and the champion of the model storage."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING
from urllib.parse import quote

from pydantic import ValidationError

from jobkit import settings
from jobkit.bottle import Bottle
from jobkit.errors import ConfigurationError, DataValidationError, TransientError
from jobkit.model_spec import SPEC_FILE, ModelSpec
from training_jobs.data import http_client

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

logger = logging.getLogger("training_jobs.models")

ONNX_FILE = "model.onnx"


@dataclass(frozen=True)
class Model:
    """A classifier that is ready to run: `logits` maps float32 [N, C, H, W] to float32 [N, classes]."""

    version: str
    spec: ModelSpec
    logits: Callable[[NDArray[np.float32]], NDArray[np.float32]]


def load_candidate(bottle: Bottle, experiment: str) -> Model:
    """Return the model that an experiment made, run by PyTorch (on the GPU where there is one).

    Args:
        bottle: where the experiment is.
        experiment: its folder, `models/<group>/<name>`.

    Raises:
        DataValidationError: the experiment is not complete, or its model does not load.
    """
    import torch

    spec = _spec(bottle.read(f"{experiment}/{SPEC_FILE}"), f"{bottle}/{experiment}/{SPEC_FILE}")
    key = f"{experiment}/torchscripts/model.pt"
    path = bottle.local(key)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        module = torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise DataValidationError(f"{bottle}/{key} does not load: {error}") from error

    def logits(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        with torch.inference_mode():
            outputs: NDArray[np.float32] = module(torch.from_numpy(inputs).to(device)).float().cpu().numpy()
        return outputs

    return Model(experiment.rsplit("/", 1)[-1], spec, logits)


def load_champion(model_name: str, folder: Path) -> Model | None:
    """Return the model that is in production, run by ONNX Runtime; None where none was promoted yet.

    Args:
        model_name: its name in the model storage.
        folder: where its archive is unpacked.

    Raises:
        TransientError: the model storage does not answer.
        DataValidationError: what it answers with is no model that can be run.
    """
    base = settings.require(settings.STORAGE_URL).rstrip("/")
    token = settings.optional(settings.STORAGE_TOKEN)
    with http_client.client(1) as client:
        if token:
            client.headers["Authorization"] = f"Bearer {token}"
        address = f"{base}/models/{quote(model_name, safe='')}"
        found = http_client.request(client, "GET", f"{address}/champion")
        if found.status_code == 404:
            logger.info("%s has no champion of %s yet", base, model_name)
            return None
        _check(found.status_code, f"{address}/champion", found.text)
        try:
            version = str(found.json()["version"])
        except (ValueError, KeyError, TypeError) as error:
            raise TransientError(f"{address}/champion answered in an unknown form: {found.text[:200]!r}") from error
        archive = http_client.request(client, "GET", f"{address}/versions/{quote(version, safe='')}/archive")
        _check(archive.status_code, str(archive.url), archive.text[:200] if archive.is_error else "")
    return _open_archive(archive.content, f"version {version} of {model_name} (the champion)", version, folder)


def _open_archive(content: bytes, name: str, version: str, folder: Path) -> Model:
    remedy = "promote a version that has them, or roll back"
    path = folder / "champion.zip"
    path.write_bytes(content)
    try:
        with zipfile.ZipFile(path) as files:
            members = files.namelist()
            if missing := {ONNX_FILE, SPEC_FILE} - set(members):
                raise DataValidationError(
                    f"{name} cannot be evaluated: it lacks {', '.join(sorted(missing))},"
                    f" it has {', '.join(members)}; {remedy}"
                )
            spec = _spec(files.read(SPEC_FILE), f"{SPEC_FILE} of {name}")
            for member in members:  # the weights may lie beside the graph
                if "/" not in member and "\\" not in member and not member.startswith("."):
                    (folder / member).write_bytes(files.read(member))
    except zipfile.BadZipFile as error:
        raise DataValidationError(f"{name} cannot be evaluated: its archive is damaged: {error}; {remedy}") from error
    return Model(version, spec, _onnx(folder / ONNX_FILE, f"{ONNX_FILE} of {name}"))


def _onnx(path: Path, name: str) -> Callable[[NDArray[np.float32]], NDArray[np.float32]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no public base class
        raise DataValidationError(f"{name} does not load: {error}; roll back, or promote another version") from error
    entry = session.get_inputs()[0].name

    def logits(inputs: NDArray[np.float32]) -> NDArray[np.float32]:
        outputs: NDArray[np.float32] = session.run(None, {entry: inputs})[0]
        return outputs

    return logits


def _spec(content: bytes, where: str) -> ModelSpec:
    try:
        return ModelSpec.model_validate_json(content)
    except ValidationError as error:
        raise DataValidationError(f"{where} is not valid: {error}") from error


def _check(status: int, url: str, text: str) -> None:
    if status in (401, 403):
        raise ConfigurationError(f"{url} answered {status}: {settings.STORAGE_TOKEN} is not accepted")
    if status >= 400:
        raise DataValidationError(f"{url} answered {status}: {text}")
