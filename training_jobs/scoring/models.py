"""The two models that an evaluation compares: the candidate of an experiment, and the champion of the model storage."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from pydantic import ValidationError

from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.model_spec import SPEC_FILE, ModelSpec
from jobkit.model_storage import ARCHIVE, READ_TIMEOUT, ModelStorage
from jobkit.unpack import open_archive

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
        module = torch.jit.load(path, map_location=device).eval()
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
        ConfigurationError: the model storage refuses the token.
        TransientError: it does not answer.
        DataValidationError: what it answers with is no model that can be run.
    """
    with ModelStorage(READ_TIMEOUT) as storage:
        version = storage.champion(model_name)
        if version is None:
            logger.info("%s has no champion of %s yet", storage.url, model_name)
            return None
        archive = folder / "champion.zip"
        storage.download(model_name, version, archive)
    return _open_archive(archive, f"version {version} of {model_name} (the champion)", version)


def _open_archive(archive: Path, name: str, version: str) -> Model:
    folder = archive.parent
    with open_archive(archive, ARCHIVE, f"{name} cannot be evaluated, roll back: its archive") as files:
        members = files.namelist()
        if missing := {ONNX_FILE, SPEC_FILE} - set(members):
            raise DataValidationError(
                f"{name} cannot be evaluated: it lacks {', '.join(sorted(missing))},"
                f" it has {', '.join(members)}; promote a version that has them, or roll back"
            )
        spec = _spec(files.read(SPEC_FILE), f"{SPEC_FILE} of {name}")
        files.extractall(folder)  # the weights may lie beside the graph
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
