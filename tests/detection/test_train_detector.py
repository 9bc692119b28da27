"""Training of detectors as a process: killed and resumed, segmenters too, and the chain that follows elsewhere."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import patch

import cv2
import numpy as np
import pytest
import torch

from jobkit import job
from jobkit.bottle import FolderBottle
from jobkit.errors import ConfigurationError, DataValidationError
from jobkit.experiment import Experiment, read_spec
from jobkit.files import sha256_of
from jobkit.model_spec import DetectorSpec
from jobkit.snapshot import AnnotatedObject, Sample, read_snapshot, write_snapshot
from nightshift_common.detector import EpochEnd
from nightshift_common.options.detector import DetectorTrainingOptions
from nightshift_common.patience import patience
from nightshift_common.task_instance import TaskInstanceKey
from tests.support.reports import charts_of, series_of
from tests.support.scenes import GROUP, LABELS, write_scenes
from tests.support.waiting import wait_for
from training_jobs import train_detector
from training_jobs.detector.dataset import one_outline, prepare_dataset
from training_jobs.detector.ultralytics_trainer import Ultralytics, _alone

ROOT = Path(__file__).resolve().parents[2]
EPOCHS = 12
SMALL = {"batch": 8, "input_size": 96, "mosaic": 0, "learning_rate": 0.01}
KEY = TaskInstanceKey(dag_id="retrain_shapes", run_id="night-1", task_id="train")


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("detectors")


@pytest.fixture(scope="session")
def bottle(folder: Path) -> FolderBottle:
    return FolderBottle(folder / "bottle")


@pytest.fixture(scope="session")
def snapshot_id(bottle: FolderBottle) -> str:
    return write_scenes(bottle)


@pytest.fixture
def context(bottle: FolderBottle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> job.Context:
    for name in ("MLFLOW_TRACKING_URI", "NIGHTSHIFT_TASK_INSTANCE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("NIGHTSHIFT_BOTTLE", str(bottle))
    return job.Context(tmp_path / "job", None)


def pool(bottle: FolderBottle) -> dict[str, str]:
    return {key: sha256_of(bottle.path(key)) for key in bottle.keys("pictures")}


class Process:
    """The job as Airflow starts it."""

    def __init__(self, bottle: FolderBottle, snapshot: str, folder: Path, key: TaskInstanceKey | None, **options: Any):
        folder.mkdir(exist_ok=True)
        self.folder, self.log = folder, folder / "log"
        line = {"group": GROUP, "snapshot_id": snapshot, **SMALL, **options}
        environment = {**os.environ, "NIGHTSHIFT_BOTTLE": str(bottle), "NIGHTSHIFT_JOB_DIR": str(folder)}
        environment |= {"NIGHTSHIFT_TASK_INSTANCE": key.to_json()} if key else {}
        command = [sys.executable, "-m", "training_jobs.train_detector", *(f"--{n}={v}" for n, v in line.items())]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=log, stderr=log, start_new_session=True
            )

    def wait_for(self, condition: Callable[[], bool]) -> None:
        def ended_or_true() -> bool:
            assert self.process.poll() is None, self.log.read_text()
            return condition()

        wait_for(ended_or_true, "the training", 120)

    def kill(self) -> None:
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def result(self, code: int = 0) -> dict[str, Any]:
        assert self.process.wait(patience(120)) == code, self.log.read_text()
        return json.loads((self.folder / "result.json").read_text())["result"] if code == 0 else {}


def in_jobs_environment(bottle: FolderBottle, folder: Path, module: str, **options: Any) -> dict[str, Any]:
    """Run a job where there is no Ultralytics; return its result."""
    python = ROOT / ".venv" / "jobs" / "bin" / "python"
    environment = {**os.environ, "NIGHTSHIFT_BOTTLE": str(bottle), "NIGHTSHIFT_JOB_DIR": str(folder)}
    environment.pop("MLFLOW_TRACKING_URI", None)
    line = [python, "-m", module, *(f"--{name}={value}" for name, value in options.items())]
    done = subprocess.run(line, cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads((folder / "result.json").read_text())["result"]


@pytest.fixture(scope="session")
def trained(
    bottle: FolderBottle, snapshot_id: str, folder: Path, mlflow_server: str
) -> Iterator[tuple[dict[str, Any], list[str]]]:
    """A detector whose training was killed with SIGKILL in its fifth epoch: the result, and the history until then."""
    before = pool(bottle)
    with pytest.MonkeyPatch.context() as patches:
        patches.setenv("MLFLOW_TRACKING_URI", mlflow_server)
        first = Process(bottle, snapshot_id, folder / "first", KEY, epochs=EPOCHS)
        first.wait_for(lambda: len(history(bottle)) == 4 and len(list(bottle.keys("models/shapes"))) >= 6)
        first.wait_for(lambda: b"epoch 5" in first.log.read_bytes() or len(history(bottle)) > 4)
        first.kill()
        killed = history(bottle)
        second = Process(bottle, snapshot_id, folder / "second", KEY, epochs=EPOCHS)
        result = second.result()
        assert "going on after epoch" in second.log.read_text()
    assert pool(bottle) == before, "training changes no picture"
    yield result, killed


def history(bottle: FolderBottle) -> list[str]:
    found = [key for key in bottle.keys("models/shapes") if key.endswith("history.jsonl") and "v__0_" in key]
    return bottle.read(found[0]).decode().splitlines() if found else []


def test_a_killed_training_goes_on_where_it_was(
    bottle: FolderBottle, trained: tuple[dict[str, Any], list[str]]
) -> None:
    result, killed = trained
    rows = [json.loads(line) for line in history(bottle)]
    assert [row["epoch"] for row in rows] == list(range(EPOCHS))
    assert history(bottle)[: len(killed) - 1] == killed[:-1], "what was done before is kept"
    assert [row["is_last"] for row in rows] == [False] * (EPOCHS - 1) + [True]
    assert (result["epochs"], result["best_epoch"]) == (EPOCHS, result["best_epoch"])
    assert rows[result["best_epoch"]]["val_f1"] == max(row["val_f1"] for row in rows)
    assert result["metrics"]["val_f1"] > 0.8, "the shapes are easy"
    assert rows[-1]["train_box_loss"] < rows[4]["train_box_loss"] < rows[1]["train_box_loss"]


def test_what_it_leaves_is_what_later_steps_need(
    bottle: FolderBottle, snapshot_id: str, trained: tuple[dict[str, Any], list[str]]
) -> None:
    experiment = Experiment(trained[0]["experiment"])
    spec = read_spec(bottle, experiment)
    assert isinstance(spec, DetectorSpec)
    assert (spec.group, spec.labels, spec.task, spec.snapshot_id) == (GROUP, LABELS, "detect", snapshot_id)
    assert (spec.architecture, spec.preprocessing.height, spec.preprocessing.pad_value) == ("yolov8n", 96, 114)
    assert spec.confidence_threshold is not None
    assert 0.001 < spec.confidence_threshold < 1
    script = torch.jit.load(bottle.local(experiment.torchscript))
    assert list(script(torch.zeros(3, 3, 96, 96)).shape) == [3, 6, 189]
    content = json.loads(bottle.read(experiment.metrics))
    assert content["confidence_threshold"] == spec.confidence_threshold
    drawn = charts_of(bottle.read(f"{experiment.folder}/report.html").decode())
    rows = [json.loads(line) for line in history(bottle)]
    assert series_of(drawn["Validation F1"])["val_f1"] == pytest.approx([row["val_f1"] for row in rows])
    assert series_of(drawn["Losses"])["train_box_loss"] == pytest.approx([row["train_box_loss"] for row in rows])
    _, mark = drawn["F1 by confidence threshold"]["data"]
    assert (mark["x"], mark["y"]) == ([spec.confidence_threshold], [pytest.approx(content["metrics"]["val_f1"])])
    assert content["provenance"]["libraries"]["ultralytics"]
    assert b"learning_rate: 0.01" in bottle.read(experiment.config)
    sizes = [bottle.path(key).stat().st_size for key in (experiment.best_weights, experiment.last_weights)]
    assert sizes[0] < sizes[1] / 1.8, "the best weights are kept without the optimizer"


def test_a_finished_training_answers_at_once(
    bottle: FolderBottle, snapshot_id: str, trained: tuple[dict[str, Any], list[str]], tmp_path: Path
) -> None:
    with pytest.MonkeyPatch.context() as patches:
        patches.delenv("MLFLOW_TRACKING_URI", raising=False)
        context = job.Context(tmp_path, KEY)
        patches.setenv("NIGHTSHIFT_BOTTLE", str(bottle))
        given = {"group": GROUP, "snapshot_id": snapshot_id, "epochs": EPOCHS, **SMALL}
        with patch.object(Ultralytics, "train", side_effect=AssertionError("it trains again")):
            result = train_detector.run(train_detector.Arguments(**given), context)
    assert result.model_dump(mode="json") == trained[0]


def test_mlflow_has_every_epoch_once_in_one_run(trained: tuple[dict[str, Any], list[str]], mlflow_server: str) -> None:
    from mlflow import MlflowClient

    api = MlflowClient(mlflow_server)
    experiment = api.get_experiment_by_name(KEY.dag_id)
    assert experiment is not None
    (run,) = [r for r in api.search_runs([experiment.experiment_id]) if r.data.tags.get("nightshift.task") == "train"]
    steps = [point.step for point in api.get_metric_history(run.info.run_id, "val_f1")]
    assert sorted(set(steps)) == list(range(EPOCHS))
    assert len(steps) <= EPOCHS + 1, "the epoch that was killed may be told twice"
    assert run.data.params["architecture"] == "yolov8n"
    assert run.data.metrics["best_val_f1"] == trained[0]["metrics"]["val_f1"]
    assert run.info.status == "FINISHED"
    assert len(api.search_experiments()) <= 3, "Ultralytics' own callback made none"


TASKS = ["detect", pytest.param("segment", marks=pytest.mark.slow)]  # a training more


@pytest.fixture(scope="session")
def segmenter(bottle: FolderBottle, snapshot_id: str, folder: Path) -> dict[str, Any]:
    with pytest.MonkeyPatch.context() as patches:
        patches.delenv("MLFLOW_TRACKING_URI", raising=False)
        return Process(bottle, snapshot_id, folder / "segmenter", None, task="segment", epochs=EPOCHS).result()


@pytest.mark.parametrize("task", TASKS)
def test_what_was_trained_goes_through_the_chain(
    bottle: FolderBottle, snapshot_id: str, request: pytest.FixtureRequest, tmp_path: Path, task: str
) -> None:
    """In the jobs' environment, which has no Ultralytics."""
    result = request.getfixturevalue("trained")[0] if task == "detect" else request.getfixturevalue("segmenter")
    experiment = result["experiment"]
    of = {"experiment": experiment, "snapshot_id": snapshot_id}
    found = in_jobs_environment(
        bottle, tmp_path / "evaluate", "training_jobs.evaluate_detector", group=GROUP, model_name=GROUP, **of
    )
    assert found["candidate"]["metrics"]["f1"] > 0.7
    assert found["candidate"]["metrics"]["ap"] > 0.3
    assert set(found["candidate"]["slices"]) >= {"class/box", "class/disc", "size/small"}
    decided = in_jobs_environment(
        bottle, tmp_path / "gate", "training_jobs.gate", report=found["report"], metric="f1", floor=0.7
    )
    assert decided["decision"] == "promote"
    in_jobs_environment(bottle, tmp_path / "export", "conversion_jobs.export_onnx", experiment=experiment)
    verified = in_jobs_environment(bottle, tmp_path / "verify", "conversion_jobs.verify_onnx", **of)
    agreed = {verdict["name"] for verdict in verified["verdicts"] if verdict["passed"]}
    assert agreed >= {"close", "box_agreement"} | ({"mask_agreement"} if task == "segment" else set())
    packaged = in_jobs_environment(
        bottle, tmp_path / "package", "conversion_jobs.package_model", experiment=experiment, model_name=GROUP
    )
    meta = json.loads(bottle.read(f"{packaged['folder']}/meta.json"))
    assert meta["confidence_threshold"] == read_spec(bottle, Experiment(experiment)).confidence_threshold


