"""A trained experiment, made once and copied for each test."""

from __future__ import annotations

import json
import shutil
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest

from conversion_jobs import deploy_model, export_onnx, import_weights, package_model, publish_model, verify_onnx
from jobkit.bottle import FolderBottle
from jobkit.experiment import Experiment
from jobkit.job import Context
from tests.conversion_jobs.serving import TOKEN, Serving, serving
from tests.support.signing_keys import Key
from tests.support.sigstore_double import PROVIDER, SigstoreDouble, sigstore_double
from tests.support.trained import EXPERIMENT, make_bottle
from tests.support.warm_sandbox import sandbox_server, warm_sandbox

__all__ = ["sandbox_server", "warm_sandbox"]  # for every test of the folder


@dataclass
class Trained:
    """A bottle with a trained experiment, and the jobs run in this process."""

    bottle: FolderBottle
    snapshot_id: str
    experiment: str
    context: Context

    def export(self, **options: Any) -> export_onnx.Result:
        return export_onnx.run(export_onnx.Arguments(experiment=self.experiment, **options), self.context)

    def verify(self, **options: float) -> verify_onnx.Result:
        arguments = verify_onnx.Arguments(experiment=self.experiment, snapshot_id=self.snapshot_id, **options)
        return verify_onnx.run(arguments, self.context)

    def package(self, model_name: str = "digits", **options: object) -> package_model.Result:
        arguments = package_model.Arguments(experiment=self.experiment, model_name=model_name, **options)
        return package_model.run(arguments, self.context)

    def publish(self, model_name: str = "digits", **options: object) -> publish_model.Result:
        package = self.package(model_name)
        arguments = publish_model.Arguments(
            model_name=model_name, archive=package.archive, sha256=package.sha256, experiment=self.experiment,
            snapshot_id=self.snapshot_id, **options,
        )  # fmt: skip
        return publish_model.run(arguments, self.context)

    def deploy(self, version: str, model_name: str = "digits", **options: object) -> deploy_model.Result:
        arguments = deploy_model.Arguments(
            model_name=model_name, version=version, experiment=self.experiment, snapshot_id=self.snapshot_id,
            reference=Experiment(self.experiment).reference, **options,
        )  # fmt: skip
        return deploy_model.run(arguments, self.context)


class Place(Trained):
    """An empty bottle, and the jobs run in this process."""

    def bring(self, weights: Path, **options: Any) -> import_weights.Result:
        arguments = import_weights.Arguments(**{"weights": str(weights), "group": "ct", **options})
        found = import_weights.run(arguments, self.context)
        self.experiment, self.snapshot_id = found.experiment, found.snapshot_id
        return found

    @property
    def graph(self) -> Path:
        return self.bottle.local(Experiment(self.experiment).onnx)

    def verdicts(self) -> dict[str, bool]:
        self.export()
        return {verdict.name: verdict.passed for verdict in self.verify().verdicts}


@pytest.fixture(scope="session")
def template(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("trained") / "bottle"
    return root, make_bottle(root)[1]


@pytest.fixture(scope="session")
def exported_template(template: tuple[Path, str], tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    root = tmp_path_factory.mktemp("exported") / "bottle"
    shutil.copytree(template[0], root)
    trained = Trained(FolderBottle(root), template[1], EXPERIMENT, Context(root.parent, None))
    trained.context.bottle = trained.bottle
    trained.export()
    trained.verify()
    return root, template[1]


def _copy(source: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    root = tmp_path / "bottle"
    shutil.copytree(source[0], root)
    monkeypatch.setenv("NIGHTSHIFT_BOTTLE", str(root))
    return Trained(FolderBottle(root), source[1], EXPERIMENT, Context(tmp_path / "job", None))


@pytest.fixture
def trained(template: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """What training leaves."""
    return _copy(template, tmp_path, monkeypatch)


@pytest.fixture
def verified(exported_template: tuple[Path, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Trained:
    """What `export_onnx` and `verify_onnx` leave."""
    return _copy(exported_template, tmp_path, monkeypatch)


@pytest.fixture(scope="session")
def signing_key(tmp_path_factory: pytest.TempPathFactory) -> Key:
    """The key that publishing signs with, and the storage trusts."""
    return Key(tmp_path_factory.mktemp("keys") / "signing")


@pytest.fixture(scope="session")
def sigstore() -> Iterator[SigstoreDouble]:
    """What signs without a key."""
    with sigstore_double() as double:
        yield double


@pytest.fixture(scope="session")
def serving_process(
    postgres_url: str, signing_key: Key, sigstore: SigstoreDouble, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Serving]:
    trust_root = tmp_path_factory.mktemp("trust") / "trusted_root.json"
    trust_root.write_text(json.dumps(sigstore.trusted_root()))
    who = {"identity": "release@nightshift.example", "identity_provider": PROVIDER}
    signatures = {
        "MODEL_STORAGE_SIGNATURES": "require", "MODEL_STORAGE_PUBLIC_KEYS": signing_key.one_line,
        "MODEL_STORAGE_IDENTITIES": json.dumps([who]), "MODEL_STORAGE_TRUST_ROOT": str(trust_root),
    }  # fmt: skip
    with serving(tmp_path_factory.mktemp("serving"), postgres_url, **signatures) as running:
        yield running


@pytest.fixture
def served(serving_process: Serving, signing_key: Key, monkeypatch: pytest.MonkeyPatch) -> Serving:
    """Triton and the model storage, named by the environment; tests share them and use model names of their own."""
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_URL", serving_process.url)
    monkeypatch.setenv("NIGHTSHIFT_STORAGE_TOKEN", TOKEN)
    monkeypatch.setenv("NIGHTSHIFT_TRITON_URL", serving_process.triton.http)
    monkeypatch.setenv("NIGHTSHIFT_SIGNING_KEY", signing_key.private.read_text())
    return serving_process


@pytest.fixture
def model() -> str:
    """A model name that no other test uses."""
    return f"m{uuid.uuid4().hex[:8]}"


@pytest.fixture(scope="session")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of pictures."""
    folder = tmp_path_factory.mktemp("pictures")
    generator = np.random.default_rng(5)
    for number in range(5):
        picture = cv2.resize(generator.integers(0, 255, (6, 7, 3), np.uint8), (70, 50))
        cv2.imwrite(str(folder / f"{number}.png"), picture)
    return folder


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Place:
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    monkeypatch.setenv("NIGHTSHIFT_BOTTLE", str(tmp_path / "bottle"))
    return Place(FolderBottle(tmp_path / "bottle"), "", "", Context(tmp_path / "job", None))
