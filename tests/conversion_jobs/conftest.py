"""A trained experiment, made once and copied for each test."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

import pytest

from conversion_jobs import export_onnx, package_model, verify_onnx
from jobkit.bottle import FolderBottle
from jobkit.job import Context
from tests.support.trained import EXPERIMENT, make_bottle


@dataclass
class Trained:
    """A bottle with a trained experiment, and the jobs run in this process."""

    bottle: FolderBottle
    snapshot_id: str
    experiment: str
    context: Context

    def export(self, **options: int) -> export_onnx.Result:
        return export_onnx.run(export_onnx.Arguments(experiment=self.experiment, **options), self.context)

    def verify(self, **options: float) -> verify_onnx.Result:
        arguments = verify_onnx.Arguments(experiment=self.experiment, snapshot_id=self.snapshot_id, **options)
        return verify_onnx.run(arguments, self.context)

    def package(self, model_name: str = "digits", **options: object) -> package_model.Result:
        arguments = package_model.Arguments(experiment=self.experiment, model_name=model_name, **options)
        return package_model.run(arguments, self.context)


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