@pytest.mark.parametrize("task", TASKS)
def test_scores_are_those_of_ultralytics_own_validator(
    bottle: FolderBottle, snapshot_id: str, request: pytest.FixtureRequest, tmp_path: Path, task: str
) -> None:
    """A second source for boxes, masks and their places: it averages precision in another way, so not to the digit."""
    from ultralytics import YOLO

    result = request.getfixturevalue("trained")[0] if task == "detect" else request.getfixturevalue("segmenter")
    dataset = prepare_dataset(bottle, read_snapshot(bottle, GROUP, snapshot_id), task, tmp_path / "dataset")
    Ultralytics(tmp_path)
    with _alone():
        model = YOLO(bottle.local(result["checkpoint"]))
        found = model.val(
            data=str(dataset.file),
            imgsz=96,
            rect=False,
            plots=False,
            project=str(tmp_path),
            device="cpu",
            workers=0,
            save_txt=True,
            mask_ratio=1,  # masks at the resolution of the input, not at a quarter of it
        )
    theirs = found.seg if task == "segment" else found.box
    assert result["metrics"]["val_ap50"] == pytest.approx(theirs.map50, abs=0.03)
    assert result["metrics"]["val_ap"] == pytest.approx(theirs.map, abs=0.06 if task == "segment" else 0.03)


