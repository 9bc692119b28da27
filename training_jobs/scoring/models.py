"""The two models that an evaluation compares: the candidate of an experiment, and the champion of the model storage."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar
from urllib.parse import quote

from pydantic import ValidationError

from jobkit import settings
from jobkit.bottle import Bottle
from jobkit.errors import ConfigurationError, DataValidationError, TransientError
from jobkit.model_spec import SPEC_FILE, DetectorSpec, ModelSpec
from training_jobs.data import http_client

if TYPE_CHECKING:
    import numpy as np
    import torch
    from numpy.typing import NDArray

logger = logging.getLogger("training_jobs.models")

ONNX_FILE = "model.onnx"
S = TypeVar("S", ModelSpec, DetectorSpec)


@dataclass(frozen=True)
class Model(Generic[S]):
    """A model that is ready to run: `outputs` maps float32 [N, C, H, W] to its outputs, float32 [N, ...] each."""

    version: str
    spec: S
    outputs: Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]


def load_candidate(bottle: Bottle, experiment: str, kind: type[S]) -> Model[S]:
    """Return the model that an experiment made, run by PyTorch (on the GPU where there is one).

    Args:
        bottle: where the experiment is.
        experiment: its folder, `models/<group>/<name>`.
        kind: of its spec.

    Raises:
        DataValidationError: the experiment is not complete, is of another kind, or its model does not load.
    """
    import torch

    spec = _spec(bottle.read(f"{experiment}/{SPEC_FILE}"), f"{bottle}/{experiment}/{SPEC_FILE}", kind)
    key = f"{experiment}/torchscripts/model.pt"
    path = bottle.local(key)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        module = torch.jit.load(path, map_location=device).eval()  # type: ignore[no-untyped-call]
    except RuntimeError as error:
        raise DataValidationError(f"{bottle}/{key} does not load: {error}") from error

    return Model(experiment.rsplit("/", 1)[-1], spec, runner(module, device))


def runner(module: Any, device: torch.device) -> Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Return what runs a TorchScript module on a device: float32 [N, C, H, W] in, a list of float32 [N, ...] out."""
    import torch

    def outputs(inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        # The executor that optimizes TorchScript as it runs takes longer than it saves in few calls.
        with torch.inference_mode(), torch.jit.optimized_execution(False):  # type: ignore[attr-defined]
            found = module(torch.from_numpy(inputs).to(device))
        return [output.float().cpu().numpy() for output in (found if isinstance(found, tuple) else (found,))]

    return outputs


def load_champion(model_name: str, folder: Path, kind: type[S]) -> Model[S] | None:
    """Return the model that is in production, run by ONNX Runtime; None where none was promoted yet.

    Args:
        model_name: its name in the model storage.
        folder: where its archive is unpacked.
        kind: of its spec.

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
    return _open_archive(archive.content, f"version {version} of {model_name} (the champion)", version, folder, kind)


def _open_archive(content: bytes, name: str, version: str, folder: Path, kind: type[S]) -> Model[S]:
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
            spec = _spec(files.read(SPEC_FILE), f"{SPEC_FILE} of {name}", kind)
            for member in members:  # the weights may lie beside the graph
                if "/" not in member and "\\" not in member and not member.startswith("."):
                    (folder / member).write_bytes(files.read(member))
    except zipfile.BadZipFile as error:
        raise DataValidationError(f"{name} cannot be evaluated: its archive is damaged: {error}; {remedy}") from error
    return Model(version, spec, _onnx(folder / ONNX_FILE, f"{ONNX_FILE} of {name}"))


def _onnx(path: Path, name: str) -> Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no public base class
        raise DataValidationError(f"{name} does not load: {error}; roll back, or promote another version") from error
    entry = session.get_inputs()[0].name

    def outputs(inputs: NDArray[np.float32]) -> list[NDArray[np.float32]]:
        found: list[NDArray[np.float32]] = session.run(None, {entry: inputs})
        return found

    return outputs


def _spec(content: bytes, where: str, kind: type[S]) -> S:
    try:
        return kind.model_validate_json(content)
    except ValidationError as error:
        raise DataValidationError(f"{where} is not valid: {error}") from error


def _check(status: int, url: str, text: str) -> None:
    if status in (401, 403):
        raise ConfigurationError(f"{url} answered {status}: {settings.STORAGE_TOKEN} is not accepted")
    if status >= 400:
        raise DataValidationError(f"{url} answered {status}: {text}")
