"""Conversions on the real stack: from weights at hand to a served model, and a night that builds a TensorRT plan.

No TensorRT can be had here: the worker's trtexec is a double (tests/support/trtexec_double.py). No plan below ever ran.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import zipfile
from pathlib import Path
from typing import Any

import httpx
import pytest
from rich.console import Console

from local.airflow import ADMIN, AirflowApi
from local.components import python, triton_server
from local.run import Retraining, retrain
from local.settings import ROOT, LocalStackError, Settings
from tests.e2e.support import job_logs, versions
from tests.support.trtexec_double import FIRST_LINE

CONVERT = "convert_model"
SIZE = {"height": 64, "width": 64}
CLASSES = {"labels": "circle, cross, square"}


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder of weights, pictures and embeddings."""
    folder = tmp_path_factory.mktemp("weights") / "at_hand"
    subprocess.run([python("jobs"), "-m", "tests.support.weights_at_hand", str(folder)], cwd=ROOT, check=True)
    return folder


def convert(settings: Settings, console: Console, **form: Any) -> Retraining:
    return retrain(settings, CONVERT, {**SIZE, **form}, console)


def states(settings: Settings, run: Retraining) -> dict[str, str]:
    return {task["task_id"]: task["state"] for task in AirflowApi(settings).tasks(run.dag_id, run.run_id)}


def ready_in_triton(settings: Settings) -> set[str]:
    server = triton_server(settings)
    answer = httpx.post(f"http://{server.http}/v2/repository/index", json={}, headers=server.http_headers, timeout=30)
    return {entry["name"] for entry in answer.json() if entry.get("state") == "READY"}


def test_an_encoder_in_the_bottle_is_exported_verified_packaged_published_and_served(
    settings: Settings, console: Console, weights: Path
) -> None:
    incoming = settings.folder("bottle") / "incoming"
    incoming.mkdir()
    shutil.copy(weights / "vit.pth", incoming)
    run = convert(
        settings, console, family="vit", architecture="test_vit", weights="incoming/vit.pth", model_name="vit_onnx",
        pictures=str(weights / "pictures"), publish=True,
    )  # fmt: skip
    assert run.state == "success", run.failed
    found = states(settings, run)
    assert {task for task, state in found.items() if state == "skipped"} == {"build_plan", "verify_plan"}
    assert all(verdict["passed"] for verdict in run.results["verify_onnx"]["verdicts"])
    assert run.results["deploy_model"]["version"] == "0.0.1"
    assert "vit_onnx" in ready_in_triton(settings)


def test_a_head_is_packaged_and_not_published_unless_it_is_asked_for(
    settings: Settings, console: Console, weights: Path
) -> None:
    run = convert(
        settings, console, family="head", weights=str(weights / "head.pth"), activation="sigmoid",
        hidden_activation="relu", embeddings=str(weights / "embeddings.npy"), model_name="multilabel_onnx", **CLASSES,
    )  # fmt: skip
    assert run.state == "success", run.failed
    found = states(settings, run)
    assert (found["package_model"], found["publish_model"], found["deploy_model"]) == ("success", "skipped", "skipped")
    assert versions(settings, "multilabel_onnx") == []
    with zipfile.ZipFile(settings.folder("bottle") / run.results["package_model"]["archive"]) as archive:
        assert {"model.onnx", "config.pbtxt", "labels.txt", "meta.json"} <= set(archive.namelist())