def test_weights_of_an_earlier_training_are_a_start(
    context: job.Context, bottle: FolderBottle, snapshot_id: str, trained: tuple[dict[str, Any], list[str]]
) -> None:
    slow = {**SMALL, "learning_rate": 1e-6}
    given = {"group": GROUP, "snapshot_id": snapshot_id, "epochs": 1, **slow}
    result = train_detector.run(train_detector.Arguments(weights=trained[0]["checkpoint"], **given), context)
    assert "_finetune_yolov8n_" in result.experiment
    assert result.metrics["val_f1"] > 0.7, "after one epoch in which nothing is learned"


class Quiet:
    """An observer that keeps what it is told."""

    def __init__(self) -> None:
        self.epochs: list[EpochEnd] = []

    def started(self, epoch: int, batches: int) -> None:
        """Nothing."""

    def stepped(self, loss: Callable[[], float]) -> None:
        """Nothing."""

    def ended(self, epoch: EpochEnd) -> None:
        self.epochs.append(epoch)


def train_here(
    bottle: FolderBottle, snapshot_id: str, folder: Path, weights: Path | None = None, **options: Any
) -> Quiet:
    """Train in this process."""
    chosen = DetectorTrainingOptions(**{"epochs": 1, **SMALL, **options})
    snapshot = read_snapshot(bottle, GROUP, snapshot_id)
    dataset = prepare_dataset(bottle, snapshot, chosen.task, folder / "dataset")
    observer = Quiet()
    Ultralytics(folder).train(dataset, chosen, folder, weights, None, observer)
    return observer


