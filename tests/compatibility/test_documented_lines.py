"""The documented way of a group, line by line: loaded, trained, converted, sent to the storage."""

from __future__ import annotations

import json
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.compatibility.conftest import ROOT, shell
from tests.conftest import CollectServer
from tests.support.trtexec_double import install
from tests.training_jobs.pictures import items, publish

SMALL: dict[str, Any] = {
    "experiment_name": "season",
    "dataset": {"image_size": 32, "data_loaders": {"train_batch_size": 16, "val_batch_size": 16}},
    "model": {"backbone_name": "test_resnet", "pretrained": False},
    "training": {"epochs": 60},
}


@pytest.fixture(autouse=True)
def _nothing_around(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("NIGHTSHIFT_BOTTLE", "NIGHTSHIFT_DATABASE_URL", "MLFLOW_TRACKING_URI", "NIGHTSHIFT_TASK_INSTANCE"):
        monkeypatch.delenv(name, raising=False)


def python(project: Path, line: str, code: int = 0, **environment: str) -> str:
    """Type `python <line>` in the project's folder."""
    return shell(project, sys.executable, *line.split(), code=code, **environment)


@pytest.mark.slow
def test_a_group_is_loaded_trained_and_exported_by_the_documented_lines(project: Path, collect: CollectServer) -> None:
    (project / "configs" / "classifier").mkdir(parents=True)
    (project / "configs" / "classifier" / "season.yaml").write_text(yaml.safe_dump(SMALL))
    publish(collect, "season", items(24))
    python(project, "cls/classification/load_group.py --group season")
    bottle = project / "classification_data"
    assert {"pictures", "meta", "datasets"} <= {path.name for path in bottle.iterdir()}
    assert json.loads((bottle / "datasets" / "season.json").read_text())["num2label"] == {"0": "ant", "1": "bee"}
    publish(collect, "season", items(4, start=24))  # a second load makes a second snapshot: the last one is trained on
    python(project, "cls/classification/load_group.py --group season")

    python(project, "cls/classification/train.py --cat season --epochs 1 --batch 4")
    experiment = bottle / "models" / "season" / "v__0_train_test_resnet_4_0.01"
    assert {"checkpoints", "csv_logs", "torchscripts", "train_batches"} <= {path.name for path in experiment.iterdir()}
    trained_on = json.loads((experiment / "model.json").read_text())["snapshot_id"]
    assert trained_on == json.loads((bottle / "snapshots" / "season" / "last.json").read_text())["snapshot_id"]
    assert len((bottle / "snapshots" / "season" / trained_on / "manifest.jsonl").read_text().splitlines()) == 56

    install(project / "bin", 101300)
    programs = f"--trtexec {project}/bin/trtexec --nvidia_smi {project}/bin/nvidia-smi --serving_tensorrt 10.13.0.35"
    python(project, f"cls/classification/export.py --group season {programs}")
    folder = bottle / "inference_models" / "season" / "inference_model"
    made = {"meta.json", "model.onnx", "model_onnx.zip", "model.plan", "model_trt.zip"}
    assert {path.name for path in folder.iterdir()} == made
    assert (experiment / "onnx" / "model.onnx").read_bytes() == (folder / "model.onnx").read_bytes()
    with zipfile.ZipFile(folder / "model_trt.zip") as archive:
        assert json.loads(archive.read("meta.json"))["experiment"] == "models/season/v__0_train_test_resnet_4_0.01"


@pytest.mark.slow
def test_without_trtexec_the_last_model_is_exported_as_a_graph_and_a_line_says_so(
    project: Path, collect: CollectServer
) -> None:
    (project / "configs" / "classifier").mkdir(parents=True)
    (project / "configs" / "classifier" / "season.yaml").write_text(yaml.safe_dump(SMALL))
    publish(collect, "season", items(24))
    said = python(project, "cls/classification/export.py --group season", code=3)
    assert "group season has no finished training" in said
    python(project, "cls/classification/load_group.py --group season")
    for batch in (4, 8):
        python(project, f"cls/classification/train.py --cat season --epochs 1 --batch {batch}")
    said = python(project, "cls/classification/export.py --group season", PATH="/usr/bin:/bin")
    assert "v__1_train_test_resnet_8_0.01" in said
    assert "there is no trtexec on this machine: only the graph was packaged, no plan" in said
    folder = project / "classification_data" / "inference_models" / "season" / "inference_model"
    assert {path.name for path in folder.iterdir()} == {"meta.json", "model.onnx", "model_onnx.zip"}


def test_main_trains_from_a_configuration_file(project: Path, collect: CollectServer) -> None:
    publish(collect, "season", items(24))
    python(project, "cls/classification/load_group.py --group season")
    mine = SMALL | {"dataset": SMALL["dataset"] | {"label_source": "snapshot"}}
    (project / "mine.yaml").write_text(yaml.safe_dump(mine))
    bottle = project / "classification_data"
    python(project, "main.py --config_filename mine.yaml --epochs 1", NIGHTSHIFT_BOTTLE=str(bottle))
    assert (bottle / "models" / "season" / "v__0_train_test_resnet_16_0.01" / "metrics.json").is_file()


def test_git_ignores_what_the_documented_lines_write() -> None:
    written = (
        "classification_data/datasets/season.json", "model_repository_running/vit_onnx/1/model.onnx",
        "training/weights/CT-RATE/model_binary.pth",
    )  # fmt: skip
    assert shell(ROOT, "git", "check-ignore", *written).split() == list(written)
