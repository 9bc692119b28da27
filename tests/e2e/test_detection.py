"""Nights of the other kinds: drawn scenes, from a COCO file in the bottle to a served detector and a segmenter."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import httpx
import pytest
from rich.console import Console

from local.components import python
from local.run import Retraining, retrain
from local.settings import HOST, ROOT, Settings
from tests.e2e.support import versions

PIPELINE = """\
kind: {kind}
description: Discs and boxes, {kind}
owner: ml-team
data: {{group: shapes, annotations: incoming/shapes/annotations.json}}
train: {{input_size: 96, batch: 8, mosaic: 0, learning_rate: 0.01, timeout_hours: 1}}
gate: {{metric: f1, floor: 0.05}}
publish: {{model_name: shapes_{kind}}}
retries: {{attempts: 1, delay_seconds: 1}}
"""


@pytest.fixture(scope="module", autouse=True)
def scenes(settings: Settings) -> None:
    folder = settings.folder("bottle") / "incoming" / "shapes"
    subprocess.run([python("jobs"), "-m", "tests.support.coco_scenes", str(folder)], cwd=ROOT, check=True)


def night(kind: str, settings: Settings, console: Console, **form: object) -> Retraining:
    Path(os.environ["NIGHTSHIFT_PIPELINES"], f"shapes_{kind}.yaml").write_text(PIPELINE.format(kind=kind))
    return retrain(settings, f"retrain_shapes_{kind}", dict(form), console)


def infer(settings: Settings, model: str) -> dict[str, list[int]]:
    """Return the shape of each output for one gray picture."""
    asked = {"inputs": [{"name": "input", "shape": [1, 3, 96, 96], "datatype": "FP32", "data": [0.5] * 3 * 96**2}]}
    address = f"http://{HOST}:{settings.port('triton')}/v2/models/{model}/infer"
    outputs = httpx.post(address, json=asked, timeout=60).json()["outputs"]
    return {output["name"]: output["shape"] for output in outputs}


def test_a_detector_goes_the_way_of_every_model_to_production(settings: Settings, console: Console) -> None:
    run = night("detection", settings, console, epochs=8)
    assert run.state == "success", run.failed
    metrics = run.results["evaluate"]["candidate"]["metrics"]
    assert {"f1", "precision", "recall", "ap50", "ap"} <= set(metrics) and metrics["f1"] >= 0.05
    assert {"class/box", "class/disc", "size/small"} <= set(run.results["evaluate"]["candidate"]["slices"])
    assert run.results["gate"]["decision"] == "promote"
    assert versions(settings, "shapes_detection") == ["0.0.1"]
    assert infer(settings, "shapes_detection")["raw"][:2] == [1, 6]


def test_the_next_night_has_nothing_new(settings: Settings, console: Console) -> None:
    run = night("detection", settings, console, epochs=8)
    assert run.state == "success"
    assert run.results["report"]["outcome"] == "nothing_new"


@pytest.mark.slow
def test_a_segmenter_goes_the_same_way_on_the_same_pictures(settings: Settings, console: Console) -> None:
    run = night("segmentation", settings, console, epochs=8)
    assert run.state == "success", run.failed
    assert run.results["evaluate"]["candidate"]["metrics"]["f1"] >= 0.05
    assert set(infer(settings, "shapes_segmentation")) == {"raw", "coefficients", "protos"}