@pytest.fixture(scope="session")
def few(tmp_path_factory: pytest.TempPathFactory) -> tuple[FolderBottle, str]:
    """A bottle with a few scenes."""
    bottle = FolderBottle(tmp_path_factory.mktemp("few") / "bottle")
    return bottle, write_scenes(bottle, 16, 4)


def test_a_loss_that_is_no_number_ends_the_training_with_its_epoch(
    few: tuple[FolderBottle, str], tmp_path: Path
) -> None:
    from ultralytics.nn.tasks import DetectionModel

    original = DetectionModel.loss

    def broken(self: Any, batch: Any, preds: Any = None) -> Any:
        loss, items = original(self, batch, preds)
        return loss * math.nan, {name: value * math.nan for name, value in items.items()}

    with (
        patch.object(DetectionModel, "loss", broken),
        pytest.raises(ConfigurationError, match=r"loss became .*nan.* in epoch 1"),
    ):
        train_here(*few, tmp_path, epochs=3)


def test_too_little_memory_says_what_to_change(few: tuple[FolderBottle, str], tmp_path: Path) -> None:
    from ultralytics.nn.tasks import DetectionModel

    error = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB")
    with (
        patch.object(DetectionModel, "loss", side_effect=error),
        pytest.raises(
            ConfigurationError, match="out of memory with a batch of 8 pictures of 96 pixels: a smaller batch"
        ),
    ):
        train_here(*few, tmp_path)


def test_weights_with_code_in_them_are_refused(few: tuple[FolderBottle, str], tmp_path: Path) -> None:
    class Command:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path}/ran",)

    torch.save({"model": Command()}, tmp_path / "bad.pt")
    with pytest.raises(DataValidationError, match="could run code"):
        train_here(*few, tmp_path, tmp_path / "bad.pt")
    assert not (tmp_path / "ran").exists()


