"""Detectors: weights are read in their own environment; all that follows, in that of the jobs, is seen here."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import zipfile
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from conversion_jobs import predict
from conversion_jobs.detection.agreement import BoxAgreement
from conversion_jobs.families.sources import load_torchscript
from conversion_jobs.onnx.export import export
from conversion_jobs.onnx.session import OnnxModel
from conversion_jobs.triton.model_config import parse
from conversion_jobs.triton.served_model import Reference, ServedModel
from jobkit.bottle import FolderBottle
from jobkit.errors import DataValidationError
from jobkit.experiment import Experiment, read_spec
from jobkit.job import Context
from jobkit.model_spec import Preprocessing, resized
from nightshift_common.boxes import detections, in_picture, overlaps, suppressed
from tests.conversion_jobs.conftest import Trained
from tests.conversion_jobs.serving import Serving
from tests.conversion_jobs.test_build_plan import build
from tests.conversion_jobs.test_verify_plan import verify as verify_with_double

ROOT = Path(__file__).resolve().parents[2]
PYTHON = ROOT / ".venv" / "detection" / "bin" / "python"
KINDS = {"detect": ("detect.pt", []), "nms": ("detect.pt", ["--nms"]), "other": ("other.pt", [])}
KINDS |= {"segment": ("segment.pt", []), "segment_nms": ("segment.pt", ["--nms", "--max_detections=100"])}


@pytest.fixture(scope="session")
def imported(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, dict[str, str]]]:
    """A bottle in which every kind of detector was imported in its own environment; what the jobs gave."""
    folder = tmp_path_factory.mktemp("detectors")
    subprocess.run([PYTHON, "-m", "tests.support.detectors", folder / "made"], cwd=ROOT, check=True)
    results = {}
    for name, (weights, options) in KINDS.items():
        environment = {
            **os.environ,
            "NIGHTSHIFT_BOTTLE": str(folder / "bottle"),
            "NIGHTSHIFT_JOB_DIR": f"{folder}/{name}",
        }
        line = ["--family=ultralytics", f"--weights={folder / 'made' / weights}", "--group=footwear"]
        line += ["--img_size=[128,160]", f"--pictures={folder / 'made' / 'pictures'}", *options]
        subprocess.run([PYTHON, "-m", "conversion_jobs.import_weights", *line], cwd=ROOT, env=environment, check=True)
        results[name] = json.loads((folder / name / "result.json").read_text())["result"]
    return folder / "bottle", results


@pytest.fixture
def detector(
    imported: tuple[Path, dict[str, dict[str, str]]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[[str], Trained]:
    """A copy of the bottle, from the point of view of one kind."""
    monkeypatch.delenv("MLFLOW_TRACKING_URI", raising=False)
    shutil.copytree(imported[0], tmp_path / "bottle")
    monkeypatch.setenv("NIGHTSHIFT_BOTTLE", str(tmp_path / "bottle"))

    def of(kind: str) -> Trained:
        result, bottle = imported[1][kind], FolderBottle(tmp_path / "bottle")
        return Trained(bottle, result["snapshot_id"], result["experiment"], Context(tmp_path / "job", None))

    return of


@pytest.mark.parametrize(
    ("kind", "outputs"),
    [
        ("detect", {"raw": [7, 420]}),
        pytest.param("nms", {"detections": [300, 6]}, marks=pytest.mark.slow),
        pytest.param(
            "segment", {"raw": [7, 420], "coefficients": [32, 420], "protos": [32, 32, 40]}, marks=pytest.mark.slow
        ),
        ("segment_nms", {"detections": [100, 6], "kept_coefficients": [100, 32], "protos": [32, 32, 40]}),
    ],
)
def test_a_detector_is_exported_verified_packaged_and_served_as_it_was_verified(
    detector: Callable[[str], Trained], kind: str, outputs: dict[str, list[int]], served: Serving, model: str
) -> None:
    one = detector(kind)
    graph = onnx.load(one.bottle.local(one.export().onnx))
    told = {entry.key: entry.value for entry in graph.metadata_props}
    assert json.loads(told["labels"]) == ["boot", "clog", "shoe"]
    assert told["task"].strip('"') == kind.partition("_")[0].replace("nms", "detect")
    result = one.verify()
    masks = {"mask_agreement"} if "segment" in kind else set()
    assert {verdict.name for verdict in result.verdicts} >= {"finite", "box_agreement"} | masks
    published = one.publish(model)
    with zipfile.ZipFile(one.bottle.local("inference_models/footwear/inference_model/model_onnx.zip")) as archive:
        config = parse(archive.read("config.pbtxt").decode())
    assert list(config.input[0].dims) == [3, 128, 160]
    assert {output.name: list(output.dims) for output in config.output} == outputs
    one.deploy(published.version, model)
    reference = Reference(one.bottle.local(result.reference))
    with closing(ServedModel(model)) as triton:
        answered, _ = triton.ask(reference.inputs)
    assert BoxAgreement(0.98, 0.01).judge(reference.outputs, answered, [""] * len(answered)).passed
    assert served.models_in_triton()[model] == "1"
    asked = predict.Arguments(model_name=model, group="footwear", snapshot_id=one.snapshot_id)
    said = predict.run(asked, one.context)
    assert said.boxes and said.label == said.boxes[0].label
    assert all(0 <= box.x_min <= box.x_max <= 160 and 0 <= box.y_min <= box.y_max <= 110 for box in said.boxes)


def undone(corners: np.ndarray, size: tuple[int, int], how: Preprocessing) -> list[list[float]]:
    return in_picture(corners, size, resized(*size, how), (how.height, how.width)).tolist()


def test_boxes_are_told_in_pixels_of_the_picture() -> None:
    how = Preprocessing(height=100, width=200, pad_value=114, mean=(0, 0, 0), std=(1, 1, 1))
    # 400 x 400 pixels become 100 x 100, with 50 pixels of padding on the left and on the right
    corners = np.array([[50, 0, 150, 100], [60, 10, 70, 20], [0, -5, 500, 500]], np.float32)
    assert undone(corners, (400, 400), how) == [[0, 0, 400, 400], [40, 40, 80, 80], [0, 0, 400, 400]]
    stretched = how.model_copy(update={"resize": "stretch"})
    assert undone(corners[:1], (50, 400), stretched) == [[100, 0, 300, 50]]


class Changed(nn.Module):
    """A detector with something done to its input or its output."""

    def __init__(self, model: nn.Module, before: Callable = torch.clone, after: Callable = torch.clone) -> None:
        super().__init__()
        self.model, self.before, self.after = model, before, after

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        return self.after(self.model(self.before(pictures)))


FAULTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "swapped channels": lambda model: Changed(model, before=lambda x: x.flip(1)),
    "pictures of 0..255": lambda model: Changed(model, before=lambda x: x * 255),
    "a mean that is not its own": lambda model: Changed(model, before=lambda x: (x - 0.45) / 0.225),
    "corners for centers": lambda model: Changed(
        model, after=lambda y: torch.cat([y[:, :2] - y[:, 2:4] / 2, y[:, :2] + y[:, 2:4] / 2, y[:, 4:]], 1)
    ),
    "classes in another order": lambda model: Changed(
        model, after=lambda y: torch.cat([y[:, :4], y[:, 4:].flip(1)], 1)
    ),
}


@pytest.mark.parametrize("kind", ["detect", pytest.param("nms", marks=pytest.mark.slow)])
@pytest.mark.parametrize("fault", FAULTS)
def test_a_detector_whose_export_went_wrong_is_refused(
    detector: Callable[[str], Trained], fault: str, kind: str
) -> None:
    one = detector(kind)
    experiment = Experiment(one.experiment)
    model = FAULTS[fault](load_torchscript(one.bottle.local(experiment.torchscript)))
    changed = torch.jit.trace(model, torch.zeros(2, 3, 128, 160), check_trace=False)
    path = one.bottle.path(experiment.onnx)
    path.parent.mkdir(exist_ok=True)
    export(changed, read_spec(one.bottle, experiment), path, 17, {"experiment": experiment.folder})
    with pytest.raises(DataValidationError, match="boxes of both models are the same"):
        one.verify()


def test_a_transposed_output_is_refused(detector: Callable[[str], Trained]) -> None:
    one = detector("detect")
    path = one.bottle.path(one.export().onnx)
    graph = onnx.load(path)
    last = next(node for node in graph.graph.node if "raw" in node.output)
    last.output[list(last.output).index("raw")] = "upright"
    graph.graph.node.append(onnx.helper.make_node("Transpose", ["upright"], ["raw"], perm=[0, 2, 1]))
    dims = graph.graph.output[0].type.tensor_type.shape.dim
    dims[1].dim_value, dims[2].dim_value = 420, 7
    onnx.save(graph, path)
    with pytest.raises(DataValidationError, match=r"the outputs have the shape \[4, 420, 7\]"):
        one.verify()


@pytest.mark.slow
def test_a_graph_of_another_checkpoint_is_refused(detector: Callable[[str], Trained]) -> None:
    one, other = detector("detect"), detector("other")
    stale = onnx.load(one.bottle.path(other.export().onnx))
    for entry in stale.metadata_props:
        entry.value = one.experiment if entry.key == "experiment" else entry.value
    onnx.save(stale, one.bottle.path(one.export().onnx))
    with pytest.raises(DataValidationError, match="boxes of both models are the same"):
        one.verify()


@pytest.mark.slow
def test_a_segmenter_with_the_masks_of_other_boxes_is_refused(detector: Callable[[str], Trained]) -> None:
    one = detector("segment")
    path = one.bottle.path(one.export().onnx)
    graph = onnx.load(path)
    producer = next(node for node in graph.graph.node if "coefficients" in node.output)
    producer.output[list(producer.output).index("coefficients")] = "right"
    graph.graph.node.append(onnx.helper.make_node("Neg", ["right"], ["coefficients"]))
    onnx.save(graph, path)
    with pytest.raises(DataValidationError, match=r"the masks of \d+ boxes overlap by an IoU of 0\.\d"):
        one.verify()


def test_suppression_in_the_graph_finds_what_it_finds_outside(detector: Callable[[str], Trained]) -> None:
    raw, nms = detector("detect"), detector("nms")
    pictures = np.random.default_rng(0).random((3, 3, 128, 160), np.float32)
    outside = OnnxModel(raw.bottle.local(raw.export().onnx)).run(pictures, 3)
    inside = OnnxModel(nms.bottle.local(nms.export().onnx)).run(pictures, 2)
    np.testing.assert_allclose(detections(outside, 0.25, 0.7, 300), inside, atol=0.02)
    assert (inside[:, 0, 4] > 0.25).all()


def test_of_covered_boxes_of_a_class_the_best_is_left() -> None:
    #  columns: center x, center y, width, height, scores of two classes
    anchors = [(10, 10, 8, 8, 0.6, 0.0), (10, 11, 8, 8, 0.9, 0.0), (10, 10, 8, 8, 0.0, 0.5), (30, 30, 4, 4, 0.3, 0.1)]
    found = suppressed(np.array(anchors, np.float32).T, 0.25, 0.7, 10)
    assert found.anchors.tolist() == [1, 2, 3]
    assert found.boxes[0].tolist() == pytest.approx([6, 7, 14, 15, 0.9, 0])
    assert suppressed(np.array(anchors, np.float32).T, 0.25, 0.8, 10).anchors.tolist() == [1, 0, 2, 3]
    assert overlaps(found.boxes[:1], found.boxes[1:])[0].tolist() == pytest.approx([56 / 72, 0])


def test_where_nothing_is_found_nothing_is_agreed_on() -> None:
    nothing = np.zeros((2, 300, 6), np.float32)
    verdict = BoxAgreement(0.98, 0.01).judge(nothing, nothing, ["a", "b"])
    assert not verdict.passed
    assert "choose pictures with objects" in verdict.sentence


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["detect", "segment_nms"])
def test_a_plan_of_a_detector_is_held_to_its_boxes_and_packaged(
    detector: Callable[[str], Trained], kind: str, tmp_path: Path
) -> None:
    """With the double of trtexec, which computes the graph: that a real plan does is for a T4 to show."""
    one = detector(kind)
    one.export()
    one.verify()
    built = build(one, tmp_path / "trt")
    found = verify_with_double(one, tmp_path / "trt", built)
    assert {verdict.name for verdict in found.verdicts} >= {"finite", "box_agreement"}
    package = one.package("things", target="tensorrt", record=built.record)
    with zipfile.ZipFile(one.bottle.local(package.archive)) as archive:
        assert {"model.plan", "config.pbtxt", "labels.txt"} <= set(archive.namelist())