def test_a_plan_that_a_test_double_made_is_neither_published_nor_served(
    settings: Settings, console: Console, weights: Path
) -> None:
    run = convert(
        settings, console, family="classifier", architecture="test_resnet", weights=str(weights / "classifier.ckpt"),
        pictures=str(weights / "pictures"), model_name="footwear_trt", tensorrt=True, publish=True, **CLASSES,
    )  # fmt: skip
    assert (run.state, list(run.failed)) == ("failed", ["publish_model"])
    bottle = settings.folder("bottle")
    assert FIRST_LINE in (bottle / run.results["build_plan"]["record"]).with_name("build.log").read_text()
    assert all(verdict["passed"] for verdict in run.results["verify_plan"]["verdicts"])
    with zipfile.ZipFile(bottle / run.results["package_model"]["archive"]) as archive:
        assert "model.plan" in archive.namelist()
    assert "made by a test double of trtexec" in job_logs(settings, run.run_id, "publish_model")
    assert versions(settings, "footwear_trt") == []
    assert not {name for name in ready_in_triton(settings) if name.startswith("footwear_trt")}


def test_weights_that_are_none_fail_with_the_remedy_and_nothing_is_published(
    settings: Settings, console: Console, weights: Path
) -> None:
    run = convert(
        settings, console, family="classifier", architecture="test_resnet", weights=str(weights / "broken.pth"),
        pictures=str(weights / "pictures"), model_name="broken", publish=True, **CLASSES,
    )  # fmt: skip
    assert (run.state, list(run.failed)) == ("failed", ["import_weights"])
    assert "broken.pth is not a checkpoint of weights alone" in job_logs(settings, run.run_id, "import_weights")
    (attempt,) = [
        task for task in AirflowApi(settings).tasks(CONVERT, run.run_id) if task["task_id"] == "import_weights"
    ]
    assert attempt["try_number"] == 1, "what the data is does not change by trying again"
    page = signed_in(settings).get("/nightshift/").text
    assert "broken.pth is not a checkpoint of weights alone" in page
    assert "data refused" in page
    assert versions(settings, "broken") == []


def signed_in(settings: Settings) -> httpx.Client:
    base = settings.url("airflow")
    credentials = {"username": ADMIN, "password": settings.secrets["airflow_admin"]}
    token = httpx.post(f"{base}/auth/token", json=credentials, timeout=30).json()["access_token"]
    return httpx.Client(base_url=base, headers={"Authorization": f"Bearer {token}"}, timeout=30)


@pytest.mark.parametrize(
    ("form", "says"),
    [
        ({"family": "resnet"}, "resnet"),
        ({"height": 4}, "4 is less than the minimum"),
        ({"model_name": "../up"}, "up"),
        ({"activation": "relu"}, "relu"),
    ],
)
def test_the_form_refuses_wrong_values_before_a_run_starts(settings: Settings, form: dict[str, Any], says: str) -> None:
    with pytest.raises(LocalStackError, match=f"answered 400.*{says}"):
        AirflowApi(settings).trigger(CONVERT, {"weights": "incoming/weights.pth", **form})


@pytest.mark.slow
def test_a_night_whose_pipeline_serves_a_plan_builds_verifies_and_packages_it_beside_the_graph(
    settings: Settings, console: Console
) -> None:
    """Without publishing: what a double has made is not to be served."""
    text = (ROOT / "configs" / "pipelines" / "digits.yaml").read_text().replace("  floor: 0.97\n", "")
    text = text.replace("model_name: digits", "model_name: digits_trt").replace("epochs: 15", "epochs: 2")
    text += "convert: {targets: [onnx, tensorrt], gpu: T4, precision: fp16}\n"
    Path(os.environ["NIGHTSHIFT_PIPELINES"], "digits_trt.yaml").write_text(text)

    night = retrain(settings, "retrain_digits_trt", {"publish": False}, console)

    assert night.state == "success", night.failed
    assert night.results["build_plan"]["tensorrt"] == "11.1.0.106"
    assert {verdict["name"]: verdict["passed"] for verdict in night.results["verify_plan"]["verdicts"]}["latency"]
    archives = [night.results[task]["archive"] for task in ("package_model_onnx", "package_model")]
    assert [key.rpartition("/")[2] for key in archives] == ["model_onnx.zip", "model_trt.zip"]
    assert versions(settings, "digits_trt") == []