def test_weights_of_others_are_opened_in_the_sandbox_alone(
    few: tuple[FolderBottle, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NIGHTSHIFT_SANDBOX", "require")
    monkeypatch.setattr("jobkit.sandbox.landlock.abi", lambda: 0)
    (tmp_path / "start.pt").write_bytes(b"weights")
    with pytest.raises(ConfigurationError, match="weights are not opened here: Landlock cannot be had"):
        train_here(*few, tmp_path, tmp_path / "start.pt")


def rewritten(few: tuple[FolderBottle, str], change: Callable[[Sample], Sample]) -> str:
    bottle, snapshot_id = few
    samples = [change(sample) for sample in read_snapshot(bottle, GROUP, snapshot_id).samples]
    return write_snapshot(bottle, GROUP, samples, []).snapshot_id


def test_a_picture_that_the_library_would_repair_stays_as_it_is(few: tuple[FolderBottle, str], tmp_path: Path) -> None:
    """Ultralytics saves a JPEG that does not end with its marker anew, over the file that it was given."""
    bottle, _ = few

    def torn(sample: Sample) -> Sample:
        content = bottle.read(sample.path) + b"\x00"
        key = sample.path.removesuffix(".jpg") + "_torn.jpg"
        bottle.write(key, content)
        return sample.model_copy(update={"path": key})

    changed = write_snapshot(
        bottle, GROUP, [torn(s).model_copy(update={"sha256": "ab" + s.sha256[2:]})
                        for s in read_snapshot(bottle, GROUP, few[1]).samples], []
    ).snapshot_id  # fmt: skip
    before = pool(bottle)
    assert train_here(bottle, changed, tmp_path).epochs
    assert pool(bottle) == before
    links = list((tmp_path / "dataset" / "images" / "train").iterdir())
    assert not all(link.is_symlink() for link in links), "the library did repair: the test sees what it is about"


def test_pictures_that_the_library_leaves_out_are_an_error(few: tuple[FolderBottle, str], tmp_path: Path) -> None:
    bottle = few[0]
    content = cv2.imencode(".png", np.zeros((9, 40, 3), np.uint8))[1].tobytes()
    bottle.write("pictures/00/tiny.png", content)
    first = [True]

    def shrink(sample: Sample) -> Sample:
        if sample.split != "train" or not first:
            return sample
        first.clear()
        box = AnnotatedObject(label=LABELS[0], box=(0, 0, 9, 9))
        return sample.model_copy(update={"path": "pictures/00/tiny.png", "width": 40, "height": 9, "objects": (box,)})

    with pytest.raises(DataValidationError, match="takes 15 of 16 pictures in train"):
        train_here(bottle, rewritten(few, shrink), tmp_path)


def test_the_dataset_is_what_the_snapshot_says(few: tuple[FolderBottle, str], tmp_path: Path) -> None:
    bottle = few[0]
    part = ((10.0, 10.0, 30.0, 10.0, 30.0, 30.0, 10.0, 30.0), (50.0, 10.0, 60.0, 10.0, 60.0, 20.0, 50.0, 20.0))
    objects = (
        AnnotatedObject(label="disc", box=(10, 10, 50, 20), polygons=part),
        AnnotatedObject(label="box", box=(0, 0, 128, 96), ignore=True),
    )
    changed = rewritten(few, lambda s: s.model_copy(update={"objects": objects if s.source == "0.jpg" else ()}))
    # classes are those with objects
    snapshot = read_snapshot(bottle, GROUP, changed)
    assert snapshot.summary.labels == ["disc"]
    for task, wanted in (("detect", 4), ("segment", 2 * (4 + 5 + 1))):
        dataset = prepare_dataset(bottle, snapshot, task, tmp_path / task)
        assert (dataset.labels, dataset.train_pictures, dataset.val_pictures) == (["disc"], 16, 4)
        texts = [path.read_text() for path in sorted((tmp_path / task / "labels" / "train").iterdir())]
        (line,) = filter(None, texts)
        values = [float(value) for value in line.split()]
        assert values[0] == 0
        assert len(values) == 1 + wanted
        if task == "detect":
            assert values[1:] == pytest.approx([35 / 128, 20 / 96, 50 / 128, 20 / 96])


def test_parts_become_one_outline_that_covers_the_same() -> None:
    parts = [[10, 10, 30, 10, 30, 30, 10, 30], [50, 10, 60, 10, 60, 20, 50, 20], [12, 50, 22, 50, 22, 60]]
    outline = one_outline(parts)
    x, y = outline.T
    area = abs(np.dot(x, np.roll(y, -1)) - np.dot(y, np.roll(x, -1))) / 2
    assert area == pytest.approx(400 + 100 + 50)
    drawn, wanted = np.zeros((80, 80), np.uint8), np.zeros((80, 80), np.uint8)
    cv2.fillPoly(drawn, [outline.round().astype(np.int32)], 1)
    for part in parts:
        cv2.fillPoly(wanted, [np.array(part, np.int32).reshape(-1, 2)], 1)
    assert (drawn != wanted).sum() < 60, "two lines of a pixel join the parts"


@pytest.mark.parametrize(
    ("option", "code"),
    [("--architecture=resnet18", 2), ("--input_size=100", 2), ("--snapshot_id=none", 3)],
)
def test_what_cannot_be_trained_is_refused_with_its_exit_code(
    few: tuple[FolderBottle, str], tmp_path: Path, option: str, code: int
) -> None:
    name, _, value = option[2:].partition("=")
    Process(few[0], few[1], tmp_path / "job", None, **{name: value}).result(code)
