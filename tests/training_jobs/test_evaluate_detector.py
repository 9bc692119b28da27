"""`evaluate_detector` with real small detectors: the candidate by PyTorch, the champion by ONNX Runtime, over HTTP."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from jobkit import job
from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.model_spec import NonMaxSuppression
from jobkit.snapshot import read_snapshot, write_snapshot
from nightshift_common.options.gate import GateOptions
from tests.support.reports import assert_stands_alone, charts_of
from tests.training_jobs.small_classifier import SmallClassifier
from tests.training_jobs.small_detector import LABELS, SmallDetector, archive, spec, write_experiment, write_scenes
from tests.training_jobs.storage import Storage
from training_jobs import evaluate_detector, gate
from training_jobs.scoring.detection import METRICS, DetectorEvaluation
from training_jobs.scoring.evaluation import read_evaluation

EXPERIMENT = "models/insects/v__0_train_small_16_0.0005"


@pytest.fixture
def snapshot_id(bottle: FolderBottle) -> str:
    return write_scenes(bottle, 80)


@pytest.fixture
def write(bottle: FolderBottle, snapshot_id: str) -> Callable[..., None]:
    def made(task: str = "detect", threshold: float | None = 0.5, **faults: float) -> None:
        write_experiment(bottle, EXPERIMENT, SmallDetector(task, **faults), spec(snapshot_id, task, threshold))

    return made


def run(
    context: job.Context, snapshot_id: str, **options: float
) -> tuple[evaluate_detector.Result, DetectorEvaluation]:
    arguments = evaluate_detector.Arguments(
        group="insects", snapshot_id=snapshot_id, experiment=EXPERIMENT, model_name="insects", **options
    )
    result = evaluate_detector.run(arguments, context)
    return result, DetectorEvaluation.model_validate_json(context.bottle.read(result.report))


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_a_candidate_alone_is_scored_on_the_golden_objects(
    context: job.Context,
    bottle: FolderBottle,
    snapshot_id: str,
    storage: Storage,
    write: Callable[..., None],
    task: str,
) -> None:
    write(task)
    result, evaluation = run(context, snapshot_id)
    golden = read_snapshot(bottle, "insects", snapshot_id).split("golden")
    objects = [o for s in golden for o in s.objects or ()]
    found = evaluation.candidate
    assert result.report == f"evaluations/insects/{snapshot_id}/{Path(EXPERIMENT).name}.json"
    assert (evaluation.kind, evaluation.pictures) == (
        {"detect": "detection", "segment": "segmentation"}[task],
        len(golden),
    )
    assert (result.champion, evaluation.comparison) == (None, None)
    assert set(result.candidate.metrics) == set(METRICS)
    assert found.true_positives + found.false_negatives == len(objects)
    assert result.candidate.metrics["precision"] == 1
    assert 0.5 < result.candidate.metrics["recall"] < 0.95, "weak squares are missed: the test can see a change"
    least = {"detect": 0.99, "segment": 0.85}[task]  # masks of weak squares are too small
    assert result.candidate.metrics["ap50"] >= least, "all are found if the threshold is low"
    support = {name: part.support for name, part in result.candidate.slices.items()}
    sizes = {"size/small": len(objects)}  # 24 x 24 pixels
    assert support == {f"class/{name}": sum(o.label == name for o in objects) for name in LABELS} | sizes
    assert found.slice_metric == "F1"
    assert [p.recall for p in found.curve] == sorted(p.recall for p in found.curve)


def test_a_lower_threshold_finds_more(
    context: job.Context, snapshot_id: str, storage: Storage, write: Callable[..., None]
) -> None:
    write(threshold=0.5)
    half = run(context, snapshot_id)[0].candidate.metrics
    write(threshold=0.15)
    all_ = run(context, snapshot_id)[0].candidate.metrics
    assert all_["recall"] == 1 > half["recall"]
    assert (all_["ap"], all_["ap50"]) == (half["ap"], half["ap50"])


def test_boxes_that_are_off_are_wrong_from_the_threshold_of_their_overlap_on(
    context: job.Context, snapshot_id: str, storage: Storage, write: Callable[..., None]
) -> None:
    write(shift=3.0, threshold=0.15)  # 9 of 15 pixels: IoU 0.6; of 14 at the border: 0.64
    assert run(context, snapshot_id)[0].candidate.metrics["f1"] == 1
    strict = run(context, snapshot_id, iou_threshold=0.65)[0].candidate.metrics
    assert strict["f1"] == 0
    assert strict["ap"] == pytest.approx(0.3), "at 0.5, 0.55 and 0.6 of ten"


@pytest.mark.parametrize("task", ["detect", "segment"])
def test_the_same_model_as_torchscript_and_as_onnx_has_the_same_scores(
    context: job.Context, snapshot_id: str, storage: Storage, write: Callable[..., None], tmp_path: Path, task: str
) -> None:
    write(task)
    storage.champion, storage.archive = (
        "0.0.7",
        archive(SmallDetector(task), spec(snapshot_id, task), tmp_path / "onnx"),
    )
    result, evaluation = run(context, snapshot_id)
    assert result.champion is not None
    assert result.champion.metrics == pytest.approx(result.candidate.metrics, abs=1e-4)
    assert evaluation.comparison is not None
    assert {name: gain.value for name, gain in evaluation.comparison.gains.items()} == dict.fromkeys(METRICS, 0)
    assert evaluation.comparison.p_value == 1
    for metric in METRICS:
        assert gate.decide(evaluation, GateOptions(metric=metric, undecided="promote")).promote


def test_a_worse_candidate_is_seen_to_be_worse_and_rejected(
    context: job.Context, snapshot_id: str, storage: Storage, write: Callable[..., None], tmp_path: Path
) -> None:
    write(blind=True)
    storage.champion, storage.archive = "0.0.1", archive(SmallDetector(), spec(snapshot_id), tmp_path / "onnx")
    result, evaluation = run(context, snapshot_id)
    assert evaluation.comparison is not None
    gain = evaluation.comparison.gains["f1"]
    assert gain.value < -0.1
    assert 0.01 < gain.standard_error < 0.1
    assert evaluation.comparison.only_champion_right > 5 > evaluation.comparison.only_candidate_right == 0
    assert evaluation.comparison.p_value < 0.01
    assert result.candidate.slices["class/bee"].score == 0
    decision = gate.run(gate.Arguments(report=result.report, metric="f1", min_support=5), context)
    assert decision.decision == "reject"
    assert any("class/bee loses" in reason for reason in decision.reasons)
    assert read_evaluation(context.bottle, result.report).kind == "detection"


def test_the_worst_pictures_come_first_with_their_boxes(
    context: job.Context, snapshot_id: str, storage: Storage, write: Callable[..., None]
) -> None:
    write(blind=True)
    _, evaluation = run(context, snapshot_id)
    mistakes = [p.false_negatives + p.false_positives for p in evaluation.worst]
    assert mistakes == sorted(mistakes, reverse=True)
    assert len(mistakes) == evaluate_detector.SHOWN_PICTURES
    worst = evaluation.worst[0]
    assert sum(not o.is_right for o in worst.objects) == worst.false_negatives > 1
    right = [o for p in evaluation.worst for o in p.objects if o.is_right]
    assert right
    found = [b for p in evaluation.worst for b in p.predictions if b.is_right]
    assert {(o.label, o.box) for o in right} == {(b.label, b.box) for b in found}, "the small detector is exact"


def test_what_a_model_lacks_is_said(
    context: job.Context, snapshot_id: str, storage: Storage, write: Callable[..., None], tmp_path: Path
) -> None:
    write(threshold=None)
    other = spec(snapshot_id, threshold=0.5, suppression=NonMaxSuppression(max_detections=10))
    other = other.model_copy(update={"labels": ["ant", "wasp"]})
    storage.champion, storage.archive = "0.0.2", archive(SmallDetector(), other, tmp_path / "onnx")
    result, _ = run(context, snapshot_id)
    assert result.champion is not None
    ours, *theirs = result.notes
    assert "has no confidence threshold" in ours
    assert "0.25 is taken" in ours
    assert [n for n in theirs if "does not know the class 'bee'" in n and "golden objects" in n]
    assert [n for n in theirs if "also knows the class 'wasp'" in n]
    assert [n for n in theirs if "leaves out boxes below 0.25 itself" in n]
    assert result.champion.slices["class/ant"].score > 0.8
    assert result.champion.slices["class/bee"].score == 0
    assert result.champion.metrics["precision"] < 0.8, "a bee that is called a wasp is wrong"


def test_a_graph_that_suppresses_by_itself_finds_the_same(
    context: job.Context, snapshot_id: str, storage: Storage, write: Callable[..., None], tmp_path: Path
) -> None:
    write("segment")
    inside = spec(snapshot_id, "segment", suppression=NonMaxSuppression(max_detections=20))
    storage.champion, storage.archive = "0.0.2", archive(SmallDetector("segment"), inside, tmp_path / "onnx")
    result, _ = run(context, snapshot_id)
    assert result.champion is not None
    for metric in ("f1", "precision", "recall"):
        assert result.champion.metrics[metric] == result.candidate.metrics[metric]


def test_a_candidate_that_cannot_be_used_is_refused(
    context: job.Context, bottle: FolderBottle, snapshot_id: str, storage: Storage, write: Callable[..., None]
) -> None:
    write()
    broken = spec(snapshot_id)
    for change, message in (
        ({"labels": ["ant"]}, r"gives outputs \[16, 6, 16\], but its spec says detect of 1 classes"),
        ({"task": "segment"}, "its spec says segment of 2 classes"),
        ({"group": "birds"}, "was trained for group birds, not insects"),
    ):
        bottle.write(f"{EXPERIMENT}/model.json", broken.model_copy(update=change).model_dump_json())
        with pytest.raises(DataValidationError, match=message):
            run(context, snapshot_id)
    write(shift=float("nan"))
    with pytest.raises(DataValidationError, match="not finite"):
        run(context, snapshot_id)
    classifier = {"group": "insects", "architecture": "a", "labels": LABELS, "preprocessing": {"height": 8, "width": 8}}
    bottle.write(f"{EXPERIMENT}/model.json", json.dumps(classifier))
    with pytest.raises(DataValidationError, match=r"model\.json is not valid: .*DetectorSpec"):
        run(context, snapshot_id)


def test_a_snapshot_without_objects_or_polygons_is_refused(
    context: job.Context, bottle: FolderBottle, snapshot_id: str, storage: Storage, write: Callable[..., None]
) -> None:
    samples = read_snapshot(bottle, "insects", snapshot_id).samples
    write("segment")
    bare = [
        s.model_copy(update={"objects": tuple(o.model_copy(update={"polygons": ()}) for o in s.objects or ())})
        for s in samples
    ]
    with pytest.raises(DataValidationError, match="objects have no polygons"):
        run(context, write_snapshot(bottle, "insects", bare, []).snapshot_id)
    labeled = [s.model_copy(update={"label": "ant", "objects": None}) for s in samples]
    with pytest.raises(DataValidationError, match="pictures list no objects"):
        run(context, write_snapshot(bottle, "insects", labeled, []).snapshot_id)


def test_options_out_of_bounds_are_configuration_errors() -> None:
    line = ["--group=g", "--snapshot_id=s", "--experiment=models/g/e", "--model_name=m"]
    for option in ("--iou_threshold=0", "--nms_iou_threshold=1.1", "--max_detections=0"):
        with pytest.raises(ConfigurationError, match=option[2:].partition("=")[0]):
            job.parse(evaluate_detector.Arguments, [*line, option])


def test_mlflow_gets_numbers_a_curve_and_pictures(
    bottle: FolderBottle,
    snapshot_id: str,
    storage: Storage,
    write: Callable[..., None],
    mlflow_url: str,
    tmp_path: Path,
) -> None:
    from mlflow import MlflowClient

    from nightshift_common.task_instance import TaskInstanceKey

    write()
    storage.champion, storage.archive = (
        "0.0.7",
        archive(SmallDetector(blind=True), spec(snapshot_id), tmp_path / "onnx"),
    )
    context = job.Context(tmp_path, TaskInstanceKey(dag_id="retrain_detector_test", run_id="r1", task_id="evaluate"))
    result, _ = run(context, snapshot_id)
    context.close(succeeded=True)
    api = MlflowClient(mlflow_url)
    stored = api.get_run(context.tracking.run_id)
    assert stored.data.metrics["candidate/f1"] == pytest.approx(result.candidate.metrics["f1"])
    assert stored.data.metrics["champion/class/bee/f1"] == 0
    assert stored.data.metrics["gain/ap50"] > 0.2
    names = {f.path for f in api.list_artifacts(stored.info.run_id)}
    assert names == {"evaluation.json", "report.html"}
    page = Path(api.download_artifacts(stored.info.run_id, "report.html", str(tmp_path))).read_text()
    assert page == bottle.read(result.report.replace(".json", ".html")).decode()


def test_the_report_for_people_has_the_curves_and_the_boxes(
    context: job.Context, bottle: FolderBottle, snapshot_id: str, storage: Storage, write: Callable[..., None]
) -> None:
    write()
    result, evaluation = run(context, snapshot_id)
    page = bottle.read(result.report.replace(".json", ".html")).decode()
    assert_stands_alone(page)
    drawn, candidate = charts_of(page), evaluation.candidate
    line, mark = drawn["Precision over recall at IoU 0.5"]["data"]
    assert (line["x"], line["y"]) == ([p.recall for p in candidate.curve], [p.precision for p in candidate.curve])
    assert line["customdata"] == [p.confidence for p in candidate.curve]
    assert (mark["x"], mark["y"]) == ([candidate.metrics["recall"]], [candidate.metrics["precision"]])
    _, f1 = drawn["F1 by confidence threshold"]["data"]
    assert (f1["x"], f1["y"]) == ([candidate.confidence_threshold], [pytest.approx(candidate.metrics["f1"])])
    boxes = re.findall(r'<rect class="(\w+)" x="(\S+)" y="(\S+)" width="(\S+)" height="(\S+)"><title>(.*?)<', page)
    wanted = [one for picture in evaluation.worst for one in (*picture.objects, *picture.predictions)]
    assert len(boxes) == len(wanted) > 0
    for (_, x, y, width, height, said), one in zip(boxes, wanted, strict=True):
        assert [float(x), float(y), float(x) + float(width), float(y) + float(height)] == pytest.approx(list(one.box))
        assert said.startswith(one.label)
    missed = sum(picture.false_negatives for picture in evaluation.worst)
    assert sum(said.endswith("missed") for *_, said in boxes) == missed > 0


def test_a_classifier_in_production_under_that_name_is_an_error(
    context: job.Context, bottle: FolderBottle, snapshot_id: str, storage: Storage, write: Callable[..., None]
) -> None:
    write()
    samples = read_snapshot(bottle, "insects", snapshot_id)
    labeled = [s.model_copy(update={"label": LABELS[i % 2], "objects": None}) for i, s in enumerate(samples.samples)]
    trained = samples.model_copy(update={"samples": labeled})
    storage.champion, storage.archive = "0.0.1", SmallClassifier(bottle, trained).archive()
    with pytest.raises(DataValidationError, match=r"model\.json of version 0\.0\.1 of insects .* is not valid"):
        run(context, snapshot_id)
