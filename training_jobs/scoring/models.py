"""The two models that an evaluation compares: the candidate of an experiment, and the champion of the model storage."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from pydantic import ValidationError

from jobkit.bottle import Bottle
from jobkit.errors import DataValidationError
from jobkit.experiment import Experiment
from jobkit.model_spec import SPEC_FILE, DetectorSpec, ModelSpec
from jobkit.model_storage import ARCHIVE, READ_TIMEOUT, ModelStorage
from jobkit.unpack import open_archive

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

    One that was imported is run by ONNX Runtime, as it was exported: its TorchScript is a program of a stranger.

    Args:
        bottle: where the experiment is.
        experiment: its folder, `models/<group>/<name>`.
        kind: of its spec.

    Raises:
        DataValidationError: the experiment is not complete, is of another kind, or its model does not load.
    """
    import torch

    spec = _spec(bottle.read(f"{experiment}/{SPEC_FILE}"), f"{bottle}/{experiment}/{SPEC_FILE}", kind)
    name, found = experiment.rsplit("/", 1)[-1], Experiment(experiment)
    if found.is_imported:
        if not bottle.exists(found.onnx):
            raise DataValidationError(f"{bottle}/{experiment} was imported: it is evaluated once it is exported")
        return Model(name, spec, _onnx(bottle.local(found.onnx), f"{bottle}/{found.onnx}"))
    key = found.torchscript
    path = bottle.local(key)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        module = torch.jit.load(path, map_location=device).eval()
    except RuntimeError as error:
        raise DataValidationError(f"{bottle}/{key} does not load: {error}") from error

    return Model(name, spec, runner(module, device))


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
        ConfigurationError: the model storage refuses the token.
        TransientError: it does not answer.
        DataValidationError: what it answers with is no model that can be run.
    """
    with ModelStorage(READ_TIMEOUT) as storage:
        version = storage.champion(model_name)
        if version is None:
            logger.info("%s has no champion of %s yet", storage.url, model_name)
            return None
        return _download(storage, model_name, version, "the champion", folder, kind)


def load_references(
    model_name: str, champion: str, best: str | None, folder: Path, kind: type[S]
) -> dict[str, Model[S]]:
    """Return, by role, the founding champion and the best version so far, but for the one in production.

    One that cannot be run any more is left out with a warning: it must not keep a better model out of production.

    Args:
        model_name: its name in the model storage.
        champion: the version in production.
        best: the best version so far, where one is known.
        folder: where their archives are unpacked.
        kind: of their specs.
    """
    found: dict[str, Model[S]] = {}
    with ModelStorage(READ_TIMEOUT) as storage:
        versions = {"best so far": best, "founding champion": storage.founding_champion(model_name)}
        for version, role in {v: role for role, v in versions.items() if v and v != champion}.items():
            place = folder / role.replace(" ", "_")
            place.mkdir()
            try:
                found[role] = _download(storage, model_name, version, f"the {role}", place, kind)
            except DataValidationError as error:
                logger.warning("the candidate is not compared with the %s %s: %s", role, version, error)
    return found


def _download(storage: ModelStorage, model_name: str, version: str, role: str, folder: Path, kind: type[S]) -> Model[S]:
    archive = folder / "archive.zip"
    storage.download(model_name, version, archive)
    return _open_archive(archive, f"version {version} of {model_name} ({role})", version, kind)


def _open_archive(archive: Path, name: str, version: str, kind: type[S]) -> Model[S]:
    folder = archive.parent
    with open_archive(archive, ARCHIVE, f"{name} cannot be evaluated, roll back: its archive") as files:
        members = files.namelist()
        if missing := {ONNX_FILE, SPEC_FILE} - set(members):
            raise DataValidationError(
                f"{name} cannot be evaluated: it lacks {', '.join(sorted(missing))},"
                f" it has {', '.join(members)}; promote a version that has them, or roll back"
            )
        spec = _spec(files.read(SPEC_FILE), f"{SPEC_FILE} of {name}", kind)
        files.extractall(folder)  # the weights may lie beside the graph
    return Model(
        version, spec, _onnx(folder / ONNX_FILE, f"{ONNX_FILE} of {name}", "; roll back, or promote another version")
    )


def _onnx(path: Path, name: str, remedy: str = "") -> Callable[[NDArray[np.float32]], list[NDArray[np.float32]]]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    except Exception as error:  # its errors share no public base class
        raise DataValidationError(f"{name} does not load: {error}{remedy}") from error
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
